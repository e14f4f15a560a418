"""The entry of every training process: ``python -m training.worker RUN_DIR``, through torchrun or srun."""

import gc
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

# DeepSpeed looks for an accelerator when it is imported and would complain about a CPU.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
warnings.filterwarnings("ignore", message="TORCH_CUDA_ARCH_LIST")
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError  # noqa: E402
from training.fence import FencedError  # noqa: E402
from training.layout import RunLayout  # noqa: E402
from training.outcome import Outcome, write_outcome  # noqa: E402
from training.processes import end_with_parent  # noqa: E402
from training.ranks import Ranks  # noqa: E402


def main() -> int:
    """Train, and leave an outcome whatever happens; the exit code is only a hint."""
    from training.worker.start import forget_earlier_attempt, redirect_to_log  # noqa: PLC0415

    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.stderr.write("usage: python -m training.worker RUN_DIR (started by `metier train`)\n")
        return EXIT_USER_ERROR
    # Ranks whose torchrun was killed would go on training beside those of the next start.
    end_with_parent(os.getppid())
    layout = RunLayout(Path(sys.argv[1]))
    ranks = Ranks(rank=0, local_rank=0, world_size=1)
    try:
        ranks = Ranks.from_environ(os.environ)
        redirect_to_log(layout, ranks)
        if ranks.is_lead:
            forget_earlier_attempt(layout, os.environ)
        # Everything heavy is imported after the log is open, so that its complaints land there. What is
        # imported stays: to look through it for garbage, again and again, takes a sixth of the import's time.
        gc.disable()
        from training.worker.run import run  # noqa: PLC0415

        gc.freeze()
        gc.enable()
        return run(layout, ranks)
    except FencedError as error:
        # No word of it in the run directory, which is the newer start's; the launcher sees that by itself.
        sys.stderr.write(f"metier train: rank {ranks.rank}: {error}\n")
        return EXIT_OK
    except MetierError as error:
        sys.stderr.write(f"metier train: rank {ranks.rank}: {error}\n")
        _tell(layout, ranks, error)
        return EXIT_USER_ERROR
    except Exception as error:
        traceback.print_exc()
        _tell(layout, ranks, _name_lost_peer(error))
        return EXIT_FAILED


class PeerLostError(Exception):
    """Another rank went away without a word; this one only heard the connection close."""


def _name_lost_peer(error: Exception) -> Exception:
    text = str(error)
    if any(sign in text for sign in ("closed by peer", "Connection reset", "Broken pipe", "remote process")):
        return PeerLostError(
            "another rank was killed or lost its connection; the same command goes on from the last "
            "checkpoint"
        )
    return error


def _tell(layout: RunLayout, ranks: Ranks, error: Exception) -> None:
    message = (str(error).splitlines() or [""])[0]
    write_outcome(
        layout.outcome,
        Outcome(state="FAILED", step=None, error_class=_name_class(error), message=message, rank=ranks.rank),
    )


def _name_class(error: Exception) -> str:
    """Name the error by the class that the launcher knows: a room's own kinds are its own matter."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == MetierError.__module__)
    return next(known, type(error).__name__)


if __name__ == "__main__":
    sys.exit(main())
