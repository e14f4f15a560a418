"""What a strategy needs of the machine that it runs on: asked on the node itself before anything is built."""

from training.config.schema import StrategyConfig
from training.errors import ClusterError


def check_needs(strategy: StrategyConfig) -> None:
    """Refuse to offload to NVMe where DeepSpeed cannot.

    Raises:
        ClusterError: libaio or its headers are missing, against which DeepSpeed compiles its I/O.
    """
    if "nvme" not in {strategy.offload_optimizer, strategy.offload_parameters}:
        return
    # DeepSpeed's builders look for compilers when they are imported.
    from deepspeed.ops.op_builder import AsyncIOBuilder  # noqa: PLC0415

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ClusterError(
            "strategy.offload_optimizer or offload_parameters=nvme needs libaio with its headers on every "
            "node (Debian: libaio-dev); install it, or use cpu"
        )
