"""How every worker process begins and ends: one argument in, an exit code and one line out."""

import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError

# On a CPU with AVX512-BF16 it asks for a package that nothing here uses (training/model/adapter.py says why).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def run_entry(verb: str, body: Callable[[Path], None]) -> int:
    """Run ``body`` with the one path in argv; say a user's error in one line on stderr, exit code 2."""
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.stderr.write(f"usage: python -m training.{verb} PATH (started by `metier {verb}`)\n")
        return EXIT_USER_ERROR
    try:
        body(Path(sys.argv[1]))
    except MetierError as error:
        sys.stderr.write(f"metier {verb}: {error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED
    return EXIT_OK
