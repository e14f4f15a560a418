"""Which held-out documents a run looks at while it is trained."""

from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_corpus import write_corpus
from training.data.reading.reader import Corpus, open_corpus
from training.errors import DataError
from training.held_out import draw_held_out, shuffle


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("data")
    write_corpus(folder, {"law": np.array([9, 9])}, tokens_per_shard=2000)
    return open_corpus(folder, "held_out")  # three documents


def draw(corpus: Corpus, first: int, size: int, sequence_length: int = 64) -> list[str]:
    drawn = draw_held_out(corpus, first=first, size=size, sequence_length=sequence_length, salt=4)
    return [document.id for document in drawn]


def test_they_are_those_after_the_ones_that_the_report_takes_and_fewer_where_there_are_no_more(
    corpus: Corpus,
) -> None:
    order = [corpus.document(int(place)).id for place in shuffle(3, 4)]
    assert draw(corpus, 0, 2) == order[:2]
    assert draw(corpus, 1, 2) == order[1:]
    assert draw(corpus, 2, 9) == order[2:]


def test_a_long_one_is_cut_to_a_row(corpus: Corpus) -> None:
    drawn = draw_held_out(corpus, first=0, size=3, sequence_length=8, salt=4)
    assert sorted(document.input_ids.size for document in drawn) == [7, 8, 8]


def test_a_corpus_that_has_none_left_is_refused_with_what_to_do(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"takes the first 3 of them; lower evaluation.held_out_documents"):
        draw(corpus, 3, 1)
