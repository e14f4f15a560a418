"""What can be known before anything starts: are the devices, the corpus and the model there?"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from training.config.cluster import ClusterConfig
from training.config.learning import ModelConfig
from training.config.schema import RunConfig
from training.config.sources import FilesSource
from training.errors import ClusterError, DataError, ModelError
from training.files import find_local_files, is_url
from training.layout import CorpusLayout
from training.model.arithmetic import check_heads, check_tensor_cut
from training.model.place import CONFIG, find_model_folder, find_snapshot
from training.model.provenance import check_source, describe_source
from training.model.stored_names import read_stored_names
from training.rules.names import check_rate_factors, check_targets, check_trained_modules, match_frozen

_DEVICES = Path("/dev")
_FOUR = 4


def check_devices(cluster: ClusterConfig, devices: Path = _DEVICES) -> None:
    """Refuse a start on this machine that asks for more GPUs than it has.

    Raises:
        ClusterError: There are fewer.
    """
    if cluster.gpus_per_node == 0 or cluster.kind == "slurm":
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


def check_swap_folder(config: RunConfig) -> None:
    """Refuse a folder to swap into that is not there, where this machine is one of the nodes.

    Raises:
        ClusterError: It is missing, or may not be written to.
    """
    path = config.strategy.nvme_path
    if not config.strategy.swaps_to_disk or path is None or config.cluster.kind == "slurm":
        return
    if not (Path(path).is_dir() and os.access(path, os.W_OK)):
        raise ClusterError(
            f"strategy.nvme_path={path} is no folder that can be written to here; make it, or name another "
            "on this machine's own fast disk"
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
    if config.model.source != "huggingface" and folder and not (Path(folder) / CONFIG).is_file():
        raise ModelError(
            f"model.folder={folder} holds no model ({Path(folder) / 'config.json'} is missing); "
            "run `metier prepare` with the same settings first"
        )


def check_documents(config: RunConfig) -> None:
    """Refuse documents that are to be prepared elsewhere and are not on the disks that are seen from here.

    Raises:
        DataError: A path or a pattern matches no file.
    """
    for name, source in config.data.sources.items():
        for path in source.paths if isinstance(source, FilesSource) else ():
            if not is_url(path) or path.startswith("file://"):
                find_local_files(f"data.sources.{name}.paths", path)


def check_model(config: RunConfig) -> None:
    """Refuse what the model's own shape rules out, where its folder can be seen from here.

    Raises:
        ModelError: There is no such model, it was made of something else, or its heads cannot be shared out
            over the ranks of a team.
    """
    folder = find_model_here(config.model)
    if folder is None:
        return
    if config.model.source != "huggingface":
        check_source(folder, describe_source(config.model))
    architecture = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    architecture = architecture.get("text_config", architecture)
    if "num_attention_heads" in architecture:
        check_heads(architecture, config.strategy.sequence_parallel_size)
        check_tensor_cut(architecture, config.strategy.tensor_parallel_size)


def find_model_here(model: ModelConfig) -> Path | None:
    """Find the folder that holds the model, or what the hub's cache has of it; None where neither is here.

    Raises:
        ModelError: ``model.path`` is neither a model folder nor can be a name on the hub.
    """
    folder: Path | None = Path(model.folder or "")
    if model.source == "huggingface":
        name = find_model_folder(model)
        folder = Path(name) if Path(name).is_dir() else find_snapshot(name)
    return folder if folder is not None and (folder / CONFIG).is_file() else None


def look_ahead(config: RunConfig, *, write: bool) -> list[str]:
    """Refuse what the ranks would refuse, as far as corpus and model can be seen from here.

    Args:
        config: The run.
        write: Whether a packing plan that is made for this may be kept for the ranks.

    Returns:
        What could not be looked at, in words.

    Raises:
        MetierError: A name or a pattern matches nothing of the model; or the corpus does not do, see
            ``check_corpus``.
    """
    notes = [*_check_names(config), *_judge_source(config.model)]
    if is_url(config.data.path):
        notes.append(f"the corpus, which lies behind a URL (data.path={config.data.path})")
    elif not CorpusLayout(Path(config.data.path)).manifest.is_file():
        notes.append(f"the corpus, which `metier prepare` has still to make (data.path={config.data.path})")
    else:
        # With numpy, a third of the time of a dry run.
        from training.ahead import check_corpus  # noqa: PLC0415

        notes += check_corpus(config, write=write)
    return notes


def _check_names(config: RunConfig) -> Iterator[str]:
    """Compare the names and patterns of the configuration with those in the model's files."""
    adapter, factors = config.adapter, list(config.optimizer.rate_factors)
    targets = [] if isinstance(adapter.targets, str) or adapter.kind == "none" else adapter.targets
    asked = {
        "adapter.frozen": adapter.frozen,
        "adapter.targets": targets,
        "adapter.trained_modules": adapter.trained_modules,
        "optimizer.rate_factors": factors,
    }
    asked = {key: names for key, names in asked.items() if names}
    folder = find_model_here(config.model)
    names = read_stored_names(folder) if folder is not None and asked else None
    if names is None:
        for key in asked:
            yield f"{key}: what the model's parameters are called is known when it is loaded"
        return
    frozen = match_frozen(adapter.frozen, names.parameters)
    check_targets(targets, names.linear)
    four_bit = names.linear if adapter.base_bits == _FOUR else frozenset[str]()
    check_trained_modules(adapter.trained_modules, names.parameters, four_bit)
    if adapter.kind == "none":
        check_rate_factors(factors, sorted(names.parameters - frozen))
    elif factors:
        yield "optimizer.rate_factors: what an adapter's parameters are called is known when it is there"


def _judge_source(model: ModelConfig) -> Iterator[str]:
    if model.source != "huggingface" or Path(find_model_folder(model)).is_dir():
        return
    name = model.path or ""
    snapshot = find_snapshot(name)
    here = f"this machine's cache has {snapshot.name}" if snapshot else "this machine's cache has none"
    yield (
        f"which revision model.path={name} will be: a name on the hub stands for what is there that day "
        f"({here}), so the run cannot be repeated from it alone; run.json will record what was loaded. "
        f"To fix it: hf download {name} --revision COMMIT --local-dir FOLDER, and model.path=FOLDER"
    )
