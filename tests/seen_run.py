"""A run directory as a training leaves it, without a training."""

import json
import os
import time
from pathlib import Path
from typing import Any

from training.layout import RunLayout


def write_run(root: Path, *, steps: int = 5, max_steps: int = 10, host: str | None = None) -> RunLayout:
    """Write a run whose newest start has taken ``steps`` steps, one each two seconds, the last just now."""
    layout = RunLayout(root)
    now = time.time()
    write(layout.config, {"config": {"name": root.name, "loop": {"max_steps": max_steps}}})
    first = now - 2 * steps - 10
    claim = {"host": host or os.uname().nodename, "pid": 1, "time": first}
    write(layout.incarnations / "000001.json", claim)
    lines = [
        {
            "step": step,
            "loss": 4.0 / step,
            "tokens_per_second": 1000.0,
            "step_seconds": 1.5,
            "checkpoint_stall_seconds": 0.0,
            "evaluation_seconds": 0.0,
            "mfu": 0.4,
            "time": now - 2 * (steps - step),
            "incarnation": 1,
        }
        for step in range(1, steps + 1)
    ]
    write_lines(layout.metrics, lines)
    write_lines(layout.events, [{"event": "started", "time": first + 1, "incarnation": 1, "step": 0}])
    checkpoint = layout.checkpoint(steps - 1)
    write(checkpoint / "manifest.json", {"step": steps - 1})
    return layout


def write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def put_on_path(folder: Path, name: str, script: str) -> None:
    """Put a program of Slurm's own name into a folder that is first on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
