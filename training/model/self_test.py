"""Do packed documents see each other? Asked of the model and the attention kernel in use, before training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.errors import ModelError
from training.model.attention import name_attention
from training.model.inputs import IGNORE_INDEX, Batch, lay_documents
from training.model.kind import AnyModel, base_of

CUTS = (40, 18, 31)
"""Tokens kept of each document. The per-document kernel lays first and third into one call, padded."""

LIMITS = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}
"""How far the logits of a token may be from those of the document alone, as a fraction of the logits' size.

Measured on SmolLM2 135M, 30 layers, on a 16- and on a 4-bit base: an equal computation that rounds otherwise
(transformers' eager attention; all positions moved on, which rotary attention does not see) changes the worst
token by 7e-6 in fp32 and 0.07 in bf16, which grows with the root of the layers; one single token of another
document that is seen, the smallest leak, by 0.97.
"""

MOVED_LIMITS = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 0.01, torch.float16: 2e-3}
"""The same for a later document's logits when the tokens of the first are others.

Shapes and order of all sums stay, so nothing is rounded otherwise: measured 0 without a leak, 0.45 and more
with one of a single token. The room is for models that sort the tokens of a row to experts.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How far packed documents are from each document alone, as fractions of the logits' size."""

    attention: str
    """The kernel, in the words of ``model.attention``."""

    difference: float
    """Largest difference of a token's logits, packed against alone."""

    moved: float
    """Largest change of a later document's logits when the first document's tokens are others."""

    limit: float
    moved_limit: float
    finite: bool
    """Whether the model gives numbers for a document alone; where not, the attention is not to blame."""

    @property
    def holds(self) -> bool:
        """Whether rounding explains both; NaN is no agreement."""
        return self.difference <= self.limit and self.moved <= self.moved_limit


class Asked(Protocol):
    """Who runs the model."""

    def logits(self, batch: Batch, *, alone: bool = False) -> Tensor:
        """Give the logits after every token, [N, V]; alone: one document's, by transformers' attention."""


def measure_isolation(
    model: AnyModel, documents: Sequence[npt.NDArray[np.integer]], asked: Asked
) -> Isolation:
    """Run a short packed row, and each of its documents alone, and compare the logits.

    Alone, a document goes through transformers' own sdpa attention, so that a wrong kernel is not compared
    with itself. Nothing is left behind: no gradient, no draw of random numbers, the mode of the model as it
    was. Collective where running the model is: under ZeRO-3.

    Args:
        model: From ``build_model`` or ``build_partitioned_model``.
        documents: Token ids [L] of one document or more, best of the corpus; three are cut to ``CUTS``.
        asked: Runs it: the engine, which gathers what ZeRO-3 has cut, or the model itself where it is whole.

    Raises:
        ModelError: The kernel does not run.
    """
    three = [documents[place % len(documents)] for place in range(len(CUTS))]
    ids = [document[:size].astype(np.int64) for document, size in zip(three, CUTS, strict=True)]
    device = next(model.parameters()).device
    attention = name_attention(base_of(model).config._attn_implementation)
    with torch.no_grad(), _evaluating(model):
        found = _run(asked, lay_row(ids).to(device), attention)
        others = [(ids[0] + 1) % _vocabulary(model), *ids[1:]]
        moved = _run(asked, lay_row(others).to(device), attention)
        alone = [asked.logits(lay_row([document]).to(device), alone=True) for document in ids]
    wanted, first = torch.cat(alone), len(ids[0])
    return Isolation(
        attention=attention,
        difference=find_difference(found, wanted),
        moved=find_difference(moved[first:], found[first:]),
        limit=LIMITS[found.dtype],
        moved_limit=MOVED_LIMITS[found.dtype],
        finite=bool(wanted.isfinite().all()),
    )


def refuse_leak(measured: Sequence[Isolation]) -> None:
    """Refuse to train where documents see each other on any rank, on all ranks alike.

    Args:
        measured: By every rank: they may have different devices and kernels.

    Raises:
        ModelError: The logits differ by more than rounding explains, or are no numbers.
    """
    for isolation in measured:
        if not isolation.holds:
            raise ModelError(_tell(isolation))


def find_difference(found: Tensor, wanted: Tensor) -> float:
    """Compare logits [N, V]: the largest root mean square of a token's difference, over that of all logits.

    Each token's mean is taken out first: a softmax does not see it.
    """
    one, other = (logits.float() - logits.float().mean(-1, keepdim=True) for logits in (found, wanted))
    size = other.square().mean().sqrt()
    return float((one - other).square().mean(-1).sqrt().max() / size)


def lay_row(documents: Sequence[npt.NDArray[np.int64]]) -> Batch:
    """Lay documents side by side as training does, without labels."""
    return lay_documents(
        documents, [np.full(document.size, IGNORE_INDEX, dtype=np.int64) for document in documents]
    )


def _vocabulary(model: AnyModel) -> int:
    return int(base_of(model).get_input_embeddings().num_embeddings)


def _run(asked: Asked, row: Batch, attention: str) -> Tensor:
    try:
        return asked.logits(row)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"the attention {attention} does not run with this model ({reason}); {_advise(attention)}"
        ) from error


@contextmanager
def _evaluating(model: AnyModel) -> Iterator[None]:
    """Switch dropout off, which would make any two passes differ and draw random numbers."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _tell(isolation: Isolation) -> str:
    if not isolation.finite:
        return (
            "the model's logits are not finite (NaN or infinity) before the first step: its weights are "
            "damaged, or were trained in another precision; copy or download the model again, or try "
            "precision=fp32"
        )
    return (
        f"the attention {isolation.attention} lets packed documents see each other: a document's logits "
        f"differ from those of the document alone by {isolation.difference:.2%} of their size (rounding "
        f"explains {isolation.limit:.2%}), and by {isolation.moved:.2%} when another document changes; "
        f"{_advise(isolation.attention)}"
    )


def _advise(attention: str) -> str:
    if attention != "documents":
        return "use model.attention=documents"
    return "use another model, and please report this"
