"""From the records of all parts to the manifest: counts, duplicates, the index of lengths."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from training.config.sources import DataConfig
from training.data.corpus.duplicates import Duplicates, Numbers, find_duplicates
from training.data.corpus.manifest import (
    FORMAT,
    SPLITS,
    Counts,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    Split,
    SplitRecord,
    describe_settings,
    seal_manifest,
)
from training.data.corpus.parts import PartRecord
from training.data.corpus.shards import TokenBytes, map_shard, shard_tokens
from training.data.corpus.shingles import Documents
from training.data.corpus.tally import NO_COUNTS, Tally, add_counts, add_tables, add_tallies, subtract_counts
from training.data.documents import Provenance
from training.errors import DataError
from training.files import write_atomically
from training.layout import CorpusLayout

MOST_FILES_NAMED = 100

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """What the corpus remembers of its tokenizer."""

    fingerprint: str
    """The tokenizer's own, chat template included; hexadecimal."""

    chat_template: str | None
    """SHA-256 of the chat template alone; None where there is none."""

    padding_id: int
    token_bytes: TokenBytes


def assemble_manifest(
    data: DataConfig,
    tokenizer: TokenizerFacts,
    records: Sequence[PartRecord],
    traces: Mapping[str, Provenance],
) -> Manifest:
    """Compare the splits, write the index of lengths, and say what the corpus holds.

    Args:
        data: The corpus's configuration.
        tokenizer: What encoded it.
        records: Of all parts, finished, in the order of the sources and their pieces.
        traces: Source -> what it is made of.

    Raises:
        DataError: A source or a split is empty, or a shard is damaged.
        StorageError: The disk is full or refuses.
    """
    root = Path(data.path)
    tallies = {
        name: add_tallies(record.tally for record in records if record.source == name)
        for name in data.sources
    }
    shards: dict[Split, list[ShardRecord]] = {
        split: [shard for record in records for shard in record.shards[split]] for split in SPLITS
    }
    _check_documents(data, tallies, shards)
    found = find_duplicates(root, shards, data.duplicates.near_threshold)
    removed = np.union1d(found.exact, found.near)
    splits = {
        split: _assemble_split(
            CorpusLayout(root),
            shards[split],
            add_tables(tally.by_task[split] for tally in tallies.values()),
            removed if split == "train" else removed[:0],
        )
        for split in SPLITS
    }
    if not splits["train"].counts.documents:
        raise DataError(
            f"data.path={root}: all {len(removed)} train documents are held out as well, word for word or "
            "nearly; the sources hold one document many times"
        )
    owners = np.array([shard.source for shard in shards["train"]])
    places = Documents(root, shards["train"])
    manifest = Manifest(
        format=FORMAT,
        fingerprint="",
        tokenizer=tokenizer.fingerprint,
        chat_template=tokenizer.chat_template,
        settings=describe_settings(data),
        padding_id=tokenizer.padding_id,
        token_bytes=tokenizer.token_bytes,
        sources={
            name: _describe_source(tally, traces[name], _count_of(name, owners, places, found))
            for name, tally in tallies.items()
        },
        splits=splits,
    )
    return seal_manifest(manifest)


def _check_documents(
    data: DataConfig, tallies: Mapping[str, Tally], shards: Mapping[Split, Sequence[ShardRecord]]
) -> None:
    for name, tally in tallies.items():
        if not tally.documents:
            left_out = sum(tally.skipped.values()) + sum(tally.personal_data.values())
            reason = f"; {left_out} were left out: {tally.skipped | tally.personal_data}" if left_out else ""
            raise DataError(
                f"data.sources.{name}: no documents; nothing can be learnt from an empty source{reason}"
            )
    if not any(shards.values()):
        total = sum(tally.documents for tally in tallies.values())
        raise DataError(f"data.sources: none of {total} documents holds a target; nothing could be learnt")
    for split in SPLITS:
        if not shards[split]:
            documents = sum(shard.documents for other in shards.values() for shard in other)
            raise DataError(
                f"the {split} split is empty: data.held_out_fraction={data.held_out_fraction} and "
                f"data.split_seed={data.split_seed} put none of {documents} documents there; "
                "change one of them"
            )


