"""What the rest of the code calls a model: one with an adapter, or one without.

peft takes seconds to import, bitsandbytes with it: only who attaches an adapter imports it.
"""

from typing import TYPE_CHECKING, TypeAlias

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

AnyModel: TypeAlias = "PreTrainedModel | PeftModel"


def base_of(model: AnyModel) -> PreTrainedModel:
    """Give the transformers model itself, adapted or not."""
    return model if isinstance(model, PreTrainedModel) else model.get_base_model()
