"""The demo: prepare, train and evaluate one experiment, one verb after the other, with the time of each."""

import subprocess
import sys
import time
from collections.abc import Sequence

VERBS = ("prepare", "train", "evaluate")


def run_demo(overrides: Sequence[str]) -> int:
    """Run each verb as a user would type it; stop at the first that fails. Give its exit code, or 0."""
    seconds: dict[str, float] = {}
    for verb in VERBS:
        _say(f"\n$ metier {verb} {' '.join(overrides)}\n")
        started = time.monotonic()
        code = subprocess.run([sys.executable, "-m", "launcher", verb, *overrides], check=False).returncode
        seconds[verb] = time.monotonic() - started
        if code:
            return code
    _say("\n" + "".join(f"{verb:<10}{value:7.0f} s\n" for verb, value in seconds.items()))
    _say(f"{'in all':<10}{sum(seconds.values()):7.0f} s\n")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(run_demo(sys.argv[1:]))