def _assemble_split(
    layout: CorpusLayout, shards: list[ShardRecord], by_task: dict[str, Counts], removed: Numbers
) -> SplitRecord:
    lengths = np.concatenate([np.diff(shard_tokens(map_shard(layout.root, shard))[1]) for shard in shards])
    tasks, sources = _count_removed(layout.root, shards, removed)
    by_source = add_tables(
        {shard.source: Counts(documents=shard.documents, tokens=shard.tokens, targets=shard.targets)}
        for shard in shards
    )
    by_source = {name: subtract_counts(own, sources.get(name, NO_COUNTS)) for name, own in by_source.items()}
    kept = np.delete(lengths, removed)
    lengths[removed] *= -1
    percentiles = (
        np.percentile(kept, PERCENTILES, method="lower") if len(kept) else np.zeros(len(PERCENTILES))
    )
    return SplitRecord(
        counts=add_counts(by_source.values()),
        by_source=by_source,
        by_task={name: subtract_counts(own, tasks.get(name, NO_COUNTS)) for name, own in by_task.items()},
        length_percentiles={
            str(percent): int(length) for percent, length in zip(PERCENTILES, percentiles, strict=True)
        },
        lengths=_write_index(layout, lengths.astype(np.int32)),
        shards=shards,
    )


def _count_removed(
    root: Path, shards: Sequence[ShardRecord], removed: Numbers
) -> tuple[dict[str, Counts], dict[str, Counts]]:
    """Count removed documents by task and by source."""
    documents = Documents(root, shards)
    sums: Counter[tuple[str, str, str]] = Counter()
    places = documents.find_shards(removed)
    for place in np.unique(places):
        batch = map_shard(root, shards[place])
        bounds = shard_tokens(batch)[1]
        targets = np.add.reduceat(batch.column("is_target").values.to_numpy(), bounds[:-1], dtype=np.int64)
        rows = removed[places == place] - documents.first(int(place))
        names = batch.column("task").take(rows).to_pylist()
        for row, task in zip(rows, names, strict=True):
            tokens = int(bounds[row + 1] - bounds[row])
            for kind, name in (("task", task), ("source", shards[place].source)):
                sums[kind, name, "documents"] += 1
                sums[kind, name, "tokens"] += tokens
                sums[kind, name, "targets"] += int(targets[row])
    return _to_table(sums, "task"), _to_table(sums, "source")


def _to_table(sums: Counter[tuple[str, str, str]], kind: str) -> dict[str, Counts]:
    return {
        name: Counts(**{quantity: sums[kind, name, quantity] for quantity in Counts.model_fields})
        for name in {name for own, name, _ in sums if own == kind}
    }


def _write_index(layout: CorpusLayout, lengths: npt.NDArray[np.int32]) -> FileRecord:
    stream = io.BytesIO()
    np.save(stream, lengths)
    content = stream.getvalue()
    checksum = xxhash.xxh3_128_hexdigest(content)
    path = layout.index / f"{checksum}.npy"

    def write(partial: Path) -> None:
        partial.write_bytes(content)

    write_atomically(path, write)
    return FileRecord(file=f"{path.parent.name}/{path.name}", checksum=checksum, bytes=len(content))


def _count_of(
    name: str, owners: npt.NDArray[np.str_], places: Documents, found: Duplicates
) -> dict[str, int]:
    fields = {"removed_exact": found.exact, "removed_near": found.near, "repeated": found.repeated}
    return {
        field: int(np.count_nonzero(owners[places.find_shards(numbers)] == name))
        for field, numbers in fields.items()
    }


def _describe_source(tally: Tally, trace: Provenance, removed: dict[str, int]) -> SourceRecord:
    counted: dict[str, Any] = tally.model_dump(exclude={"by_task"}) | removed
    provenance = {**_brief(_without_times(trace.content)), **trace.notes}
    return SourceRecord(provenance=provenance, licence=trace.licence, **counted)


def _without_times(value: Any) -> Any:
    # A file that is copied or touched is the same file: its time would make another manifest of it.
    if isinstance(value, dict):
        return {key: _without_times(own) for key, own in value.items() if key != "modified_ns"}
    return value


def _brief(content: dict[str, Any]) -> dict[str, Any]:
    """Name all files where they are few; else say how many there are, as every run reads the manifest."""
    sizes = [entry.get("bytes") for entry in content.values() if isinstance(entry, dict)]
    if len(sizes) <= MOST_FILES_NAMED:
        return content
    return {"files": len(sizes), "bytes": sum(size or 0 for size in sizes)}
