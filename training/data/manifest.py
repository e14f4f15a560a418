"""manifest.json: what a prepared corpus holds, and how to know that it is whole."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from training.config.base import Section
from training.errors import DataError
from training.files import write_json
from training.layout import CorpusLayout

FORMAT = 1
"""Raised when the shards or the encoding change, so that older corpora are made anew."""

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")


class Counts(Section):
    """How much there is of something."""

    documents: NonNegativeInt
    tokens: NonNegativeInt
    targets: NonNegativeInt


class ShardRecord(Section):
    """One file of a split."""

    file: str
    sha256: str
    documents: PositiveInt
    tokens: PositiveInt


class SplitRecord(Section):
    """One split: ``train`` or ``held_out``."""

    counts: Counts
    families: NonNegativeInt
    by_source: dict[str, Counts]
    by_task: dict[str, Counts]
    length_percentiles: dict[str, int]
    """Tokens per document at 0, 5, 25, 50, 75, 95, 99 and 100 percent."""

    lengths_sha256: str
    shards: list[ShardRecord]


class SourceRecord(Section):
    """Where one source's documents came from."""

    provenance: dict[str, Any]
    licence: str
    notes: dict[str, Any]
    documents: NonNegativeInt
    without_targets: NonNegativeInt
    """Documents left out because nothing in them can be learnt."""


class Manifest(Section):
    """The whole corpus."""

    format: int
    fingerprint: str
    """Changes with the data configuration, the sources' content, and the tokenizer."""

    tokenizer: str
    """The tokenizer's own fingerprint."""

    padding_id: NonNegativeInt
    sources: dict[str, SourceRecord]
    splits: dict[Split, SplitRecord]


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
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{root}: no prepared corpus; run `metier prepare` with the same settings") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run `metier prepare` again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: written in another format than {FORMAT}; run `metier prepare` again")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path}: {place} is damaged; remove {root} and run `metier prepare` again") from None
