"""Commands as a user types them, in a folder of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    """Give the processes this checkout and one thread each: tests run side by side."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}


def metier(folder: Path, *words: str, timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Run ``metier WORDS`` in ``folder`` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start ``metier WORDS`` in ``folder``, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launcher", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def succeed(folder: Path, *words: str, timeout_seconds: float = 600) -> str:
    """Run ``metier WORDS`` and give what it printed; fail with its words when it fails."""
    done = metier(folder, *words, timeout_seconds=timeout_seconds)
    assert done.returncode == 0, f"metier {' '.join(words)}:\n{done.stdout}\n{done.stderr}\n{_logs(folder)}"
    return done.stdout


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def journal(run: Path) -> dict[int, dict[str, Any]]:
    """Read metrics.jsonl by step, of which each is there once, in order."""
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return {line["step"]: line for line in lines}


def kinds(run: Path) -> list[str]:
    """Name the events of a run in order."""
    return [line["event"] for line in read_lines(run / "events.jsonl")]


def link_prepared(prepared: Path, folder: Path) -> Path:
    """Make a working folder that uses models and corpora prepared elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("models", "data"):
        (folder / name).symlink_to(prepared / name)
    return folder


def _logs(folder: Path) -> str:
    tails: Sequence[str] = [
        f"{path}:\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("runs/*/logs/*.log"))
    ]
    return "\n".join(tails)
