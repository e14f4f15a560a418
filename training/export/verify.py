"""Is the exported folder the trained model? Asked of the folder, through plain transformers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from training.config.schema import RunConfig
from training.data.reading.reader import open_corpus
from training.errors import DataError, ModelError, StorageError

_DOCUMENTS = 8
_TOKENS = 128

TOLERANCE = 0.02
"""Largest root-mean-square difference of the logits, as a fraction of their root mean square.

A weight rounded to bf16 is off by up to 2^-9 = 0.2 % (8 bits of significand), activations computed in bf16 as
much again in every layer; errors of independent sign grow with the square root of the layers, 0.2 % x
sqrt(2 x 40) = 1.8 % for 40 of them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How near the exported model's logits are to the trained model's, over the tokens compared."""

    tokens: int
    largest_difference: float
    """Largest absolute difference of a logit."""

    relative_difference: float
    """Root mean square of the differences over that of the logits."""

    argmax_agreement: float
    """Fraction of the tokens after which both models would say the same token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was asked of an exported folder."""

    agreement: Agreement
    """The folder against the trained model."""

    into_original: Agreement | None
    """Of a merge into a 4-bit base: how near the trained model one into the original weights would be."""


def read_probe(config: RunConfig, vocabulary: int) -> list[Tensor]:
    """Take the beginnings of some held-out documents; fixed token ids where the corpus is not at hand.

    Returns:
        int64 [1, L] each, L <= 128.
    """
    try:
        corpus = open_corpus(config.data.path, "held_out", config.loader)
        count = min(_DOCUMENTS, len(corpus))
        places = [index * len(corpus) // count for index in range(count)]
        documents = [corpus.document(place).input_ids[:_TOKENS].tolist() for place in places]
    except (DataError, StorageError):
        documents = []
    if not documents:
        # Knuth's multiplicative hash spreads the ids over the vocabulary.
        documents = [[index * 2654435761 % vocabulary for index in range(1, _TOKENS + 1)]]
    return [torch.tensor([ids], dtype=torch.int64) for ids in documents]


@torch.no_grad()
def compute_logits(model: nn.Module, probe: list[Tensor], device: torch.device) -> list[Tensor]:
    """Run each probe alone; logits fp32 [L, V] on the CPU."""
    return [model(input_ids=ids.to(device), use_cache=False).logits[0].float().cpu() for ids in probe]


def compare_logits(trained: list[Tensor], exported: list[Tensor]) -> Agreement:
    """Compare two models' logits [L, V], probe by probe."""
    one, other = torch.cat(trained).double(), torch.cat(exported).double()
    difference = one - other
    return Agreement(
        tokens=one.shape[0],
        largest_difference=float(difference.abs().max()),
        relative_difference=float(difference.square().mean().sqrt() / one.square().mean().sqrt()),
        argmax_agreement=float((one.argmax(-1) == other.argmax(-1)).double().mean()),
    )


def check_agreement(folder: Path, agreement: Agreement) -> None:
    """Refuse an export that computes something else than what was trained.

    Raises:
        ModelError: The logits differ by more than bf16 rounding explains.
    """
    # not <=: NaN is no agreement either.
    if not agreement.relative_difference <= TOLERANCE:
        raise ModelError(
            f"{folder}: the exported model's logits differ from the trained model's by "
            f"{agreement.relative_difference:.2%} of their size, wanted at most {TOLERANCE:.0%}; nothing was "
            "exported; please report this"
        )


def check_shapes(folder: Path, found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Compare the tensors written with those of the base.

    Raises:
        ModelError: One is missing, left over, or of another shape.
    """
    for name in sorted(set(found) ^ set(wanted)):
        state = "is missing" if name in wanted else "is not one of the base model's"
        raise ModelError(f"{folder}: tensor {name} {state}; nothing was exported; please report this")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ModelError(
                f"{folder}: tensor {name} has shape {list(found[name])}, the base's has {list(shape)}; "
                "nothing was exported; please report this"
            )
