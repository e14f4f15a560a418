"""What can be known before anything starts: are the devices, the corpus and the model there?"""

import json
from pathlib import Path

from training.config.schema import ClusterConfig, RunConfig
from training.errors import ClusterError, DataError, ModelError
from training.files import is_url
from training.layout import CorpusLayout
from training.model.arithmetic import check_heads, check_tensor_cut

_DEVICES = Path("/dev")


def check_devices(cluster: ClusterConfig, devices: Path = _DEVICES) -> None:
    """Refuse a local start that asks for more GPUs than this machine has.

    Raises:
        ClusterError: There are fewer.
    """
    if cluster.gpus_per_node == 0 or cluster.nodes > 1:
        return
    # Windows' Linux (dxg) and AMD (kfd) show no such files: the worker finds out there.
    if (devices / "dxg").exists() or (devices / "kfd").exists():
        return
    found = len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    if found == 0:
        raise ClusterError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}, but this machine has no GPU "
            f"({devices / 'nvidia0'} is missing); use cluster=local for CPUs, or call this on a GPU node"
        )
    if found < cluster.gpus_per_node:
        raise ClusterError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}, but this machine has {found}; "
            f"use cluster.gpus_per_node={found}"
        )


def check_prepared(config: RunConfig) -> None:
    """Make sure that `metier prepare` has been run.

    A corpus behind a URL is looked for by the processes that read it.

    Raises:
        DataError: The corpus is missing.
        ModelError: The model's folder is missing.
    """
    manifest = CorpusLayout(Path(config.data.path)).manifest
    if not is_url(config.data.path) and not manifest.is_file():
        raise DataError(
            f"data.path={config.data.path} holds no prepared corpus ({manifest} is missing); "
            "run `metier prepare` with the same settings first"
        )
    folder = config.model.folder
    if config.model.source != "huggingface" and folder and not (Path(folder) / "config.json").is_file():
        raise ModelError(
            f"model.folder={folder} holds no model ({Path(folder) / 'config.json'} is missing); "
            "run `metier prepare` with the same settings first"
        )


def check_model(config: RunConfig) -> None:
    """Refuse what the model's own shape rules out, where its folder can be seen from here.

    Raises:
        ModelError: Its attention heads cannot be shared out over the ranks of a team.
    """
    model = config.model
    folder = model.path if model.source == "huggingface" else model.folder
    described = Path(folder or "").expanduser() / "config.json"
    if not described.is_file():
        return
    architecture = json.loads(described.read_text(encoding="utf-8"))
    architecture = architecture.get("text_config", architecture)
    if "num_attention_heads" in architecture:
        check_heads(architecture, config.strategy.sequence_parallel_size)
        check_tensor_cut(architecture, config.strategy.tensor_parallel_size)
