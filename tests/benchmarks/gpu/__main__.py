"""What training costs on one GPU: rate, share of the peak, memory; every lever on and off; peers beside it.

    python -m tests.benchmarks.gpu [--minutes 8] [--only TEXT] [--tiny]

Models have the shapes of Llama 1B, 3B and 8B and random weights; tokens are real ones, padding is never
counted. Each case is a process of its own. A case that has no time left, does not fit or lacks a package is
listed with the reason. --tiny tries the benchmark itself, on a CPU as well; its figures mean nothing.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch

from tests.benchmarks.gpu.case import Case, list_cases
from tests.benchmarks.gpu.child import ABSENT, MARK
from training.model.arithmetic import peak_flops

WIDTH = 30


def main() -> None:
    """Measure and print one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--only", default="", help="cases whose table and name have this in them")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    deadline = time.monotonic() + 60 * asked.minutes
    peak, rate = _describe_device(tiny=asked.tiny)
    table, first = "", None
    for number, case in enumerate(list_cases()):
        if asked.only not in f"{case.table} {case.name}":
            continue
        if case.table != table:
            table, first = case.table, None
            print(
                f"\n{table:<{WIDTH}}{'tokens/s':>10}{'of first':>10}{'mfu':>7}{'of matmul':>11}"
                f"{'peak GiB':>10}"
            )
        found = _run(number, deadline, tiny=asked.tiny)
        if isinstance(found, str):
            print(f"{case.name:<{WIDTH}}{found}", flush=True)
            continue
        first = first or found["tokens_per_second"]
        print(_line(case, found, first, peak, rate), flush=True)


def _describe_device(*, tiny: bool) -> tuple[float | None, float | None]:
    """Say what this is; give its peak and what a product of matrices reaches, in operations per second."""
    if not torch.cuda.is_available():
        if not tiny:
            raise SystemExit("no CUDA device here; --tiny tries the benchmark itself on a CPU")
        print(f"torch {torch.__version__}, CPU: figures mean nothing")
        return None, None
    name, size = torch.cuda.get_device_name(0), 8192
    one, other = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for timed in (False, True):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(20):
            one @ other
        torch.cuda.synchronize()
        rate = 20 * 2 * size**3 / (time.perf_counter() - started) if timed else 0.0
    del one, other
    torch.cuda.empty_cache()
    print(f"{name}, torch {torch.__version__}; a product of 8192 x 8192 in bf16: {rate / 1e12:.0f} TFLOP/s")
    return peak_flops(name), rate


def _run(number: int, deadline: float, *, tiny: bool) -> dict[str, Any] | str:
    """Run a case; give what it cost, or why it was not measured."""
    left = deadline - time.monotonic()
    if left < 10:
        return "no time left"
    command = [sys.executable, "-m", "tests.benchmarks.gpu.child", str(number), *(["tiny"] if tiny else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, check=False)
    except subprocess.TimeoutExpired:
        return "no time left"
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
        if line.startswith(ABSENT):
            return line.removeprefix(ABSENT)
    if "OutOfMemoryError" in done.stderr:
        return "does not fit"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return f"failed: {said[-1][:90] if said else done.returncode}"


def _line(case: Case, found: dict[str, Any], first: float, peak: float | None, rate: float | None) -> str:
    tokens = found["tokens_per_second"]
    flops = found.get("flops_per_token", 0.0) * tokens
    shares = [f"{flops / limit:.2f}" if flops and limit else "" for limit in (peak, rate)]
    return (
        f"{case.name:<{WIDTH}}{tokens:>10,.0f}{tokens / first:>10.2f}{shares[0]:>7}{shares[1]:>11}"
        f"{found['peak_gib']:>10.1f}"
    )


if __name__ == "__main__":
    main()
