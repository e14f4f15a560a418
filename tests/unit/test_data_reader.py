"""The reader: what lies in the shards comes out, whole or not at all, and memory does not grow with it."""

import os
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.synthetic_corpus import write_corpus
from training.config.schema import LoaderConfig
from training.data.reading import reader
from training.data.reading.reader import Corpus, check_tokenizer, open_corpus
from training.errors import ConfigError, DataError

LENGTHS = np.random.default_rng(1).integers(3, 60, 400)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", {"law": LENGTHS[:250], "code": LENGTHS[250:]}, tokens_per_shard=2000)
    return tmp_path / "corpus"


def loader(tmp_path: Path, **changes: object) -> LoaderConfig:
    values: dict[str, object] = {
        "cache_path": str(tmp_path / "cache"),
        "cache_bytes": 10**9,
        "ahead_steps": 2,
    }
    values |= {"fetch_attempts": 2, "model_cache_path": None, "model_cache_bytes": 1}
    return LoaderConfig.model_validate(values | changes)


def every_document(corpus: Corpus) -> list[tuple[str, str, list[int], list[bool]]]:
    documents = [corpus.document(index) for index in range(len(corpus))]
    return [(one.id, one.source, one.input_ids.tolist(), one.is_target.tolist()) for one in documents]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shard_path(folder: Path, number: int) -> Path:
    return folder / open_corpus(folder, "train").record.shards[number].file


def test_documents_are_numbered_through_all_shards(folder: Path) -> None:
    corpus = open_corpus(folder, "train")

    documents = every_document(corpus)

    assert len(corpus) == 400
    assert [len(ids) for _, _, ids, _ in documents] == corpus.lengths.tolist() == LENGTHS.tolist()
    assert [source for _, source, _, _ in documents] == ["law"] * 250 + ["code"] * 150
    assert sum(sum(targets) for *_, targets in documents) == corpus.record.counts.targets
    for index, (name, _, _, targets) in enumerate(documents):
        prompt = len(targets) // 3 if int(name.partition(":")[2]) % 2 else 0
        assert targets == [False] * prompt + [True] * (len(targets) - prompt), index
    assert [corpus.source_numbers[i] for i in (0, -1)] == [0, 1]


@pytest.mark.parametrize("index", [-1, 400])
def test_there_is_no_document_before_the_first_or_after_the_last(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match=f"document {index} of 400"):
        open_corpus(folder, "train").document(index)


@pytest.mark.parametrize("token_bytes", [2, 4])
def test_a_shard_gives_tokens_as_they_are_stored(tmp_path: Path, token_bytes: int) -> None:
    vocabulary = 60_000 if token_bytes == 2 else 200_000
    write_corpus(
        tmp_path, {"a": LENGTHS}, tokens_per_shard=10**6, token_bytes=token_bytes, vocabulary=vocabulary
    )

    shard = open_corpus(tmp_path, "train").shard(0)

    assert shard.ids.dtype == {2: np.uint16, 4: np.uint32}[token_bytes]
    assert shard.ids.max() > vocabulary * 0.99
    assert shard.targets.dtype == np.uint8
    assert np.array_equal(np.diff(shard.offsets), LENGTHS)
    assert shard.text("id", 3) == "a:3"


@pytest.mark.parametrize("way", ["cache", "file", "memory"])
def test_a_corpus_elsewhere_reads_as_the_one_at_hand(tmp_path: Path, folder: Path, way: str) -> None:
    path = {"cache": str(folder), "file": f"file://{folder}", "memory": f"memory:/{folder}"}[way]
    if way == "memory":
        fsspec.filesystem("memory").put(str(folder), path, recursive=True)

    corpus = open_corpus(path, "train", loader(tmp_path))

    assert every_document(corpus) == every_document(open_corpus(folder, "train"))
    assert corpus.lengths.tolist() == LENGTHS.tolist()
    files = {path.name for path in (tmp_path / "cache" / "files").iterdir()}
    assert files == {record.checksum for record in (*corpus.record.shards, corpus.record.lengths)}


def test_plans_lie_beside_a_corpus_that_is_ours_and_else_in_the_cache(tmp_path: Path, folder: Path) -> None:
    assert open_corpus(folder, "train", loader(tmp_path)).plans_folder == folder / "plans"
    elsewhere = open_corpus(f"file://{folder}", "train", loader(tmp_path))
    assert elsewhere.plans_folder == tmp_path / "cache" / "plans" / elsewhere.manifest.fingerprint


