"""Train documents that are also held out: found as an exhaustive comparison finds them, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.corpus_case import configure, prepare
from tests.unit.test_data_prepare import write_texts
from training.data.corpus import shingles
from training.data.corpus.duplicates import MISSED, choose_bands, find_duplicates
from training.data.corpus.manifest import ShardRecord, Split
from training.data.corpus.shards import write_shard
from training.data.corpus.shingles import ABSENT, GRAM, IGNORED, PRESENT, GramTable, hash_grams
from training.data.documents import Document, Text
from training.data.encoding.encode import Encoded
from training.data.reading.reader import open_corpus
from training.errors import DataError

Tokens = list[int]
Sides = tuple[list[Tokens], list[Tokens], dict[Split, list[ShardRecord]]]


def write(root: Path, documents: Sequence[Tokens], *, per_shard: int = 40) -> list[ShardRecord]:
    rows = [
        (
            Document(id=str(number), family=str(number), source="s", task="t", content=Text("")),
            Encoded(np.array(ids, np.int32), np.ones(len(ids), np.bool_)),
        )
        for number, ids in enumerate(documents)
    ]
    return [write_shard(root, rows[at : at + per_shard], 2) for at in range(0, len(rows), per_shard)]


def grams_of(ids: Tokens) -> set[tuple[int, ...]]:
    return {tuple(ids[at : at + GRAM]) for at in range(len(ids) - GRAM + 1)}


def find_by_comparing_all(train: list[Tokens], held_out: list[Tokens], threshold: float) -> set[int]:
    others = [grams_of(ids) for ids in held_out]
    return {
        number
        for number, ids in enumerate(train)
        for own in [grams_of(ids)]
        if ids not in held_out
        if any(own and len(own & other) >= threshold * len(own | other) for other in others)
    }


def draw(generator: np.random.Generator, length: int) -> Tokens:
    return [int(token) for token in generator.integers(1, 5000, length)]


def edit(generator: np.random.Generator, ids: Tokens, edits: int) -> Tokens:
    changed = list(ids)
    for _ in range(edits):
        changed[int(generator.integers(len(changed)))] = int(generator.integers(5000, 6000))
    return changed


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    """Held-out documents of 5 to 400 tokens; train has edited copies of some, and strangers."""
    generator = np.random.default_rng(7)
    held_out = [draw(generator, int(length)) for length in generator.integers(5, 400, 80)]
    edited = [edit(generator, ids, number % 12) for number, ids in enumerate(held_out[:60])]
    # A line of dashes counts once in a set, however long it is.
    dashed = [[*ids, *[9] * 300] for ids in held_out[60:70]]
    train = [*edited, *(draw(generator, 100) for _ in range(100)), *dashed]
    return train, held_out, {"train": write(tmp_path, train), "held_out": write(tmp_path, held_out)}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_near_copies_are_those_of_an_exhaustive_comparison(
    sides: Sides, tmp_path: Path, threshold: float
) -> None:
    train, held_out, shards = sides

    found = find_duplicates(tmp_path, shards, threshold)

    exact = {number for number, ids in enumerate(train) if ids in held_out}
    near = find_by_comparing_all(train, held_out, threshold)
    assert set(found.exact) == exact
    assert set(found.near) == near
    assert exact
    assert near or threshold == 1.0


def test_without_a_threshold_only_exact_copies_are_found(sides: Sides, tmp_path: Path) -> None:
    train, held_out, shards = sides

    found = find_duplicates(tmp_path, shards, None)

    assert set(found.exact) == {number for number, ids in enumerate(train) if ids in held_out}
    assert not len(found.near)


def test_near_copies_are_found_where_only_a_sample_of_the_grams_is_known(
    sides: Sides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, held_out, shards = sides
    monkeypatch.setattr(shingles, "_LEAST_BITS", 10)
    monkeypatch.setattr(shingles, "_MOST_BITS", 16)
    assert GramTable(sum(shard.tokens for shard in shards["held_out"])).sampled_bits == 2

    found = find_duplicates(tmp_path, shards, 0.8)

    near = find_by_comparing_all(train, held_out, 0.8)
    # A slot in eight is taken by chance: some grams are missed, none is invented.
    assert set(found.near) <= near
    assert len(found.near) >= 0.9 * len(near)


def test_what_every_chat_says_does_not_make_chats_alike(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    template = draw(generator, 60)
    chats = [[*template, *draw(generator, 8), *template[:20]] for _ in range(120)]
    shards: dict[Split, list[ShardRecord]] = {
        "train": write(tmp_path, chats[:100]),
        "held_out": write(tmp_path, chats[100:]),
    }
    assert find_by_comparing_all(chats[:100], chats[100:], 0.5) == set(range(100))

    found = find_duplicates(tmp_path, shards, 0.5)

    assert not len(found.near)


def test_a_chat_with_the_same_words_is_found_beside_its_template(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    template = draw(generator, 60)
    chats = [[*template, *draw(generator, 40)] for _ in range(120)]
    chats[5] = [*chats[119][:-1], 7]
    shards: dict[Split, list[ShardRecord]] = {
        "train": write(tmp_path, chats[:100]),
        "held_out": write(tmp_path, chats[100:]),
    }

    found = find_duplicates(tmp_path, shards, 0.8)

    assert found.near.tolist() == [5]


def test_copies_within_train_are_told_from_the_second_on(tmp_path: Path) -> None:
    shards: dict[Split, list[ShardRecord]] = {
        "train": write(tmp_path, [[1, 2], [3, 4], [1, 2], [5, 6], [1, 2], [5, 6]], per_shard=2),
        "held_out": write(tmp_path, [[5, 6], [8, 9]]),
    }

    found = find_duplicates(tmp_path, shards, 0.8)

    assert found.exact.tolist() == [3, 5]
    assert found.repeated.tolist() == [2, 4]


def test_removed_documents_are_negative_in_the_index_and_in_no_count(tmp_path: Path) -> None:
    words = "the quick brown fox jumps over a lazy dog while seven wizards brew strange potions at night"
    texts = [f"{words}, number {number % 25} of its kind" for number in range(200)]
    write_texts(tmp_path / "in" / "a.jsonl", texts)
    source = prepare(configure(tmp_path)).manifest.sources["notes"]

    corpus = open_corpus(tmp_path / "corpus", "train")

    removed = np.flatnonzero(corpus.lengths < 0)
    held_out = open_corpus(tmp_path / "corpus", "held_out")
    others = {bytes(held_out.document(index).input_ids) for index in range(len(held_out))}
    copies = [index for index in range(len(corpus)) if bytes(corpus.document(index).input_ids) in others]
    assert removed.tolist() == copies
    assert source.removed_exact == len(copies) > 0
    assert source.documents == 200
    counts = corpus.record.counts
    assert counts.documents == len(corpus) - len(copies)
    assert counts.tokens == corpus.lengths[corpus.lengths > 0].sum()
    assert corpus.record.by_source == {"notes": counts}
    assert corpus.record.by_task == {"text": counts}
    assert counts.targets == counts.tokens - counts.documents


def test_a_corpus_of_one_document_many_times_is_refused(tmp_path: Path) -> None:
    write_texts(tmp_path / "in" / "a.jsonl", ["always the same"] * 50)

    with pytest.raises(DataError, match="train documents are held out as well"):
        prepare(configure(tmp_path))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7, 0.8, 0.95, 1.0])
def test_bands_miss_a_pair_at_the_threshold_no_more_often_than_stated(threshold: float) -> None:
    bands, rows = choose_bands(threshold)

    assert bands * rows <= 128
    assert (1 - threshold**rows) ** bands <= MISSED


def test_a_table_finds_what_was_added_and_ignores_what_it_was_told() -> None:
    generator = np.random.default_rng(1)
    known, strange, common = (generator.integers(0, 1 << 64, 3000, dtype=np.uint64) for _ in range(3))
    table = GramTable(len(known))
    table.add(known)
    table.ignore(common)

    assert np.isin(table.find(known), (PRESENT, IGNORED)).all()
    assert (table.find(common) == IGNORED).all()
    assert (table.find(strange) == ABSENT).mean() > 0.85


def test_grams_are_hashed_by_their_tokens_and_their_order() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 9, 5, 4, 3, 2, 1], np.uint16)

    hashes = hash_grams(ids)

    assert len(hashes) == len(ids) - GRAM + 1
    assert hashes[0] == hashes[6] == hash_grams(ids.astype(np.uint32))[0]
    assert len(set(hashes.tolist())) == len(hashes) - 1
    assert not len(hash_grams(ids[:4]))
