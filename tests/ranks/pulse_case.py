"""Ranks that beat and reduce, step after step, until one of them meets its fault; without model or data."""

import ctypes
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Literal

from tests.ranks.spawn import free_port
from training.layout import RunLayout

Fault = Literal["stopped", "endless loop", "holds Python", "never enters", "all wait", "overtaken", "none"]

WATCH = {
    "enabled": True,
    "start_seconds": 60,
    "step_seconds": 4,
    "step_factor": 5,
    "save_seconds": 60,
    "evaluate_seconds": 60,
    "slow_factor": 1.5,
    "slow_window_steps": 10,
}
FAULT_STEP = 8
STEPS = 12
PRELOAD = ["training.worker.run", "peft", "bitsandbytes"]  # as tests.ranks.spawn has it: one server for all


def new_run(root: Path, **watch: object) -> RunLayout:
    """Make a run directory with nothing but the settings of the watch."""
    layout = RunLayout(root / "run")
    layout.root.mkdir()
    layout.config.write_text(json.dumps({"config": {"cluster": {"watch": {**WATCH, **watch}}}}))
    return layout


class Start:
    """Two ranks of a run, one of which has a fault."""

    def __init__(self, layout: RunLayout, fault: Fault, victim: int = 1) -> None:
        """Start them."""
        self.layout = layout
        os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        port = free_port()
        faults: list[Fault] = ["none", "none"]
        faults[victim] = fault
        if fault == "all wait":
            faults = [fault, fault]
        self._ranks = [
            context.Process(target=_be_rank, args=(layout.root, rank, port, each))
            for rank, each in enumerate(faults)
        ]
        for process in self._ranks:
            process.start()

    def end(self, deadline: float) -> list[int | None]:
        """Wait for their end; give their exit codes, negative for a signal."""
        try:
            for each in self._ranks:
                each.join(max(0.1, deadline - time.monotonic()))
            return [each.exitcode for each in self._ranks]
        finally:
            for each in self._ranks:
                each.kill()
                each.join()


def _be_rank(root: Path, rank: int, port: int, fault: Fault) -> None:
    import torch
    import torch.distributed as dist

    from training.collectives import join, leave
    from training.fence import claim_incarnation
    from training.pulse.open import beating
    from training.ranks import Ranks
    from training.worker.log import redirect_to_log

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCH_FR_BUFFER_SIZE": "100"}
    layout, ranks = RunLayout(root), Ranks(rank=rank, local_rank=rank, world_size=2)
    redirect_to_log(layout, ranks)
    with beating(layout, ranks) as pulse:
        pulse.enter("start", 0)
        join(ranks, device=torch.device("cpu"), timeout_seconds=300)
        if ranks.is_lead:
            claim_incarnation(layout.incarnations)
        pulse.claim(1)
        for step in range(1, STEPS + 1):
            pulse.enter("step", step)
            if step == FAULT_STEP:
                # Steps are shorter than beats here.
                _wait_until_told(layout.heart(rank), step)
                _meet(fault, layout)
            dist.all_reduce(torch.ones(8))
        leave()


def _wait_until_told(path: Path, step: int) -> None:
    from training.pulse.heart import read_heart

    deadline = time.monotonic() + 30
    while (heart := read_heart(path)) is None or heart.step < step:
        assert time.monotonic() < deadline, f"{path} does not come to step {step}"
        time.sleep(0.02)


def _meet(fault: Fault, layout: RunLayout) -> None:
    match fault:
        case "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "endless loop":
            loop_for_ever()
        case "holds Python":
            hold = ctypes.PyDLL(None).sleep
            while True:  # a signal ends a sleep
                hold(600)
        case "never enters":
            threading.Event().wait()
        case "overtaken":
            from training.fence import claim_incarnation

            claim_incarnation(layout.incarnations)
            threading.Event().wait()
        case "all wait":
            import torch
            import torch.distributed as dist

            # Each waits for what the other one will send only afterwards.
            dist.recv(torch.ones(8), src=1 - dist.get_rank())


def loop_for_ever() -> None:
    """Be found in the stacks."""
    while True:
        pass
