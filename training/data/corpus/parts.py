"""The input of a corpus cut into parts, and what is done of each: how `metier prepare` goes on after a kill.

A part is a run of neighbouring pieces of one source, some 64 MiB together; one process encodes it, in order.
Its record names the shards that are committed and how many items of the input they hold; it is replaced
atomically after each segment, so that the next start goes on behind the last one. A part's key is a hash of
whatever its shards depend on: a changed file, source or tokenizer makes another part.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import NonNegativeInt, ValidationError

from training.config.base import Section
from training.config.sources import PersonalDataConfig, SourceConfig
from training.data.corpus.manifest import FORMAT, FileRecord, ShardRecord, Split
from training.data.corpus.shards import TokenBytes
from training.data.corpus.tally import Tally
from training.data.read import Piece, list_pieces
from training.files import write_json
from training.layout import CorpusLayout

PART_BYTES = 64 << 20
"""Pieces are put together up to this size: minutes of work, so that all cores end at about the same time."""

PART_PIECES = 4096
"""And up to this number: the part's record names each of them."""

_NOT_IN_KEY = {"paths", "licence", "provenance"}
"""Settings of a source that change no byte of a shard: pieces bear their own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Whatever the shards depend on besides the documents."""

    tokenizer: str
    """The tokenizer's fingerprint, chat template included."""

    token_bytes: TokenBytes
    control_tokens: Literal["refuse", "remove", "keep"]
    personal_data: PersonalDataConfig
    held_out_fraction: float
    split_seed: int
    tokens_per_shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one process encodes in one go."""

    key: str
    """Hash of whatever the part's shards depend on; hexadecimal."""

    source: str
    """The source's name in ``data.sources``."""

    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        """About how much there is to read."""
        return sum(piece.bytes for piece in self.pieces)


class PartRecord(Section):
    """parts/KEY.json: what is committed of one part."""

    format: int
    key: str
    source: str
    pieces: list[dict[str, Any]]
    is_finished: bool
    piece: NonNegativeInt
    """The piece that is read next."""

    items: NonNegativeInt
    """Documents and skipped records of that piece that are done."""

    bytes_done: NonNegativeInt
    """Of the pieces that are done."""

    shards: dict[Split, list[ShardRecord]]
    tally: Tally


def plan_parts(
    sources: Mapping[str, SourceConfig], encoding: Encoding, known: Sequence[PartRecord]
) -> list[Part]:
    """Cut all sources into parts, in the order of the sources and of their pieces.

    Pieces that a known part holds stay together as long as none of them changed; all others form new parts
    of neighbours. So the plan after a kill is the plan before it, and new files add parts.

    Args:
        sources: Name -> source.
        encoding: What the shards depend on besides the documents.
        known: Records of earlier calls, finished or not; those of other settings are passed over.

    Raises:
        DataError: A source is missing.
    """
    return [
        Part(key=find_key(name, source, encoding, pieces), source=name, pieces=pieces)
        for name, source in sources.items()
        for pieces in _group(name, source, encoding, [record for record in known if record.source == name])
    ]


def find_key(name: str, source: SourceConfig, encoding: Encoding, pieces: Sequence[Piece]) -> str:
    """Hash whatever the shards of a part depend on; hexadecimal."""
    values = {
        "format": FORMAT,
        "name": name,
        "source": source.model_dump(mode="json", exclude=_NOT_IN_KEY),
        "encoding": {**asdict(encoding), "personal_data": encoding.personal_data.model_dump(mode="json")},
        "pieces": [asdict(piece) for piece in pieces],
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(values, sort_keys=True).encode())


def start_record(part: Part) -> PartRecord:
    """Make the record of a part of which nothing is done."""
    return PartRecord(
        format=FORMAT,
        key=part.key,
        source=part.source,
        pieces=[asdict(piece) for piece in part.pieces],
        is_finished=False,
        piece=0,
        items=0,
        bytes_done=0,
        shards={"train": [], "held_out": []},
        tally=Tally(),
    )


def write_record(layout: CorpusLayout, record: PartRecord) -> None:
    """Commit what is done of a part, complete or not at all.

    Raises:
        StorageError: The disk is full or refuses.
    """
    write_json(record_path(layout, record.key), record.model_dump(mode="json"))


def record_path(layout: CorpusLayout, key: str) -> Path:
    """Say where the record of a part lies."""
    return layout.parts / f"{key}.json"


def read_record(layout: CorpusLayout, part: Part) -> PartRecord:
    """Read what is committed of a part; nothing, where its record or one of its shards is not whole."""
    return _read(layout, record_path(layout, part.key)) or start_record(part)


def read_records(layout: CorpusLayout) -> list[PartRecord]:
    """Read all records whose shards are there, in the order of their keys."""
    found = (_read(layout, path) for path in sorted(layout.parts.glob("*.json")))
    return [record for record in found if record is not None]


def is_whole(root: Path, record: FileRecord) -> bool:
    """Say whether a file of the corpus is there with its size; its bytes are not read."""
    try:
        return (root / record.file).stat().st_size == record.bytes
    except OSError:
        return False


def _read(layout: CorpusLayout, path: Path) -> PartRecord | None:
    try:
        record = PartRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    shards = [shard for shards in record.shards.values() for shard in shards]
    if record.format != FORMAT or not all(is_whole(layout.root, shard) for shard in shards):
        return None
    return record


def _group(
    name: str, source: SourceConfig, encoding: Encoding, known: Sequence[PartRecord]
) -> list[tuple[Piece, ...]]:
    pieces = list_pieces(name, source)
    places = {_identify(asdict(piece)): place for place, piece in enumerate(pieces)}
    groups: list[list[int]] = []
    taken: set[int] = set()
    # The largest first: where two records claim a piece, every call and every job must decide alike.
    for record in sorted(known, key=lambda record: (-len(record.pieces), record.key)):
        found = [places.get(_identify(piece), -1) for piece in record.pieces]
        if -1 in found or not taken.isdisjoint(found):
            continue
        if find_key(name, source, encoding, [pieces[place] for place in found]) == record.key:
            groups.append(found)
            taken.update(found)
    groups += _group_new([place for place in range(len(pieces)) if place not in taken], pieces)
    return [tuple(pieces[place] for place in group) for group in sorted(groups)]


def _group_new(places: Sequence[int], pieces: Sequence[Piece]) -> list[list[int]]:
    groups: list[list[int]] = []
    room = 0
    for place in places:
        # Never over a gap: what is left of a plan after a kill must be cut as it was before.
        is_neighbour = bool(groups) and groups[-1][-1] == place - 1 and len(groups[-1]) < PART_PIECES
        if is_neighbour and pieces[place].bytes <= room:
            groups[-1].append(place)
        else:
            groups.append([place])
            room = PART_BYTES
        room -= pieces[place].bytes
    return groups


def _identify(piece: Mapping[str, Any]) -> str:
    return json.dumps(piece, sort_keys=True)
