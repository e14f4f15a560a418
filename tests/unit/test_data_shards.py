"""The prepared corpus: the same bytes for the same input, whole or not there, told when damaged."""

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from tests.corpus_case import TOKENIZER, bytes_of, configure, damage, prepare, write_notes
from training.config.sources import DataConfig
from training.data.corpus import find_split
from training.data.encode import encode
from training.data.read import read_documents
from training.data.reader import open_corpus
from training.data.staging import stage_folder
from training.errors import DataError, StorageError


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_notes(tmp_path / "in" / "a.jsonl", 100)
    return configure(tmp_path)


def test_what_is_read_back_is_what_was_encoded(data: DataConfig) -> None:
    prepare(data)

    wanted = {document.id: document for document in read_documents("notes", data.sources["notes"])}
    for split in ("train", "held_out"):
        corpus = open_corpus(data.path, split)
        assert corpus.lengths.tolist() == [len(corpus.encoded(i).input_ids) for i in range(len(corpus))]
        for index in range(len(corpus)):
            stored = corpus.encoded(index)
            document = wanted.pop(stored.id)
            encoded = encode(document, TOKENIZER)
            assert np.array_equal(stored.input_ids, encoded.input_ids)
            assert np.array_equal(stored.is_target, encoded.is_target)
            assert (stored.family, stored.source, stored.task) == (document.family, "notes", "text")
            part = corpus.tokens(index, 3, 11)
            assert np.array_equal(part[0], encoded.input_ids[3:11])
            assert np.array_equal(part[1], encoded.is_target[3:11])
    assert not wanted


def test_the_manifest_counts_what_is_there(data: DataConfig) -> None:
    manifest = prepare(data).manifest

    for split, record in manifest.splits.items():
        corpus = open_corpus(data.path, split)
        assert record.counts.documents == len(corpus) == sum(shard.documents for shard in record.shards)
        assert record.counts.tokens == corpus.lengths.sum() == sum(shard.tokens for shard in record.shards)
        assert record.counts.targets == record.counts.tokens - len(corpus)
        assert record.by_source == {"notes": record.counts}
        assert record.length_percentiles["100"] == corpus.lengths.max()
    assert manifest.sources["notes"].documents == 100


def test_shards_open_as_an_ordinary_dataset(data: DataConfig) -> None:
    record = prepare(data).manifest.splits["train"]

    dataset = Dataset.from_file(str(Path(data.path) / "train" / record.shards[0].file))

    assert dataset.num_rows == 16
    assert TOKENIZER.decode(dataset[0]["input_ids"]).startswith("Note ")


def test_the_same_input_gives_the_same_bytes(data: DataConfig, tmp_path: Path) -> None:
    prepare(data)
    prepare(data.model_copy(update={"path": str(tmp_path / "second")}))

    assert bytes_of(Path(data.path)) == bytes_of(tmp_path / "second")


def test_a_family_is_in_one_split_only(data: DataConfig) -> None:
    prepare(data)

    families = [
        {corpus.encoded(index).family for index in range(len(corpus))}
        for corpus in (open_corpus(data.path, "train"), open_corpus(data.path, "held_out"))
    ]

    assert not families[0] & families[1]
    assert len(families[0]) + len(families[1]) == 34


def test_data_that_is_added_moves_no_family(data: DataConfig, tmp_path: Path) -> None:
    prepare(data)
    before = {open_corpus(data.path, "held_out").encoded(i).id for i in range(5)}

    write_notes(tmp_path / "in" / "b.jsonl", 300, first=1000)
    assert prepare(data).is_new
    after = open_corpus(data.path, "held_out")

    assert before <= {after.encoded(index).id for index in range(len(after))}


def test_about_the_wanted_fraction_is_held_out() -> None:
    held_out = sum(find_split(f"family {number}", 0.1, 3) == "held_out" for number in range(20_000))

    assert 0.09 < held_out / 20_000 < 0.11


def test_a_prepared_corpus_is_kept_whatever_the_packing(data: DataConfig) -> None:
    prepare(data)
    before = bytes_of(Path(data.path))

    again = prepare(data.model_copy(update={"long_documents": "drop"}))

    assert not again.is_new
    assert bytes_of(Path(data.path)) == before


