"""Are the tensors of the files a model's parameters, one to one, in name and shape?"""

from collections.abc import Iterator

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping

from training.errors import ModelError
from training.model.empty import names_by_parameter
from training.model.weights import WeightFiles


def find_obstacle(base: PreTrainedModel, files: WeightFiles | None, *, four_bit: bool) -> str | None:
    """Say why parameters cannot be read one by one; None where they can. A tensor that is lost is none.

    transformers can load far more than this: files of other forms, other names, experts to be merged.

    Args:
        base: The empty model.
        files: Its weights; None where they are no safetensors.
        four_bit: Whether the base is to be quantised.
    """
    return next(_obstacles(base, files, four_bit=four_bit), None)


def _obstacles(base: PreTrainedModel, files: WeightFiles | None, *, four_bit: bool) -> Iterator[str]:
    if files is None:
        yield "its weights are no safetensors files"
        return
    if getattr(base.config, "quantization_config", None) is not None:
        yield "its weights are quantised already"
    if getattr(base, "_keep_in_fp32_modules_strict", None):
        yield "some of its weights stay in fp32 whatever the precision"
    if four_bit and any(type(module).__name__ == "Conv1D" for module in base.modules()):
        yield "its layers are transposed before they are quantised"
    converted = _find_converted(base, files)
    if converted is not None:
        yield f"transformers converts some weights while it loads them, {converted} for one"
    for names in names_by_parameter(base).values():
        there = [name for name in names if name in files.tensors]
        if len(there) > 1:
            yield f"one tied weight is in its files under two names, {' and '.join(there)}"
    missing = _find_missing(base, files)
    if missing and not files.tensors.keys() <= base.state_dict().keys():
        yield f"its files name the weights otherwise, {missing[0]} for one"


def check_match(base: PreTrainedModel, files: WeightFiles) -> None:
    """Refuse files that lack a parameter or have another shape of it.

    Raises:
        ModelError: It names the file and the tensor.
    """
    missing = _find_missing(base, files)
    if missing:
        file = next(iter(files.tensors.values())).file
        place = file if len({stored.file for stored in files.tensors.values()}) == 1 else file.parent
        raise ModelError(
            f"{place}: the tensor {missing[0]} is missing ({len(missing)} such); copy the model there again, "
            "or use the config.json that belongs to it"
        )
    for name, wanted in base.state_dict().items():
        stored = files.tensors.get(name)
        if stored is not None and stored.shape != tuple(wanted.shape):
            raise ModelError(
                f"{stored.file}: tensor {name} has shape {list(stored.shape)}, config.json wants "
                f"{list(wanted.shape)}; use the config.json that belongs to it"
            )


def _find_converted(base: PreTrainedModel, files: WeightFiles) -> str | None:
    for transform in get_model_conversion_mapping(base):
        for name in files.tensors:
            renamed, pattern = transform.rename_source_key(name)
            if renamed != name or pattern is not None:
                return name
    return None


def _find_missing(base: PreTrainedModel, files: WeightFiles) -> list[str]:
    """List parameters of which no name is in the files; of tied ones one name is enough."""
    every = names_by_parameter(base).values()
    return [names[0] for names in every if not any(name in files.tensors for name in names)]
