"""How many tokens a token of the corpus attends to: for the count of FLOPs behind ``mfu``."""

import numpy as np
import numpy.typing as npt

from training.data.order.packing import LongDocuments

BLOCK = 16384
MOST_BLOCKS = 64
"""Of a larger corpus, so many blocks at even distances are looked at: the lengths lie on a disk."""


def mean_attended_tokens(
    lengths: npt.NDArray[np.int32], sequence_length: int, long_documents: LongDocuments
) -> float:
    """Give the mean, over the tokens, of the length of the piece that a token is packed in.

    Args:
        lengths: Tokens of each document, int32 [D], best memory-mapped; negative ones are removed documents.
        sequence_length: Tokens of a row.
        long_documents: What becomes of documents longer than a row.

    Returns:
        Tokens; 0 where there are no documents.
    """
    starts = range(0, len(lengths), BLOCK)
    stride = -(-len(starts) // MOST_BLOCKS)
    tokens = attended = 0
    for start in starts[:: stride or 1]:
        pieces, rest = _cut(lengths[start : start + BLOCK], sequence_length, long_documents)
        tokens += pieces * sequence_length + int(rest.sum())
        attended += pieces * sequence_length**2 + int((rest * rest).sum())
    return attended / tokens if tokens else 0.0


def _cut(
    lengths: npt.NDArray[np.int32], sequence_length: int, long_documents: LongDocuments
) -> tuple[int, npt.NDArray[np.int64]]:
    """Give the number of pieces as long as a row, and the lengths of the shorter ones."""
    whole = lengths[lengths > 0].astype(np.int64)
    if long_documents == "split":
        return int((whole // sequence_length).sum()), whole % sequence_length
    if long_documents == "truncate":
        whole = np.minimum(whole, sequence_length)
    return 0, whole[whole <= sequence_length]
