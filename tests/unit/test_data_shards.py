"""Shards on the disk: named by what they hold, read back as they were encoded, open to other tools."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from tests.corpus_case import TOKENIZER, configure, prepare, write_notes
from training.config.sources import DataConfig
from training.data.corpus.shards import map_shard, write_shard
from training.data.documents import Document, Text
from training.data.encoding.encode import Encoded, encode
from training.data.read import read_documents
from training.data.reading.reader import open_corpus
from training.errors import DataError, StorageError
from training.files import file_checksum


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_notes(tmp_path / "in" / "a.jsonl", 100)
    return configure(tmp_path)


def row(name: str, ids: list[int]) -> tuple[Document, Encoded]:
    document = Document(id=name, family=name, source="notes", task="text", content=Text(""))
    return document, Encoded(np.array(ids, np.int32), np.array([False] + [True] * (len(ids) - 1)))


def test_what_is_read_back_is_what_was_encoded(data: DataConfig) -> None:
    prepare(data)

    wanted = {document.id: document for document in read_documents("notes", data.sources["notes"])}
    for split in ("train", "held_out"):
        corpus = open_corpus(data.path, split)
        assert corpus.lengths.tolist() == [len(corpus.document(i).input_ids) for i in range(len(corpus))]
        for index in range(len(corpus)):
            stored = corpus.document(index)
            document = wanted.pop(stored.id)
            encoded = encode(document, TOKENIZER)
            assert np.array_equal(stored.input_ids, encoded.input_ids)
            assert np.array_equal(stored.is_target, encoded.is_target)
            assert (stored.family, stored.source, stored.task) == (document.family, "notes", "text")
    assert not wanted


def test_the_manifest_counts_what_is_there(data: DataConfig) -> None:
    manifest = prepare(data).manifest

    for split, record in manifest.splits.items():
        corpus = open_corpus(data.path, split)
        assert record.counts.documents == len(corpus) == sum(shard.documents for shard in record.shards)
        assert record.counts.tokens == corpus.lengths.sum() == sum(shard.tokens for shard in record.shards)
        assert record.counts.targets == record.counts.tokens - len(corpus)
        assert record.by_source == {"notes": record.counts}
        assert record.by_task == {"text": record.counts}
        assert record.length_percentiles["100"] == corpus.lengths.max()
    assert manifest.sources["notes"].documents == 100


def test_every_file_bears_the_checksum_of_its_bytes(data: DataConfig) -> None:
    manifest = prepare(data).manifest

    records = [file for split in manifest.splits.values() for file in (split.lengths, *split.shards)]
    for record in records:
        path = Path(data.path) / record.file
        assert path.stem == record.checksum == file_checksum(path)
        assert path.stat().st_size == record.bytes
    held = [path for name in ("shards", "index") for path in (Path(data.path) / name).iterdir()]
    assert len(held) == len({record.file for record in records})


def test_a_shard_is_closed_once_it_holds_its_tokens(data: DataConfig) -> None:
    shards = prepare(data).manifest.splits["train"].shards

    assert len(shards) > 2
    assert all(shard.tokens < 640 + 70 for shard in shards)  # the longest note has 70 tokens


def test_shards_open_as_an_ordinary_dataset(data: DataConfig) -> None:
    record = prepare(data).manifest.splits["train"]

    dataset = Dataset.from_file(str(Path(data.path) / record.shards[0].file))

    assert dataset.num_rows == record.shards[0].documents
    assert TOKENIZER.decode(dataset[0]["input_ids"]).startswith("Note ")


@pytest.mark.parametrize(("token_bytes", "stored"), [(2, pa.uint16()), (4, pa.uint32())])
def test_token_ids_are_as_wide_as_the_vocabulary_needs(
    tmp_path: Path, token_bytes: Literal[2, 4], stored: pa.DataType
) -> None:
    largest = (1 << 16) - 1 if token_bytes == 2 else 200_000
    record = write_shard(tmp_path, [row("a", [1, largest]), row("b", [3, 4, 5])], token_bytes)

    batch = map_shard(tmp_path, record)

    assert batch.schema.field("input_ids").type.value_type == stored
    assert batch.schema.field("is_target").type.value_type == pa.uint8()
    assert batch.column("input_ids").to_pylist() == [[1, largest], [3, 4, 5]]
    assert batch.column("is_target").to_pylist() == [[0, 1], [0, 1, 1]]
    assert (record.documents, record.tokens, record.targets) == (2, 5, 3)


def test_the_same_documents_give_the_same_file(tmp_path: Path) -> None:
    rows = [row("a", [1, 2]), row("b", [3, 4, 5])]

    first, second = write_shard(tmp_path, rows, 2), write_shard(tmp_path / "other", rows, 2)

    assert first == second
    assert (tmp_path / first.file).read_bytes() == (tmp_path / "other" / second.file).read_bytes()
    assert write_shard(tmp_path, rows[:1], 2).file != first.file


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "shards").write_text("a file where the folder should be")

    with pytest.raises(StorageError, match=r"\.arrow: cannot be written \(.*\); free some space"):
        write_shard(tmp_path, [row("a", [1, 2])], 2)


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    record = write_shard(tmp_path, [row("a", [1, 2])], 2)
    path = tmp_path / record.file
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(DataError, match=rf"{record.checksum}\.arrow: cannot be read \(.*\); remove it and"):
        map_shard(tmp_path, record)
