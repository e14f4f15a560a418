"""The language model as training sees it: a batch of packed documents in, a sum of nats out."""

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.errors import ModelError
from training.model.attention import build_attention_inputs
from training.model.inputs import IGNORE_INDEX, Batch
from training.model.loss import linear_cross_entropy, linear_cross_entropy_per_row


class PackedLanguageModel(nn.Module):
    """Computes the loss of packed rows: no document sees another, and logits exist at the targets alone.

    Everything that reads a parameter happens inside ``forward``, where ZeRO-3 gathers what is read.
    """

    def __init__(self, hf_model: PreTrainedModel | PeftModel) -> None:
        """Wrap a model from ``build_model``; its parameters keep their names behind ``hf_model.``.

        Raises:
            ModelError: The model has no output layer.
        """
        super().__init__()
        self.hf_model = hf_model
        base = _base_of(hf_model)
        if base.get_output_embeddings() is None:
            raise ModelError(f"{type(base).__name__} has no output layer; it is no causal language model")

    def forward(self, batch: Batch) -> Tensor:
        """Sum the cross-entropy over all targets of the batch.

        Args:
            batch: On the model's device. One without targets gives 0 that still reaches every trained
                parameter: a rank that sent no gradient would keep the others waiting.

        Returns:
            Nats, fp32, a scalar; a sum and no mean, so that ranks and passes can be weighed together.
        """
        hidden, targets = self._hidden_at_targets(batch)
        head = _base_of(self.hf_model).get_output_embeddings()
        return linear_cross_entropy(hidden, *_weight_and_bias(head), targets)

    @torch.no_grad()
    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give every target's cross-entropy, fp32 [targets], and its place in N, int64 [targets]."""
        hidden, targets = self._hidden_at_targets(batch)
        head = _base_of(self.hf_model).get_output_embeddings()
        return linear_cross_entropy_per_row(hidden, *_weight_and_bias(head), targets), _find_targets(batch)

    def _hidden_at_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Run the decoder; give what the output layer sees at the targets [T, H], and their ids [T]."""
        base = _base_of(self.hf_model)
        inputs = build_attention_inputs(
            base.config._attn_implementation, batch.document_bounds, batch.input_ids.device
        )
        output = base.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **inputs
        )
        places = _find_targets(batch)
        hidden = output.last_hidden_state[0].index_select(0, places)
        factor = _logit_factor(base)
        return hidden if factor == 1 else hidden * factor, batch.labels[0].index_select(0, places)


@torch.no_grad()
def document_losses(model: PackedLanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum the loss of each document of the batch on its own.

    Args:
        model: Best in evaluation mode: dropout is not switched off here.
        batch: On the model's device.

    Returns:
        Nats, fp64 [documents], and targets, int64 [documents], in the order of ``batch.document_bounds``;
        a padding document has 0 of both. Both on the CPU.
    """
    losses, places = model.losses(batch)
    starts = torch.tensor(batch.document_bounds[:-1], dtype=torch.int64)
    owner = torch.searchsorted(starts, places.cpu(), right=True) - 1
    sums = torch.zeros(len(starts), dtype=torch.float64).index_add_(0, owner, losses.cpu().double())
    return sums, torch.bincount(owner, minlength=len(starts))


def _find_targets(batch: Batch) -> Tensor:
    # The count is known, so that the GPU need not be waited for, as nonzero() would.
    return torch.nonzero_static(batch.labels[0] != IGNORE_INDEX, size=batch.targets)[:, 0]


def _base_of(hf_model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    base: PreTrainedModel = hf_model.get_base_model() if isinstance(hf_model, PeftModel) else hf_model
    return base


def _weight_and_bias(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    bias: Tensor | None = getattr(head, "bias", None)
    weight: Tensor = head.weight  # type: ignore[assignment]
    return weight, bias


def _logit_factor(base: PreTrainedModel) -> float:
    """Give what the model multiplies its logits with: Granite divides, Cohere multiplies."""
    config = base.config
    return float(getattr(config, "logit_scale", None) or 1) / float(
        getattr(config, "logits_scaling", None) or 1
    )
