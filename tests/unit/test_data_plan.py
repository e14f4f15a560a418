"""The packing plan: every token of every shard in one row, kept on disk, made once by whoever is first."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from training.data.corpus.manifest import Counts, FileRecord, ShardRecord, SplitRecord
from training.data.order.packing import LongDocuments, Packing, pack_documents
from training.data.order.plan import BEGINS, COUNTS, open_plan
from training.errors import DataError, StorageError


@dataclass(frozen=True)
class NamedDocument:
    """A document of which nothing but the name is there."""

    id: str


@dataclass
class LengthsOnly:
    """A corpus of which nothing but the lengths is there."""

    record: SplitRecord
    lengths: npt.NDArray[np.int32]
    plans_folder: Path
    asked: list[int] = field(default_factory=list)

    def document(self, index: int) -> NamedDocument:
        self.asked.append(index)
        return NamedDocument(f"notes.jsonl:{index}")


def build_corpus(folder: Path, *shards: tuple[str, list[int]]) -> LengthsOnly:
    lengths = np.asarray([length for _, part in shards for length in part], dtype=np.int32)
    counts = Counts(documents=len(lengths), tokens=1, targets=0)
    record = SplitRecord(
        counts=counts,
        by_source={},
        by_task={},
        length_percentiles={},
        lengths=FileRecord(file="index/x.npy", checksum=f"{lengths.sum()}", bytes=1),
        shards=[
            ShardRecord(
                file=f"shards/{number}.arrow",
                checksum=f"{number}",
                bytes=1,
                source=source,
                documents=len(part),
                tokens=max(1, sum(map(abs, part))),
                targets=0,
            )
            for number, (source, part) in enumerate(shards)
        ],
    )
    return LengthsOnly(record, lengths, folder / "plans")


def draw(count: int, seed: int) -> list[int]:
    lengths: list[int] = np.random.default_rng(seed).integers(1, 90, count).tolist()
    return lengths


@pytest.fixture
def corpus(tmp_path: Path) -> LengthsOnly:
    removed = [-length if number % 7 == 0 else length for number, length in enumerate(draw(200, 1))]
    return build_corpus(tmp_path, ("law", draw(150, 0)), ("medicine", removed), ("law", draw(90, 2)))


def test_the_rows_of_a_shard_hold_every_token_of_its_documents_once(corpus: LengthsOnly) -> None:
    plan = open_plan(corpus, 64, "split")

    first = 0
    for number, shard in enumerate(corpus.record.shards):
        lengths = corpus.lengths[first : first + shard.documents]
        owners = np.repeat(np.arange(len(lengths)), np.abs(lengths))
        seen = np.zeros(len(owners), dtype=int)
        for row in range(int(plan.shard_rows[number])):
            spans = plan.spans(number, row)
            assert sum(end - begin for begin, end in spans) <= 64
            for begin, end in spans:
                assert len(set(owners[begin:end])) == 1, "a piece is of one document"
                seen[begin:end] += 1
        assert (seen == (lengths > 0)[owners]).all(), "removed documents are in no row, others in one"
        first += shard.documents


def test_a_row_is_given_as_numbers_and_as_arrays_alike(corpus: LengthsOnly) -> None:
    plan = open_plan(corpus, 64, "split")

    for shard, row in ((0, 0), (1, 5), (2, int(plan.shard_rows[2]) - 1)):
        begins, ends = plan.pieces(shard, row)
        assert list(zip(begins.tolist(), ends.tolist(), strict=True)) == plan.spans(shard, row)


def test_documents_are_counted_by_source(corpus: LengthsOnly) -> None:
    plan = open_plan(corpus, 64, "truncate")

    assert {name: counts.documents for name, counts in plan.by_source.items()} == {
        "law": 240,
        "medicine": int((corpus.lengths[150:350] > 0).sum()),
    }
    for name in ("documents", "rows", "tokens", "truncated", "tokens_left_out"):
        assert getattr(plan.counts, name) == sum(getattr(one, name) for one in plan.by_source.values())
    assert plan.counts.rows == plan.shard_rows.sum() == plan.by_source["law"].rows + plan.shard_rows[1]


def test_a_plan_that_is_there_is_not_made_again(corpus: LengthsOnly, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_plan(corpus, 64, "split")
    monkeypatch.setattr("training.data.order.plan.pack_documents", None)  # would fail when called

    again = open_plan(corpus, 64, "split")

    assert np.array_equal(again.begins, first.begins)
    assert again.counts == first.counts


def test_another_length_policy_or_corpus_is_another_plan(tmp_path: Path, corpus: LengthsOnly) -> None:
    plans: list[tuple[LengthsOnly, int, LongDocuments]] = [
        (corpus, 64, "split"),
        (corpus, 65, "split"),
        (corpus, 64, "drop"),
        (build_corpus(tmp_path, ("law", draw(150, 0)), ("law", draw(90, 2))), 64, "split"),
        # The same lengths over other shards.
        (build_corpus(tmp_path, ("law", draw(150, 0) + draw(90, 2))), 64, "split"),
    ]
    for case in plans:
        open_plan(*case)

    assert len([path for path in corpus.plans_folder.iterdir() if path.is_dir()]) == len(plans)


def test_nothing_is_left_beside_the_plans(corpus: LengthsOnly) -> None:
    open_plan(corpus, 64, "split")

    assert not list(corpus.plans_folder.glob(".*.partial"))


def test_a_plan_is_mapped_not_read(tmp_path: Path) -> None:
    plan = open_plan(build_corpus(tmp_path, ("law", draw(1000, 0))), 64, "split")

    for column in (plan.begins, plan.ends, plan.row_bounds):
        assert isinstance(column.base, np.memmap)


def test_a_long_document_is_refused_by_its_name_through_all_shards(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path, ("law", [5, 6]), ("law", [7, 99]))

    with pytest.raises(DataError, match=r"document notes\.jsonl:3 has 99 tokens, more than .*=64"):
        open_plan(corpus, 64, "refuse")
    assert corpus.asked == [3]
    assert not [path for path in corpus.plans_folder.iterdir() if path.is_dir()]


def test_a_corpus_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    corpus = build_corpus(tmp_path, ("law", [9, 10, -4]))

    with pytest.raises(DataError, match=r"all 2 documents are longer than batch\.sequence_length=8"):
        open_plan(corpus, 8, "drop")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:-8]), id="cut short"),
        pytest.param(lambda file: file.unlink(), id="missing"),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
    ],
)
@pytest.mark.parametrize("name", [BEGINS, COUNTS])
def test_a_damaged_plan_is_made_anew(corpus: LengthsOnly, name: str, damage: Callable[[Path], None]) -> None:
    open_plan(corpus, 64, "split")
    path = next(corpus.plans_folder.glob(f"64_*/{name}"))
    whole = path.read_bytes()
    damage(path)
    assert not path.exists() or path.read_bytes() != whole

    plan = open_plan(corpus, 64, "split")

    assert path.read_bytes() == whole
    assert plan.counts.rows == open_plan(corpus, 64, "split").counts.rows > 0


def test_a_folder_that_cannot_be_written_is_named(corpus: LengthsOnly) -> None:
    corpus.plans_folder.write_text("a file in the way")

    with pytest.raises(StorageError, match="the packing plan cannot be written"):
        open_plan(corpus, 64, "split")


def test_a_file_system_without_locks_is_tolerated(
    corpus: LengthsOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    assert open_plan(corpus, 64, "split").counts.rows > 0


def test_of_many_ranks_that_ask_at_once_one_packs(
    corpus: LengthsOnly, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[int] = []

    def pack_and_count(*arguments: Any) -> Packing:
        packed.append(len(arguments[0]))
        return pack_documents(*arguments)

    monkeypatch.setattr("training.data.order.plan.pack_documents", pack_and_count)
    together = threading.Barrier(4)

    def ask(_: int) -> bytes:
        together.wait()
        plan = open_plan(corpus, 64, "split")
        return plan.begins.tobytes() + plan.row_bounds.tobytes()

    with ThreadPoolExecutor(4) as ranks:
        answers = set(ranks.map(ask, range(4)))

    assert len(answers) == 1
    assert packed == [150, 200, 90]
