"""`python -m training.prepare FILE` in a folder of its own: started, watched, killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.corpus_case import files_source
from tests.end_to_end.runs import environment
from training.config.freeze import write_frozen
from training.config.schema import RunConfig

DEADLINE_SECONDS = 240


def freeze(folder: Path, model: Path, *overrides: str, sources: dict[str, Any] | None = None) -> Path:
    composed = compose_run(
        ["experiment=tiny_smoke", f"model.folder={model}", f"data.path={folder / 'corpus'}", *overrides],
        ConfigTree(None),
    )
    values = composed.config.model_dump(mode="json")
    if sources is not None:
        values["data"]["sources"] = sources
    path = folder / "prepare.json"
    write_frozen(path, RunConfig.model_validate(values), {})
    return path


def write_sources(folder: Path, count: int, documents: int) -> dict[str, Any]:
    """Write some sources of texts; each is a part of its own, which one process encodes."""
    sources = {}
    for number in range(count):
        path = folder / f"texts{number}.jsonl"
        with path.open("w") as lines:
            for document in range(documents):
                lines.write(json.dumps({"text": f"{number} {document} " + "word " * 100}) + "\n")
        sources[f"texts{number}"] = files_source(path, family_field=None)
    return sources


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "training.prepare", str(path)]


def run(path: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        preexec_fn=before,
    )


def start(path: Path) -> subprocess.Popen[str]:
    """Start in a session of its own, so that all its processes can be found and killed."""
    return subprocess.Popen(
        command(path),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell has what it starts in the background ignore it, and so would all that the tests start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def wait_for_commits(child: subprocess.Popen[str], corpus: Path, count: int = 1) -> None:
    """Return once some segments are committed and others are still to come."""
    wait_until(lambda: has_committed(child, corpus, count), "a segment is committed")
    assert child.poll() is None, child.communicate()[1]


def has_committed(child: subprocess.Popen[str], corpus: Path, count: int) -> bool:
    """Say whether so many segments are committed, or no more will be."""
    return len(list((corpus / "shards").glob("*.arrow"))) >= count or child.poll() is not None


def find_processes(session: int) -> dict[int, str]:
    """List the live processes of a session with their command lines."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(own) == session and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue
    return found


def find_workers(session: int) -> list[int]:
    """List the processes that encode."""
    return [number for number, line in find_processes(session).items() if "spawn_main" in line]


def end_group(child: subprocess.Popen[str], number: signal.Signals) -> tuple[str, str]:
    """Signal the whole group, as a terminal or a scheduler does, and give what was said."""
    with contextlib.suppress(ProcessLookupError):  # it may have ended in the meantime
        os.killpg(child.pid, number)
    return child.communicate(timeout=DEADLINE_SECONDS)
