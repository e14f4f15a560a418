"""The language model as training sees it: a batch of packed documents in, a sum of nats out."""

from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.errors import ModelError
from training.model.attention import build_attention_inputs, generating
from training.model.inputs import Batch, find_owners, find_target_sources, find_targets
from training.model.kind import AnyModel, base_of
from training.model.loss import PLAIN, Groups, Terms, linear_cross_entropy, linear_cross_entropy_per_row
from training.model.sequence_parallel import Team


class PackedLanguageModel(nn.Module):
    """Computes the loss of packed rows: no document sees another, and logits exist at the targets alone.

    Everything that reads a parameter happens inside ``forward``, where ZeRO-3 gathers what is read.
    """

    def __init__(self, hf_model: AnyModel, *, sources: int = 1, terms: Terms = PLAIN) -> None:
        """Wrap a model from ``build_model``; its parameters keep their names behind ``hf_model.``.

        Args:
            hf_model: The model.
            sources: How many sources the corpus has: their losses are told apart.
            terms: What is minimised beside the cross-entropy.

        Raises:
            ModelError: The model has no output layer.
        """
        super().__init__()
        self.hf_model = hf_model
        self._sources = sources
        self._terms = terms
        base = base_of(hf_model)
        if base.get_output_embeddings() is None:
            raise ModelError(f"{type(base).__name__} has no output layer; it is no causal language model")

    def forward(
        self,
        batch: Batch,
        *,
        by_document: bool = False,
        team: Team | None = None,
        ask: Literal["loss", "logits", "alone"] = "loss",
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Sum the cross-entropy over all targets of the batch. Collective within ``team``.

        Args:
            batch: On the model's device. One without targets gives 0 that still reaches every trained
                parameter: a rank that sent no gradient would keep the others waiting.
            by_document: Tell the nats of each document apart, and not those of each source.
            team: The ranks that have the other stretches of the batch, where it is one.
            ask: ``logits`` and ``alone`` give the logits after every token instead, as ``logits`` does.

        Returns:
            Nats and the further terms, fp32, a scalar: sums and no means, so that ranks and passes can be
            weighed together. And the nats alone of each source, fp64 [sources], or document [documents],
            without gradient.

        Raises:
            ValueError: A document is of a source that the model was not told of.
        """
        if ask != "loss":
            return self.logits(batch, alone=ask == "alone")
        if max(batch.source_ids) >= self._sources:
            raise ValueError(f"a document of source {max(batch.source_ids)} among {self._sources} sources")
        places = find_targets(batch)
        hidden, targets = self._hidden(batch, places, team), batch.labels[0].index_select(0, places)
        groups = None
        if by_document:
            groups = Groups(find_owners(batch, places), len(batch.source_ids))
        elif self._sources > 1:
            groups = Groups(find_target_sources(batch, places), self._sources)
        return linear_cross_entropy(hidden, *self._head(), targets, groups, self._terms)

    @torch.no_grad()
    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Give every target's cross-entropy, fp32 [targets], and its place in N, int64 [targets]."""
        places = find_targets(batch)
        hidden, targets = self._hidden(batch, places), batch.labels[0].index_select(0, places)
        return linear_cross_entropy_per_row(hidden, *self._head(), targets), places

    @torch.no_grad()
    def logits(self, batch: Batch, *, alone: bool = False) -> Tensor:
        """Give the logits after every token, [N, V], in the model's dtype; for short rows.

        Args:
            batch: On the model's device.
            alone: It is one document, and goes through transformers' own forward pass and sdpa attention.
        """
        if alone:
            with generating(self.hf_model):
                plain: Tensor = self.hf_model(input_ids=batch.input_ids, use_cache=False).logits
            return plain[0]
        places = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        logits: Tensor = torch.nn.functional.linear(self._hidden(batch, places), *self._head())
        return logits

    def _hidden(self, batch: Batch, places: Tensor, team: Team | None = None) -> Tensor:
        """Run the decoder; give what the output layer sees at some places, [P, H]."""
        base = base_of(self.hf_model)
        # Once for all layers: they are handed the same objects, also where they are computed again.
        inputs = build_attention_inputs(
            base.config._attn_implementation, batch.document_bounds, batch.input_ids.device, team
        )
        output = base.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **inputs
        )
        hidden: Tensor = output.last_hidden_state[0].index_select(0, places)
        factor = _logit_factor(base)
        return hidden if factor == 1 else hidden * factor

    def _head(self) -> tuple[Tensor, Tensor | None]:
        return _weight_and_bias(base_of(self.hf_model).get_output_embeddings())


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
    documents = len(batch.document_bounds) - 1
    owner = find_owners(batch, places.cpu())
    sums = torch.zeros(documents, dtype=torch.float64).index_add_(0, owner, losses.cpu().double())
    return sums, torch.bincount(owner, minlength=documents)


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
