"""The entry of every training process: ``python -m training.worker RUN_DIR``, through torchrun or srun."""

# First of all: a notice that comes while the rest is imported would end the process.
from training.notice import Notice

_notice = Notice()
if __name__ == "__main__":
    _notice.listen()

# ruff: noqa: E402
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
# On a CPU with AVX512-BF16 it asks for a package that nothing here uses (training/model/adapter.py says why).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError
from training.fence import FencedError
from training.layout import RunLayout
from training.processes import end_with_parent
from training.pulse.beat import Pulse
from training.pulse.open import beating
from training.ranks import Ranks
from training.worker.log import redirect_to_log
from training.worker.tell import tell_failure


def main() -> int:
    """Train, and leave an outcome whatever happens; the exit code is only a hint."""
    _notice.listen()
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
        with beating(layout, ranks) as pulse:
            return _train(layout, ranks, pulse)
    except FencedError as error:
        # No word of it in the run directory, which is the newer start's; the launcher sees that by itself.
        sys.stderr.write(f"metier train: rank {ranks.rank}: {error}\n")
        return EXIT_OK
    except MetierError as error:
        sys.stderr.write(f"metier train: rank {ranks.rank}: {error}\n")
        tell_failure(layout, ranks, error, None)
        return EXIT_USER_ERROR
    except Exception as error:
        traceback.print_exc()
        tell_failure(layout, ranks, error, None)
        return EXIT_FAILED


def _train(layout: RunLayout, ranks: Ranks, pulse: Pulse) -> int:
    # Everything heavy is imported after the log is open, so that its complaints land there. What is
    # imported stays: to look through it for garbage, again and again, takes a sixth of the import's time.
    gc.disable()
    from training.worker.life import Outside  # noqa: PLC0415
    from training.worker.run import run  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    return run(layout, ranks, Outside(notice=_notice, pulse=pulse))


if __name__ == "__main__":
    sys.exit(main())
