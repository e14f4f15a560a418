"""Preparing a corpus: the same bytes for the same input, only what is new is encoded, nothing lost."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.corpus_case import (
    TOKENIZER,
    Silent,
    bytes_of,
    configure,
    encode_here,
    files_source,
    prepare,
    write_notes,
)
from training.config.sources import DataConfig
from training.data.corpus.build import Share, describe_tokenizer, prepare_corpus, prepare_share
from training.data.corpus.manifest import SPLITS, Manifest, check_settings
from training.data.corpus.segments import Job, find_split
from training.data.reading.reader import check_tokenizer, open_corpus
from training.errors import DataError, StorageError
from training.files import hold_lock


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    write_notes(tmp_path / "in" / "a.jsonl", 100)
    return configure(tmp_path)


def write_texts(path: Path, texts: Sequence[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as lines:
        lines.writelines(
            json.dumps({"text": text, "family": f"{path.stem} {i}"}) + "\n" for i, text in enumerate(texts)
        )


def shard_files(manifest: Manifest) -> set[str]:
    return {shard.file for split in manifest.splits.values() for shard in split.shards}


def families(data: DataConfig) -> list[set[str]]:
    corpora = [open_corpus(data.path, split) for split in SPLITS]
    return [{corpus.document(index).family for index in range(len(corpus))} for corpus in corpora]


def test_the_same_input_gives_the_same_bytes(data: DataConfig, tmp_path: Path) -> None:
    prepare(data)
    prepare(data.model_copy(update={"path": str(tmp_path / "second")}))

    assert bytes_of(Path(data.path)) == bytes_of(tmp_path / "second")


def test_a_file_that_was_only_touched_gives_the_same_corpus(data: DataConfig, tmp_path: Path) -> None:
    first = prepare(data).manifest
    before = bytes_of(Path(data.path))
    (tmp_path / "in" / "a.jsonl").touch()

    again = prepare(data)

    assert again.manifest == first
    assert bytes_of(Path(data.path)) == before


def test_a_family_is_in_one_split_only(data: DataConfig) -> None:
    prepare(data)

    train, held_out = families(data)

    assert not train & held_out
    assert len(train) + len(held_out) == 34


def test_about_the_wanted_fraction_is_held_out() -> None:
    held_out = sum(find_split(f"family {number}", 0.1, 3) == "held_out" for number in range(20_000))

    assert 0.09 < held_out / 20_000 < 0.11


def test_new_files_add_shards_and_move_no_family(data: DataConfig, tmp_path: Path) -> None:
    before = prepare(data).manifest
    train, held_out = families(data)
    write_notes(tmp_path / "in" / "b.jsonl", 300, first=1000)
    write_notes(tmp_path / "in" / "0.jsonl", 30, first=2000)

    encoded = EncodedParts(data)
    after = encoded.prepare()

    assert shard_files(before) < shard_files(after)
    assert [Path(name).name for names in encoded.names for name in names] == ["b.jsonl", "0.jsonl"]
    assert train < families(data)[0]
    assert held_out < families(data)[1]


class EncodedParts:
    """Prepares in this process, and remembers which files were read."""

    def __init__(self, data: DataConfig) -> None:
        self.data = data
        self.names: list[list[str]] = []

    def prepare(self) -> Manifest:
        return prepare_corpus(self.data, describe_tokenizer(TOKENIZER, "t"), self.encode, Silent()).manifest

    def encode(self, jobs: Sequence[Job]) -> None:
        self.names += [[piece.name for piece in job.part.pieces] for job in jobs]
        encode_here(self.data, jobs)


def test_a_file_that_is_gone_is_left_out_and_its_shards_removed(data: DataConfig, tmp_path: Path) -> None:
    alone = prepare(data).manifest
    before = bytes_of(Path(data.path))
    write_notes(tmp_path / "in" / "b.jsonl", 300, first=1000)
    prepare(data)
    (tmp_path / "in" / "b.jsonl").unlink()

    again = prepare(data)

    assert again.manifest == alone
    assert bytes_of(Path(data.path)) == before


def test_a_prepared_corpus_is_kept_whatever_the_packing(data: DataConfig) -> None:
    prepare(data)
    before = bytes_of(Path(data.path))

    again = prepare(data.model_copy(update={"long_documents": "drop"}))

    assert not again.is_new
    assert bytes_of(Path(data.path)) == before


@pytest.mark.parametrize("change", ["tokenizer", "seed", "input", "lost shard", "lost index", "cut shard"])
def test_a_corpus_that_does_not_fit_is_made_anew(data: DataConfig, tmp_path: Path, change: str) -> None:
    first = prepare(data).manifest
    train = first.splits["train"]
    match change:
        case "tokenizer":
            again = prepare(data, tokenizer="other")
        case "seed":
            again = prepare(data.model_copy(update={"split_seed": 1}))
        case "input":
            write_notes(tmp_path / "in" / "a.jsonl", 1, first=999)
            again = prepare(data)
        case "lost shard":
            (Path(data.path) / train.shards[1].file).unlink()
            again = prepare(data)
        case "lost index":
            (Path(data.path) / train.lengths.file).unlink()
            again = prepare(data)
        case _:
            path = Path(data.path) / train.shards[1].file
            path.write_bytes(path.read_bytes()[:-8])
            again = prepare(data)

    assert again.is_new
    assert (again.manifest == first) == (change not in ("tokenizer", "seed", "input"))
    open_corpus(data.path, "train").verify()
    held = {f"shards/{path.name}" for path in (Path(data.path) / "shards").iterdir()}
    assert held == shard_files(again.manifest)


def test_training_refuses_a_corpus_of_another_tokenizer(data: DataConfig) -> None:
    manifest = prepare(data, tokenizer="former").manifest

    with pytest.raises(DataError, match=r"prepared with another tokenizer .*; run `metier prepare` again"):
        check_tokenizer(manifest, "present", data.path)


def test_training_refuses_a_corpus_of_other_settings_until_it_is_prepared_anew(data: DataConfig) -> None:
    manifest = prepare(data).manifest
    redacted = data.personal_data.model_copy(update={"action": "redact"})
    other = data.model_copy(update={"personal_data": redacted, "long_documents": "split"})

    check_settings(manifest, data)
    check_settings(manifest, data.model_copy(update={"long_documents": "split"}))
    with pytest.raises(
        DataError,
        match=r'^data\.personal_data\.action: the corpus .* with "keep", this run says "redact"; run',
    ):
        check_settings(manifest, other)
    check_settings(prepare(other).manifest, other)


def test_training_refuses_a_corpus_of_other_files(data: DataConfig, tmp_path: Path) -> None:
    manifest = prepare(data).manifest
    source = data.sources["notes"].model_copy(update={"paths": [str(tmp_path / "in" / "a.jsonl")]})
    other = data.model_copy(update={"sources": {"notes": source}})

    with pytest.raises(DataError, match=r"^data\.sources\.notes\.paths: the corpus in"):
        check_settings(manifest, other)
    check_settings(prepare(other).manifest, other)


def test_a_manifest_that_was_edited_is_refused(data: DataConfig) -> None:
    prepare(data)
    path = Path(data.path) / "manifest.json"
    path.write_text(path.read_text().replace('"repeated": 0', '"repeated": 7'))

    with pytest.raises(DataError, match="damaged or edited"):
        open_corpus(data.path, "train")


def test_a_bad_record_leaves_nothing_behind_in_a_new_folder(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "in" / "a.jsonl").write_text("broken\n")

    with pytest.raises(DataError, match=r"a\.jsonl:1: .*JSON"):
        prepare(data)

    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_bad_record_leaves_the_former_corpus_whole(data: DataConfig, tmp_path: Path) -> None:
    prepare(data)
    before = bytes_of(Path(data.path))
    (tmp_path / "in" / "b.jsonl").write_text("broken\n")

    with pytest.raises(DataError, match=r"b\.jsonl:1: .*JSON"):
        prepare(data)

    assert bytes_of(Path(data.path)) == before
    open_corpus(data.path, "train").verify()


def test_a_source_that_vanishes_meanwhile_is_one_line_and_the_next_call_goes_on(
    data: DataConfig, tmp_path: Path
) -> None:
    write_notes(tmp_path / "in" / "b.jsonl", 100, first=1000)
    prepare(data.model_copy(update={"path": str(tmp_path / "undisturbed")}))
    vanishing, aside = tmp_path / "in" / "b.jsonl", tmp_path / "b.jsonl"

    def encode(jobs: Sequence[Job]) -> None:
        vanishing.rename(aside)
        encode_here(data, jobs)

    with pytest.raises(DataError, match=r"b\.jsonl: the file is gone; put it back"):
        prepare_corpus(data, describe_tokenizer(TOKENIZER, "t"), encode, Silent())
    aside.rename(vanishing)
    prepare(data)

    assert bytes_of(Path(data.path)) == bytes_of(tmp_path / "undisturbed")


def test_bad_records_that_are_skipped_are_counted_by_reason(data: DataConfig, tmp_path: Path) -> None:
    with (tmp_path / "in" / "a.jsonl").open("a") as lines:
        lines.write("broken\n" * 3 + json.dumps({"words": "no text"}) + "\n")
    source = files_source(tmp_path / "in" / "a.jsonl", bad_records="skip")

    manifest = prepare(configure(tmp_path, sources={"notes": source})).manifest

    assert manifest.sources["notes"].skipped == {"broken JSON": 3, "missing field": 1}
    assert manifest.sources["notes"].documents == 100


def test_documents_without_targets_are_counted_and_left_out(data: DataConfig, tmp_path: Path) -> None:
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{number}?"},
                {"role": "assistant", "content": "b", "weight": int(number < 40)},
            ]
        }
        for number in range(43)
    ]
    (tmp_path / "in" / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    source = files_source(tmp_path / "in" / "chats.jsonl", documents="messages", family_field=None)

    manifest = prepare(configure(tmp_path, sources={"chats": source})).manifest

    assert manifest.sources["chats"].without_targets == 3
    assert manifest.sources["chats"].documents == 43
    assert (manifest.sources["chats"].turns, manifest.sources["chats"].turns_ended) == (40, 40)


def test_personal_data_is_redacted_or_dropped_and_counted(tmp_path: Path) -> None:
    texts = [f"Write to person{number}@example.org today." for number in range(5)] + [
        f"Nobody in room {number}." for number in range(40)
    ]
    write_texts(tmp_path / "in" / "a.jsonl", texts)

    def act(action: str) -> Manifest:
        personal = {"action": action, "detectors": ["email"]}
        return prepare(configure(tmp_path, personal_data=personal)).manifest

    redacted, texts_left = act("redact"), read_texts(tmp_path)
    dropped = act("drop")

    assert redacted.sources["notes"].personal_data == {"email": 5}
    assert redacted.sources["notes"].documents == 45
    assert sum("Write to [EMAIL] today." in text for text in texts_left) == 5
    assert not any("example.org" in text for text in texts_left)
    assert dropped.sources["notes"].personal_data == {"dropped": 5}
    assert dropped.sources["notes"].documents == 40
    assert act("keep").sources["notes"].personal_data == {}


def read_texts(folder: Path) -> list[str]:
    corpora = [open_corpus(folder / "corpus", split) for split in SPLITS]
    return [
        str(TOKENIZER.decode(corpus.document(index).input_ids))
        for corpus in corpora
        for index in range(len(corpus))
    ]


def test_control_tokens_that_are_removed_are_counted(tmp_path: Path) -> None:
    write_texts(
        tmp_path / "in" / "a.jsonl",
        ["Forged <|im_end|> turn."] * 2 + [f"Honest in room {number}." for number in range(40)],
    )

    manifest = prepare(configure(tmp_path, control_tokens="remove")).manifest

    assert manifest.sources["notes"].control_tokens == 2


def test_a_control_token_inside_of_an_address_does_not_hide_it(tmp_path: Path) -> None:
    texts = ["Write to bob@mail.<|im_end|>example.org today."] + [f"Room {number}." for number in range(40)]
    write_texts(tmp_path / "in" / "a.jsonl", texts)
    personal = {"action": "redact", "detectors": ["email"]}

    manifest = prepare(configure(tmp_path, control_tokens="remove", personal_data=personal)).manifest

    assert manifest.sources["notes"].personal_data == {"email": 1}
    assert manifest.sources["notes"].control_tokens == 1
    assert not any("example.org" in text for text in read_texts(tmp_path))


def test_a_corpus_without_documents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("broken\n")
    source = files_source(tmp_path / "in" / "a.jsonl", bad_records="skip")

    with pytest.raises(DataError, match=r"data\.sources\.notes: no documents; .* 1 were left out"):
        prepare(configure(tmp_path, sources={"notes": source}))


@pytest.mark.parametrize(("fraction", "split"), [(0.000001, "held_out"), (0.999999, "train")])
def test_an_empty_split_is_refused(data: DataConfig, fraction: float, split: str) -> None:
    with pytest.raises(DataError, match=f"the {split} split is empty: .* none of 100 documents"):
        prepare(data.model_copy(update={"held_out_fraction": fraction}))


def test_a_folder_that_holds_something_else_is_left_alone(data: DataConfig) -> None:
    Path(data.path).mkdir()
    (Path(data.path) / "thesis.tex").write_text("years of work")

    with pytest.raises(DataError, match="is there already and holds no corpus"):
        prepare(data)

    assert [path.name for path in Path(data.path).iterdir()] == ["thesis.tex"]


def test_a_url_is_refused_as_a_place_to_prepare_in(data: DataConfig) -> None:
    with pytest.raises(DataError, match=r"data\.path=s3://bucket/corpus is a URL; .* data\.upload_to"):
        prepare(data.model_copy(update={"path": "s3://bucket/corpus"}))


def test_two_at_once_are_kept_apart(data: DataConfig) -> None:
    def encode(jobs: Sequence[Job]) -> None:
        with pytest.raises(StorageError, match="another `metier prepare` is writing it; wait"):
            prepare(data)
        encode_here(data, jobs)

    manifest = prepare_corpus(data, describe_tokenizer(TOKENIZER, "t"), encode, Silent()).manifest

    assert manifest.sources["notes"].documents == 100


def test_jobs_of_an_array_share_the_parts_and_a_last_call_finishes(
    data: DataConfig, tmp_path: Path, small_parts: None
) -> None:
    for number in range(7):
        write_notes(tmp_path / "in" / f"b{number}.jsonl", 20, first=100 * number)
    facts = describe_tokenizer(TOKENIZER, "t")
    sizes = []
    for task in (2, 0, 1):
        encoded = EncodedParts(data)
        mine, every = prepare_share(data, facts, Share(tasks=3, task=task), encoded.encode, Silent())
        assert len(encoded.names) == mine
        sizes.append(mine)
        assert not (Path(data.path) / "manifest.json").exists()
    finish = EncodedParts(data)
    finish.prepare()
    prepare(data.model_copy(update={"path": str(tmp_path / "at once")}))

    assert sum(sizes) == every == 8
    assert finish.names == []
    assert bytes_of(Path(data.path)) == bytes_of(tmp_path / "at once")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file of a few hundred bytes is a part of its own."""
    monkeypatch.setattr("training.data.corpus.parts.PART_BYTES", 1)


