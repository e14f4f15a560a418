"""`metier logs RUN`: what ranks and jobs have said, with the rank in front."""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.seeing.read import read_tail
from launcher.seeing.runs import RUN_ROOT, find_one_run, split_words
from launcher.seeing.state import look_at
from launcher.tools import Words, refuse_flags
from training.config.names import show
from training.errors import EXIT_OK, ConfigError
from training.layout import RunLayout

HELP = """\
metier logs RUN [--rank R] [--job ID] [--lines N] [--follow] [run_root=DIR]

Prints the last 50 lines (--lines N) of every rank's log, each with its rank in front, and of the launcher's
or the newest job's; of --rank R alone, or of --job ID alone, without anything in front. --follow (-f) goes on
with what comes until the run ends; Ctrl-C leaves the run alone. The whole logs are in RUN/logs.

Examples
  metier logs medical_qlora_smol
  metier logs medical_qlora_smol --rank 3 --lines 200
  metier logs medical_qlora_smol --job 4711 --follow
"""

LINES = 50
_FOLLOW_SECONDS = 0.5
_LOOK_EVERY = 10
"""Rounds of following between two looks whether the run is over: Slurm is asked for it."""

_RANK = re.compile(r"rank_(\d+)\.log")


def run(words: Words) -> int:
    """Print the logs; give the exit code.

    Raises:
        ConfigError: There is no such run, rank or job.
    """
    refuse_flags(words, ("--rank", "--job", "--lines", "--follow", "-f"))
    names, settings = split_words(words.plain)
    layout = find_one_run(names, "logs", settings.get("run_root", RUN_ROOT))
    flags = dict(words.flags)
    lines = flags.get("--lines", str(LINES))
    if not lines.isdecimal():
        raise ConfigError(f"--lines {lines}: wanted a number of lines")
    follow = "--follow" in flags or "-f" in flags
    files = choose_logs(layout, rank=flags.get("--rank"), job=flags.get("--job"), follow=follow)
    labels = label(files)
    for path in files:
        for line in read_tail(path, int(lines), 1 << 22):
            sys.stdout.write(f"{labels[path]}{line}\n")
    if follow:
        sys.stdout.flush()
        _follow(layout, files, flags)
    return EXIT_OK


def choose_logs(layout: RunLayout, *, rank: str | None, job: str | None, follow: bool = False) -> list[Path]:
    """Choose the files to show: one rank's, one job's, or all ranks' after the launcher's and newest job's.

    Raises:
        ConfigError: The one that is wanted is not there; what is there is said.
    """
    ranks = find_rank_logs(layout)
    jobs = sorted(layout.logs.glob("job_*.log"), key=lambda path: path.stat().st_mtime)
    if rank is not None and not rank.isdecimal():
        raise ConfigError(f"--rank {show(rank)}: wanted the number of a rank, 0 or more")
    if rank is not None or job is not None:
        wanted = layout.rank_log(int(rank)) if rank is not None else layout.job_log(job or "")
        if wanted.is_file() or (follow and job is not None):
            return [wanted]
        there = [path.stem.replace("_", " ") for path in [*ranks, *jobs]]
        raise ConfigError(f"{wanted} is not there; {', '.join(there) or 'no rank has written one yet'}")
    launch = [path for path in find_launch_logs(layout) if path.stat().st_size]
    return [*launch, *jobs[-1:], *ranks]


def find_launch_logs(layout: RunLayout) -> list[Path]:
    """List what torchrun said, on this machine or on each of several hosts."""
    return sorted(layout.logs.glob("launch*.log"))


def find_rank_logs(layout: RunLayout) -> list[Path]:
    """List the ranks' logs in the order of the ranks."""
    found = [
        (int(match[1]), path)
        for path in layout.logs.glob("rank_*.log")
        if (match := _RANK.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def label(files: Sequence[Path]) -> dict[Path, str]:
    """Give what stands before each file's lines; nothing where there is one file."""
    if len(files) == 1:
        return {files[0]: ""}
    words = {path: path.stem.replace("_", " ") for path in files}
    width = max((len(word) for word in words.values()), default=0)
    return {path: f"{word.ljust(width)} | " for path, word in words.items()}


class Follower:
    """A text that grows, or is replaced by a shorter one; whole lines are given once."""

    def __init__(self, path: Path) -> None:
        """Begin at the end of what is there."""
        self._path = path
        self._place = path.stat().st_size if path.is_file() else 0

    def read(self) -> list[str]:
        """Give the lines that have come."""
        try:
            with self._path.open("rb") as stream:
                if stream.seek(0, 2) < self._place:
                    self._place = 0
                stream.seek(self._place)
                content = stream.read()
        except OSError:
            return []
        whole = content.rfind(b"\n") + 1
        self._place += whole
        return content[:whole].decode("utf-8", "replace").splitlines()


def _follow(layout: RunLayout, files: Sequence[Path], flags: dict[str, str]) -> None:
    followers = {path: Follower(path) for path in files}
    rounds = 0
    while True:
        rounds += 1
        over = rounds % _LOOK_EVERY == 0 and look_at([layout])[0][0].is_over
        if not flags.keys() & {"--rank", "--job"}:
            # Ranks begin to speak one by one, and a requeued job has a log of its own.
            for path in choose_logs(layout, rank=None, job=None):
                if path not in followers:
                    followers[path] = Follower(path)
        labels = label(list(followers))
        for path, follower in followers.items():
            for line in follower.read():
                sys.stdout.write(f"{labels[path]}{line}\n")
        sys.stdout.flush()
        if over:
            return
        time.sleep(_FOLLOW_SECONDS)
