"""``python -m training.export RUN_DIR``: started by ``metier export``."""

import sys
from pathlib import Path

from training.entry import run_entry


def export_run(root: Path) -> None:
    """Export the run in the folder ``root``."""
    # What is imported here takes seconds; a wrong command line is answered before.
    from training.export.export import export  # noqa: PLC0415
    from training.layout import RunLayout  # noqa: PLC0415

    export(RunLayout(root))


if __name__ == "__main__":
    sys.exit(run_entry("export", export_run))
