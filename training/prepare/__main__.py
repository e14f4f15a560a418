"""``python -m training.prepare FILE``: started by ``metier prepare`` with a frozen configuration."""

import sys
from pathlib import Path

from training.entry import run_entry


def prepare_file(path: Path) -> None:
    """Prepare what the frozen configuration at ``path`` names: the model's folder and the corpus."""
    # What is imported here takes seconds; a wrong command line and Ctrl-C are answered before.
    from training.prepare.body import prepare  # noqa: PLC0415

    prepare(path)


if __name__ == "__main__":
    sys.exit(run_entry("prepare", prepare_file))
