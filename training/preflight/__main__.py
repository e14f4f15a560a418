"""The entry of every process of a preflight: `python -m training.preflight RUN_DIR`."""

import contextlib
import os
import sys
import traceback
from pathlib import Path

# Else torch tells at length of every connection that a peer closes.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError, StorageError
from training.layout import RunLayout
from training.preflight.nodes import find_node
from training.processes import end_with_parent
from training.verdict import note_lead


def main() -> int:
    """Take part in the preflight; only the lead's exit code counts."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.stderr.write("usage: python -m training.preflight RUN_DIR (started by `metier preflight`)\n")
        return EXIT_USER_ERROR
    end_with_parent(os.getppid())
    leads = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    layout = RunLayout(Path(sys.argv[1]).absolute())
    try:
        if leads:
            with contextlib.suppress(StorageError):  # it will be found out, and told
                note_lead(layout.preflight, find_node(os.environ))
        from training.preflight.run import quieten, run  # noqa: PLC0415

        return run(layout, os.environ, quieten())
    except MetierError as error:
        sys.stderr.write(f"metier preflight: {error}\n")
        return _fail(layout, EXIT_USER_ERROR) if leads else EXIT_OK
    except Exception:
        traceback.print_exc()
        return _fail(layout, EXIT_FAILED) if leads else EXIT_OK


def _fail(layout: RunLayout, code: int) -> int:
    # A lead that fails has answered: it does not hang.
    with contextlib.suppress(OSError):
        layout.preflight.unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What hung is left behind in its thread, and must not hold up the end.
    os._exit(code)
