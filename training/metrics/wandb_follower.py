"""The helper process: reads the journal as it grows and hands each step to W&B once."""

import contextlib
import fcntl
import json
import os
import secrets
import select
import string
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import wandb

from training.errors import MetierError
from training.files import write_json, write_text
from training.layout import RunLayout, redone_beside
from training.metrics.lines import read_lines
from training.metrics.nodes import NodeReadings
from training.metrics.tail import POLL_SECONDS, follow_lines
from training.metrics.tracker import DRAIN_SECONDS, FOLLOW, kill_group

INIT_TIMEOUT_SECONDS = 60.0
FIRST_RETRY_SECONDS = 15.0
LONGEST_RETRY_SECONDS = 300.0
MOST_RESTARTS = 3
NICENESS = 15
ID_LETTERS = string.ascii_lowercase + string.digits
ID_LENGTH = 8
HOPELESS = (wandb.errors.UsageError, wandb.errors.AuthenticationError)
"""A second try would end the same way: no API key, or a wrong one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerSettings:
    """What run.json says to W&B."""

    mode: str
    project: str
    entity: str | None
    group: str | None
    job_type: str | None
    tags: list[str]
    name: str
    samples_per_step: int | None
    config: dict[str, Any]


def follow_run(layout: RunLayout, *, follow: bool, attempt: int, mode: str | None = None) -> int:
    """Send the journal to W&B until the training ends; try again from a fresh process on a failure.

    Args:
        layout: The run.
        follow: Whether a training is alive on the other end of standard input.
        attempt: How often a fresh process was tried before.
        mode: Instead of the one that the run was trained with.

    Returns:
        The exit code: 0 when all was handed over.
    """
    ended = threading.Event()
    if follow:
        os.nice(NICENESS if attempt == 0 else 0)
        threading.Thread(target=_watch_trainer, args=(ended, os.getppid()), daemon=True).start()
    else:
        ended.set()
    try:
        with wait_for_turn(layout):
            settings = read_settings(layout)
            send_journal(layout, replace(settings, mode=mode or settings.mode), ended)
    except ConnectionError as error:
        # W&B's service, another process, unblocks SIGTERM and ends by it. Only proctrack/linuxproc sends it
        # that far, and it means that the training is about to end: there is no time to wait.
        _say(f"W&B's service is gone ({_first_line(error)}); starting it again")
        if attempt < MOST_RESTARTS:
            _start_afresh(layout, attempt + 1)
        return 1
    except HOPELESS as error:
        _say(f"W&B refused: {_first_line(error)}; metrics.jsonl has everything")
        return 1
    except (MetierError, wandb.Error, OSError, ValueError) as error:
        pause = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**attempt)
        _say(f"W&B is out of reach: {_first_line(error)}; trying again in {pause:.0f}s")
        if ended.wait(pause):
            _say(f"the training ended first; send the rest: metier sync {layout.root}")
            return 1
        _start_afresh(layout, attempt + 1)
    return 0


def read_settings(layout: RunLayout) -> TrackerSettings:
    """Read the tracker's part of run.json, and the whole of it as W&B's config."""
    frozen = json.loads(layout.config.read_text(encoding="utf-8"))
    config = frozen["config"]
    tracker = config["tracker"]
    return TrackerSettings(
        mode=tracker["mode"],
        project=tracker["project"],
        entity=tracker["entity"],
        group=tracker["group"],
        job_type=tracker.get("job_type"),
        tags=tracker["tags"],
        name=config["name"],
        samples_per_step=config.get("batch", {}).get("global_batch_size"),
        config={**config, "versions": frozen.get("versions", {})},
    )


def find_or_make_id(layout: RunLayout) -> str:
    """Give the run directory's one W&B id; made at its first start."""
    path = layout.tracker / "wandb_id"
    if not path.exists():
        write_text(path, "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH)) + "\n")
    return path.read_text(encoding="utf-8").strip()


def send_journal(layout: RunLayout, settings: TrackerSettings, ended: threading.Event) -> None:
    """Open the run at W&B and hand over every step it does not have yet, until ``ended``.

    A step is sent once, also where a resumed run took it a second time. After a roll back the same step is
    taken with other samples: that is another row, at the same place of the charts' axis. What the server has
    counts; its word is taken at each start, so that rows lost on the way are sent again. Offline, and after
    an orderly end, the folder's own note counts.
    """
    run = wandb.init(
        id=find_or_make_id(layout),
        resume="allow" if settings.mode == "online" else None,
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        job_type=settings.job_type,
        tags=settings.tags,
        name=settings.name,
        config=settings.config,
        dir=str(layout.tracker),
        mode=settings.mode,  # type: ignore[arg-type, unused-ignore]
        settings=_wandb_settings(),
    )
    _say(f"W&B run {run.id} is open ({settings.mode})")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    sent = SentRows(layout, settings.mode)
    next_row = max(sent.last_row + 1, run.step if run.resumed else 0)
    nodes = NodeReadings(layout)
    for lines in follow_lines(layout.metrics, ended):
        nodes.read()
        for line in lines:
            row = number_row(line, settings.samples_per_step)
            system = nodes.take(float(line.get("time", 0.0)))
            if row >= next_row:
                run.log(lay_flat(line) | system | find_samples(layout, line), step=row)
                next_row = row + 1
        if settings.mode == "offline":
            sent.write(next_row - 1)
    run.finish(exit_code=0 if _was_finished(layout) else 1)
    sent.write(next_row - 1)
    _say(f"W&B has every step up to {next_row - 1}")


def number_row(line: dict[str, Any], samples_per_step: int | None) -> int:
    """Number a line of the journal for W&B, whose rows only ever go up.

    It is the step, until the run is rolled back: the position in the data goes on, and so do the rows.
    """
    if samples_per_step is None or "samples_seen" not in line:
        return int(line["step"])
    return int(line["samples_seen"]) // samples_per_step


def find_samples(layout: RunLayout, line: dict[str, Any]) -> dict[str, Any]:
    """Give the answers that were written after this step, as a table; nothing where there are none."""
    place = (line["step"], line.get("samples_seen"))
    answers = [*read_lines(layout.samples), *read_lines(redone_beside(layout.samples))]
    found = [each for each in answers if (each["step"], each["samples_seen"]) == place]
    # A resumed run may have answered them a second time, with the same words.
    rows = list({each["id"]: [each["prompt"], each["expected"], each["answer"]] for each in found}.values())
    return {"samples": wandb.Table(columns=["prompt", "expected", "answer"], data=rows)} if rows else {}


def lay_flat(line: dict[str, Any]) -> dict[str, Any]:
    """Turn a line of the journal into W&B's metrics: the loss of a source becomes ``loss/NAME``."""
    by_source = line.get("loss_by_source", {})
    flat = {key: value for key, value in line.items() if key != "loss_by_source"}
    flat |= {f"loss/{name}": value for name, value in by_source.items()}
    return {key: value for key, value in flat.items() if value is not None}


class SentRows:
    """The last row that surely arrived, remembered for each mode in tracker/sent.json."""

    def __init__(self, layout: RunLayout, mode: str) -> None:
        """Read what an earlier start has noted."""
        self._path = layout.tracker / "sent.json"
        self._mode = mode
        try:
            self._rows: dict[str, int] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self._rows = {}

    @property
    def last_row(self) -> int:
        """0 when nothing was sent."""
        return self._rows.get(self._mode, 0)

    def write(self, row: int) -> None:
        """Note that everything up to ``row`` has arrived."""
        if row != self.last_row:
            self._rows[self._mode] = row
            write_json(self._path, self._rows)


@contextlib.contextmanager
def wait_for_turn(layout: RunLayout) -> Iterator[None]:
    """Let one helper of a run send at a time: a killed start's may be at its last rows."""
    layout.tracker.mkdir(parents=True, exist_ok=True)
    with (layout.tracker / "lock").open("wb") as lock:
        # Where the disk knows no locks, both send; the rows of the second are refused.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _wandb_settings() -> wandb.Settings:
    # Reports of W&B's own crashes go to a third party: off unless the user turns them on.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_save_requirements=False,
        x_stats_pid=os.getppid(),
        init_timeout=INIT_TIMEOUT_SECONDS,
    )


def _was_finished(layout: RunLayout) -> bool:
    events = read_lines(layout.events)
    return bool(events) and events[-1].get("event") == "finished"


def _watch_trainer(ended: threading.Event, trainer: int) -> None:
    """Set ``ended`` when the trainer lets go or dies; end this process group DRAIN_SECONDS later."""
    # A forked child of the trainer may hold the pipe open after its death: ask for the parent as well.
    while os.getppid() == trainer and not select.select([sys.stdin], [], [], POLL_SECONDS)[0]:
        pass
    ended.set()
    time.sleep(DRAIN_SECONDS)
    _say("W&B took too long; send the rest: metier sync RUN")
    kill_group(os.getpgrp())


def _start_afresh(layout: RunLayout, attempt: int) -> None:
    # W&B's service may be beyond repair after a failure: the same process number, a new program, which must
    # not look for the service of the old one.
    os.environ.pop("WANDB_SERVICE", None)
    arguments = [sys.executable, "-m", "training.metrics.tracker", str(layout.root), FOLLOW, str(attempt)]
    os.execv(sys.executable, arguments)  # noqa: S606


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
