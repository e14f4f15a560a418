"""``python -m training.evaluation FROZEN``: started by ``metier evaluate``."""

import sys
from pathlib import Path

from training.entry import run_entry


def evaluate_run(frozen: Path) -> None:
    """Evaluate the run that the frozen configuration ``frozen`` names."""
    # What is imported here takes seconds; a wrong command line is answered before.
    from training.config.freeze import read_frozen  # noqa: PLC0415
    from training.evaluation.evaluate import evaluate  # noqa: PLC0415

    evaluate(read_frozen(frozen))


if __name__ == "__main__":
    sys.exit(run_entry("evaluate", evaluate_run))