@pytest.mark.parametrize("change", ["tokenizer", "seed", "input", "damage"])
def test_a_corpus_that_does_not_fit_is_made_anew(data: DataConfig, tmp_path: Path, change: str) -> None:
    prepare(data)
    match change:
        case "tokenizer":
            again = prepare(data, tokenizer="other")
        case "seed":
            again = prepare(data.model_copy(update={"split_seed": 1}))
        case "input":
            write_notes(tmp_path / "in" / "a.jsonl", 1, first=999)
            again = prepare(data)
        case _:
            damage(Path(data.path) / "train" / "shard_00001.arrow")
            again = prepare(data)

    assert again.is_new
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "in"]
    open_corpus(data.path, "train").verify()


def test_a_flipped_bit_is_found_when_the_shard_is_first_read(data: DataConfig) -> None:
    prepare(data)
    shard = Path(data.path) / "train" / "shard_00001.arrow"
    damage(shard)

    corpus = open_corpus(data.path, "train")
    corpus.encoded(0)
    with pytest.raises(DataError, match=r"shard_00001\.arrow: damaged, .*run `metier prepare`"):
        corpus.encoded(16)


def test_a_vanished_shard_is_named(data: DataConfig) -> None:
    prepare(data)
    (Path(data.path) / "train" / "shard_00000.arrow").unlink()

    with pytest.raises(DataError, match=r"shard_00000\.arrow: cannot be read \(No such file"):
        open_corpus(data.path, "train").encoded(0)


def test_a_corpus_that_was_never_prepared_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no prepared corpus; run `metier prepare`"):
        open_corpus(tmp_path / "nowhere", "train")


def test_a_bad_record_leaves_nothing_behind_and_the_former_corpus_whole(
    data: DataConfig, tmp_path: Path
) -> None:
    prepare(data)
    before = bytes_of(Path(data.path))
    (tmp_path / "in" / "b.jsonl").write_text("broken\n")

    with pytest.raises(DataError, match=r"b\.jsonl:1: broken JSON"):
        prepare(data)

    assert bytes_of(Path(data.path)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "in"]


def test_documents_without_targets_are_counted_and_left_out(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "in" / "b.jsonl").write_text('{"text": "  ", "family": "x"}\n' * 3)

    manifest = prepare(data).manifest

    assert manifest.sources["notes"].without_targets == 3
    assert sum(record.counts.documents for record in manifest.splits.values()) == 100


def test_a_corpus_without_any_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": " ", "family": "x"}\n')

    with pytest.raises(DataError, match="none of 1 documents holds a target"):
        prepare(configure(tmp_path))


@pytest.mark.parametrize(("fraction", "split"), [(0.000001, "held_out"), (0.999999, "train")])
def test_an_empty_split_is_refused(data: DataConfig, fraction: float, split: str) -> None:
    with pytest.raises(DataError, match=f"the {split} split is empty: .* none of 34 families"):
        prepare(data.model_copy(update={"held_out_fraction": fraction}))

    assert not Path(data.path).exists()


def test_a_folder_that_holds_something_else_is_left_alone(data: DataConfig) -> None:
    Path(data.path).mkdir()
    (Path(data.path) / "thesis.tex").write_text("years of work")

    with pytest.raises(DataError, match="is there already and holds no corpus"):
        prepare(data)

    assert (Path(data.path) / "thesis.tex").read_text() == "years of work"


def test_two_at_once_are_kept_apart(tmp_path: Path) -> None:
    final = tmp_path / "corpus"
    with stage_folder(final) as staging:
        (staging / "file").write_text("first")
        with pytest.raises(StorageError, match="another `metier prepare` is writing it"), stage_folder(final):
            pass

    assert (final / "file").read_text() == "first"


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    final = tmp_path / "corpus"
    (tmp_path / ".corpus.partial" / "train").mkdir(parents=True)
    (tmp_path / ".corpus.partial" / "stale").write_text("half")
    (tmp_path / ".corpus.former").mkdir()

    with stage_folder(final) as staging:
        assert not list(staging.iterdir())
        assert final.exists()  # put back: the kill came between the two renames

    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