def test_a_url_needs_the_loaders_settings(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is a URL"):
        open_corpus(f"file://{folder}", "train")


@pytest.mark.parametrize("url", [False, True])
def test_a_corpus_that_is_not_there_is_told(tmp_path: Path, url: bool) -> None:
    path = f"file://{tmp_path}/none" if url else f"{tmp_path}/none"
    with pytest.raises(
        DataError, match=re.escape(path) + r".*(no prepared corpus|missing); run `metier prep"
    ):
        open_corpus(path, "train", loader(tmp_path, cache_path=str(tmp_path / "cache") if url else None))


@pytest.mark.parametrize("harm", ["flipped bit", "cut short", "removed"])
def test_a_damaged_shard_is_named_before_a_token_of_it_is_read(folder: Path, harm: str) -> None:
    path = shard_path(folder, 1)
    if harm == "flipped bit":
        damage(path)
    elif harm == "cut short":
        os.truncate(path, path.stat().st_size - 8)
    else:
        path.unlink()
    corpus = open_corpus(folder, "train")
    corpus.shard(0)

    with pytest.raises(DataError) as told:
        corpus.shard(1)
    assert str(told.value).startswith(str(path))
    assert "`metier prepare`" in str(told.value)
    with pytest.raises(DataError):
        corpus.verify()


def test_a_damaged_index_is_named(folder: Path) -> None:
    corpus = open_corpus(folder, "train")
    damage(folder / corpus.record.lengths.file)

    with pytest.raises(DataError, match=r"index/.*\.npy: damaged"):
        _ = corpus.lengths


def test_a_cached_shard_that_rots_is_fetched_again(tmp_path: Path, folder: Path) -> None:
    wanted = every_document(open_corpus(folder, "train"))
    every_document(open_corpus(folder, "train", loader(tmp_path)))
    for path in (tmp_path / "cache" / "files").iterdir():
        damage(path)

    assert every_document(open_corpus(folder, "train", loader(tmp_path))) == wanted


def test_a_shard_damaged_at_its_origin_is_named_there(tmp_path: Path, folder: Path) -> None:
    path = shard_path(folder, 0)
    damage(path)

    with pytest.raises(DataError, match=f"^file://{path}: damaged, .*, also when fetched again"):
        open_corpus(f"file://{folder}", "train", loader(tmp_path)).shard(0)


def mapped_shards(folder: Path) -> int:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(folder) in line and line.endswith(".arrow") for line in maps)


def test_few_shards_are_open_however_many_there_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MOST_OPEN_SHARDS", 3)
    corpus = open_corpus(folder, "train")
    assert len(corpus.record.shards) > 4

    for number in range(len(corpus.record.shards)):
        corpus.shard(number)
        assert mapped_shards(folder) == min(number + 1, 3)
    assert corpus.shard(2) is not corpus.shard(1)

    monkeypatch.setattr(corpus, "_most_bytes", 1)
    kept = corpus.shard(0)
    assert mapped_shards(folder) == 1, "the one that is read, at least"
    assert corpus.shard(0) is kept


def test_a_cache_with_room_for_two_shards_is_enough(tmp_path: Path, folder: Path) -> None:
    largest = max(shard.bytes for shard in open_corpus(folder, "train").record.shards)

    corpus = open_corpus(f"file://{folder}", "train", loader(tmp_path, cache_bytes=2 * largest))

    assert every_document(corpus) == every_document(open_corpus(folder, "train"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "files").iterdir()) <= 2 * largest


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))


def test_pages_that_were_read_do_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.full(60_000, 200)
    write_corpus(tmp_path, {"a": lengths}, tokens_per_shard=1_000_000)  # 12 shards of 3 MB
    monkeypatch.setattr(reader, "MOST_RESIDENT_BYTES", 7 << 20)
    corpus = open_corpus(tmp_path, "train")
    before = resident_file_bytes()
    most = 0

    for number in range(len(corpus.record.shards)):
        shard = corpus.shard(number)
        shard.read(np.arange(len(shard.ids)))
        most = max(most, resident_file_bytes() - before)
        corpus.give_back()

    assert sum(shard.bytes for shard in corpus.record.shards) > 36e6
    assert most < 14e6


def test_another_tokenizer_is_refused(folder: Path) -> None:
    manifest = open_corpus(folder, "train").manifest
    check_tokenizer(manifest, "t", "corpus")
    with pytest.raises(DataError, match=r"data\.path=corpus was prepared with another tokenizer"):
        check_tokenizer(manifest, "u", "corpus")
