"""How far a token looks back, from the lengths alone."""

import numpy as np
import pytest

from training.data.order.packing import LongDocuments
from training.worker import attended
from training.worker.attended import mean_attended_tokens

LENGTHS = np.array([3, -50, 8, 21, 8], dtype=np.int32)  # the second was removed


@pytest.mark.parametrize(
    ("long_documents", "pieces"),
    [
        ("split", [3, 8, 8, 8, 5, 8]),
        ("truncate", [3, 8, 8, 8]),
        ("drop", [3, 8, 8]),
    ],
)
def test_a_token_attends_to_the_piece_that_it_is_packed_in(
    long_documents: LongDocuments, pieces: list[int]
) -> None:
    wanted = sum(length**2 for length in pieces) / sum(pieces)
    assert mean_attended_tokens(LENGTHS, 8, long_documents) == pytest.approx(wanted)


def test_nothing_to_read_attends_to_nothing() -> None:
    assert mean_attended_tokens(np.array([], dtype=np.int32), 8, "split") == 0
    assert mean_attended_tokens(np.array([-4], dtype=np.int32), 8, "split") == 0


def test_of_a_large_corpus_a_part_is_read_from_all_over_it() -> None:
    read: list[int] = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key: object) -> object:
            found = np.asarray(super().__getitem__(key))  # type: ignore[index]
            read.append(found.size)
            return found

    documents = 4 * attended.MOST_BLOCKS * attended.BLOCK + 5
    # Half the documents, the first ones, are short.
    lengths = np.where(np.arange(documents) < documents // 2, 10, 30).astype(np.int32)
    found = mean_attended_tokens(lengths.view(Counted), 100, "split")
    assert sum(read) <= attended.MOST_BLOCKS * attended.BLOCK
    assert found == pytest.approx((10**2 + 30**2) / 40, rel=0.05)
