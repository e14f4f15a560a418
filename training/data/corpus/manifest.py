"""manifest.json: what a prepared corpus holds, and how to know that it is whole."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from training.config.base import Section
from training.config.sources import DataConfig
from training.errors import DataError
from training.files import write_json
from training.layout import CorpusLayout

FORMAT = 2
"""Raised when the shards or the encoding change, so that older corpora are made anew."""

_SHAPING = {
    "sources", "held_out_fraction", "split_seed", "tokens_per_shard", "control_tokens", "personal_data",
    "duplicates",
}  # fmt: skip

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class Counts(Section):
    """How much there is of something."""

    documents: NonNegativeInt
    tokens: NonNegativeInt
    targets: NonNegativeInt


class FileRecord(Section):
    """A file of the corpus, named by what it holds: the same bytes have the same name, whoever wrote them."""

    file: str
    """Relative to the corpus, for instance ``shards/CHECKSUM.arrow``."""

    checksum: str
    """XXH3-128 of the file's bytes, hexadecimal: finds damage, not forgery."""

    bytes: PositiveInt


class ShardRecord(FileRecord):
    """One file of documents, all of one source and one split."""

    source: str
    documents: PositiveInt
    tokens: PositiveInt
    targets: NonNegativeInt


class SplitRecord(Section):
    """One split: ``train`` or ``held_out``. Counts are of documents that are read, without removed ones."""

    counts: Counts
    by_source: dict[str, Counts]
    by_task: dict[str, Counts]
    length_percentiles: dict[str, int]
    """Tokens per document at 0, 5, 25, 50, 75, 95, 99 and 100 percent."""

    lengths: FileRecord
    """numpy int32, tokens of each document in the order of ``shards``; negative: removed as a duplicate."""

    shards: list[ShardRecord]


class SourceRecord(Section):
    """Where one source's documents came from, and what became of them; nothing is lost silently."""

    provenance: dict[str, Any]
    """What the documents were made of, without times, and what the user wrote beside it."""

    licence: str
    documents: NonNegativeInt
    """Documents read and encoded: those in both splits, those without targets and those removed."""

    without_targets: NonNegativeInt
    """Documents left out because nothing in them can be learnt."""

    skipped: dict[str, int]
    """Records left out as bad, by reason."""

    personal_data: dict[str, int]
    """Findings redacted, or documents dropped (key ``dropped``), by detector; empty with action keep."""

    control_tokens: NonNegativeInt
    """Documents from whose text control tokens were removed, or kept."""

    turns: NonNegativeInt
    """Answers that are to be learnt."""

    turns_ended: NonNegativeInt
    """Those whose end token is a target."""

    removed_exact: NonNegativeInt
    removed_near: NonNegativeInt
    """Train documents removed because they are held out as well, word for word or nearly."""

    repeated: NonNegativeInt
    """Train documents that are copies of earlier train documents; kept, reported."""


class Manifest(Section):
    """The whole corpus."""

    format: int
    fingerprint: str
    """Hash of all else in the manifest: the same corpus made again has the same."""

    tokenizer: str
    """The tokenizer's own fingerprint, chat template included."""

    chat_template: str | None
    """The chat template's fingerprint alone; None where there is none."""

    settings: dict[str, Any]
    """The part of ``data`` that decides what is in the corpus, as it was typed."""

    padding_id: NonNegativeInt
    token_bytes: Literal[2, 4]
    """Width of a stored token id: 2 where the vocabulary allows it."""

    sources: dict[str, SourceRecord]
    """In the order of ``data.sources``; a document's source number is its place here."""

    splits: dict[Split, SplitRecord]

    def files(self) -> list[FileRecord]:
        """List every file of the corpus but the manifest itself."""
        return [record for split in self.splits.values() for record in (split.lengths, *split.shards)]


def write_manifest(layout: CorpusLayout, manifest: Manifest) -> None:
    """Write the manifest, complete or not at all."""
    write_json(layout.manifest, manifest.model_dump(mode="json"))


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of the corpus in ``root``.

    Raises:
        DataError: There is no complete corpus, or another version of Métier wrote it.
    """
    path = CorpusLayout(root).manifest
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{root}: no prepared corpus; run `metier prepare` with the same settings") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); run `metier prepare` again") from None
    return parse_manifest(content, str(root))


def parse_manifest(content: bytes, root: str) -> Manifest:
    """Read the content of manifest.json, wherever its corpus ``root`` lies.

    Raises:
        DataError: It is damaged, or another version of Métier wrote it.
    """
    path = f"{root.rstrip('/')}/{CorpusLayout(Path()).manifest.name}"
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error}); run `metier prepare` again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: written in another format than {FORMAT}; run `metier prepare` again")
    try:
        manifest = Manifest.model_validate(values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path}: {place} is damaged; remove {root} and run `metier prepare` again") from None
    if seal_manifest(manifest).fingerprint != manifest.fingerprint:
        raise DataError(
            f"{path}: damaged or edited, its fingerprint is not that of its content; remove this file and "
            "run `metier prepare` again"
        )
    return manifest


def describe_settings(data: DataConfig) -> dict[str, Any]:
    """Give the part of ``data`` that decides what is in a corpus: not where it lies or how it is read."""
    words_only = {"licence", "provenance"}
    settings = data.model_dump(mode="json", include=_SHAPING)
    sources = settings["sources"].items()
    settings["sources"] = {
        name: {key: value for key, value in source.items() if key not in words_only}
        for name, source in sources
    }
    return settings


def check_settings(manifest: Manifest, data: DataConfig) -> None:
    """Make sure that the corpus was prepared with these settings: another redaction is another corpus.

    Raises:
        DataError: It was not; the first setting that differs is named.
    """
    wanted = describe_settings(data)
    different = next(_differences(manifest.settings, wanted, "data"), None)
    if different is not None:
        path, found, given = different
        raise DataError(
            f"{path}: the corpus in {data.path} was prepared with {found}, this run says {given}; run "
            "`metier prepare` with this run's settings, or take them back"
        )


def _differences(prepared: Any, wanted: Any, path: str) -> Iterator[tuple[str, str, str]]:
    """Yield each setting that differs: its path, and both values as they are typed."""
    if isinstance(prepared, dict) and isinstance(wanted, dict):
        for key in sorted({*prepared, *wanted}):
            if key in prepared and key in wanted:
                yield from _differences(prepared[key], wanted[key], f"{path}.{key}")
            else:
                there = "something" if key in prepared else "nothing"
                yield f"{path}.{key}", there, "something" if key in wanted else "nothing"
    elif prepared != wanted:
        yield path, json.dumps(prepared, ensure_ascii=False), json.dumps(wanted, ensure_ascii=False)


def few_held_out(path: str, documents: int, passed_over: int) -> DataError:
    """Say that a corpus holds out no more documents than `metier evaluate` takes.

    Args:
        path: Of the corpus.
        documents: How many it holds out.
        passed_over: ``evaluation.held_out_documents``.
    """
    return DataError(
        f"{path} holds out {documents} documents, and `metier evaluate` takes the first {passed_over} of "
        "them; lower evaluation.held_out_documents, or raise data.held_out_fraction and run `metier prepare` "
        "again"
    )


def seal_manifest(manifest: Manifest) -> Manifest:
    """Give the manifest its fingerprint: a hash of all that the corpus is.

    The checksums of its files stand for their bytes.
    """
    values = manifest.model_dump(mode="json", exclude={"fingerprint"})
    fingerprint = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return manifest.model_copy(update={"fingerprint": fingerprint})