def test_jobs_of_an_array_run_beside_each_other_but_not_beside_the_finishing_call(data: DataConfig) -> None:
    facts = describe_tokenizer(TOKENIZER, "t")

    def encode(jobs: Sequence[Job]) -> None:
        with pytest.raises(StorageError, match="another `metier prepare` is writing it"):
            prepare(data)
        prepare_share(data, facts, Share(tasks=2, task=1), lambda jobs: encode_here(data, jobs), Silent())

    prepare_share(data, facts, Share(tasks=2, task=0), encode, Silent())


def test_a_part_that_another_job_encodes_is_not_encoded_twice(data: DataConfig) -> None:
    def encode(jobs: Sequence[Job]) -> None:
        lock = Path(data.path) / "parts" / f"{jobs[0].part.key}.lock"
        with (
            hold_lock(lock, busy="held"),
            pytest.raises(StorageError, match="another `metier prepare` encodes the same part"),
        ):
            encode_here(data, jobs)
        encode_here(data, jobs)

    prepare_corpus(data, describe_tokenizer(TOKENIZER, "t"), encode, Silent())


def test_a_source_can_be_told_under_another_licence_without_encoding_again(tmp_path: Path) -> None:
    write_notes(tmp_path / "in" / "a.jsonl", 100)
    source = files_source(tmp_path / "in" / "a.jsonl")
    prepare(configure(tmp_path, sources={"notes": source}))
    changed = configure(tmp_path, sources={"notes": {**source, "licence": "CC0", "provenance": {"by": "us"}}})

    encoded = EncodedParts(changed)
    manifest = encoded.prepare()

    assert encoded.names == []
    assert manifest.sources["notes"].licence == "CC0"
    assert manifest.sources["notes"].provenance["by"] == "us"
    assert "modified_ns" not in json.dumps(manifest.sources["notes"].provenance)
