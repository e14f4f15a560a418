"""``python -m training.audit FILE``: started by ``metier audit`` with a frozen configuration."""

import sys
from pathlib import Path

from training.entry import run_entry


def audit_file(path: Path) -> None:
    """Audit the corpus that the frozen configuration at ``path`` names."""
    # What is imported here takes seconds; a wrong command line and Ctrl-C are answered before.
    from training.audit.body import audit  # noqa: PLC0415

    audit(path)


if __name__ == "__main__":
    sys.exit(run_entry("audit", audit_file))
