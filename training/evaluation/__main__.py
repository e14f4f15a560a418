"""``python -m training.evaluation RUN_DIR``: started by ``metier evaluate``."""

import sys
from pathlib import Path

from training.entry import run_entry


def evaluate_run(root: Path) -> None:
    """Evaluate the run in the folder ``root``."""
    # What is imported here takes seconds; a wrong command line is answered before.
    from training.evaluation.evaluate import evaluate  # noqa: PLC0415
    from training.layout import RunLayout  # noqa: PLC0415

    evaluate(RunLayout(root))


if __name__ == "__main__":
    sys.exit(run_entry("evaluate", evaluate_run))
