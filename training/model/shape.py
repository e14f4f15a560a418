"""The few numbers of a model from which DeepSpeed's sizes are chosen."""

from torch import nn

from training.deepspeed_sizes import ModelShape
from training.model.kind import AnyModel, base_of


def measure_shape(model: AnyModel) -> ModelShape:
    """Count a model's elements, also where ZeRO-3 has cut them; of 4-bit weights those that hold them."""
    adapters = [_elements(p) for name, p in model.named_parameters() if "lora_" in name]
    layers = [list(layer.parameters()) for layer in find_layers(model)]
    outside = len(list(model.parameters())) - sum(map(len, layers))
    return ModelShape(
        parameters=_count(model),
        trained=sum(_elements(p) for p in model.parameters() if p.requires_grad),
        layer=max(map(_count, find_layers(model))),
        hidden=int(base_of(model).get_input_embeddings().embedding_dim),
        adapter=max(adapters, default=0),
        tensor=max(map(_elements, model.parameters())),
        tensors=max(map(len, layers)) + outside,
    )


def find_layers(model: AnyModel) -> list[nn.Module]:
    """Find the repeated layers; a model without any is one layer."""
    base = base_of(model)
    lists = [module for module in base.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return list(lists[0]) if lists else [base]


def _count(module: nn.Module) -> int:
    return sum(map(_elements, module.parameters()))


def _elements(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
