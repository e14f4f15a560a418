"""Words of the domain as tokens of their own: in the tokenizer, and as rows of the embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from training.errors import ModelError
from training.model.quiet import quiet_upstream

_MULTIPLE = 64
"""Rows are rounded up to this many: matrix products of GPUs want it. No token has a row beyond the last."""


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Make each of ``tokens`` one token, wherever it stands in a text.

    They are ordinary words and not special: a user's text may hold them, and a decoded text shows them.

    Raises:
        ModelError: One is in the vocabulary already, or is empty.
    """
    known = tokenizer.get_vocab()
    for number, token in enumerate(tokens):
        if not token.strip() or token in known or token in tokens[:number]:
            raise ModelError(
                f"model.extra_tokens.{number}={token!r} is empty or in the vocabulary already; take it out"
            )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in tokens])


def fit_embeddings(base: PreTrainedModel, tokens: int) -> bool:
    """Grow the embeddings to ``tokens`` rows where they have fewer; give whether they grew.

    A new row is the mean of all others: it begins as the average word, and on every rank as the same
    (transformers' own choice draws random numbers around that mean).
    """
    rows = resize_embeddings(base, tokens)
    if rows:
        for module in {base.get_input_embeddings(), base.get_output_embeddings()}:
            for parameter in module.parameters():
                parameter.data.copy_(append_mean_rows(parameter.data[:rows], len(parameter)))
    return rows > 0


def resize_embeddings(base: PreTrainedModel, tokens: int) -> int:
    """Make room for ``tokens`` rows, not set yet; give how many there were, 0 where they are enough."""
    rows: int = base.get_input_embeddings().num_embeddings
    if tokens <= rows:
        return 0
    with quiet_upstream():
        base.resize_token_embeddings(tokens, pad_to_multiple_of=_MULTIPLE, mean_resizing=False)
    return rows


def append_mean_rows(stored: Tensor, rows: int) -> Tensor:
    """Append the mean of a table's rows to it (of a bias: of its numbers) until it has ``rows``."""
    mean = stored.float().mean(0).to(stored.dtype)
    return torch.cat([stored, mean.expand(rows - len(stored), *stored.shape[1:])])
