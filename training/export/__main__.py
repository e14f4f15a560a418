"""``python -m training.export FROZEN``: started by ``metier export``."""

import sys
from pathlib import Path

from training.entry import run_entry


def export_run(frozen: Path) -> None:
    """Export the run that the frozen configuration ``frozen`` names."""
    # What is imported here takes seconds; a wrong command line is answered before.
    from training.config.freeze import read_frozen  # noqa: PLC0415
    from training.export.export import export  # noqa: PLC0415

    export(read_frozen(frozen))


if __name__ == "__main__":
    sys.exit(run_entry("export", export_run))
