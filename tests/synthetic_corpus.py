"""A prepared corpus of made-up tokens, written straight from arrays: any size in seconds.

And a plan and an order of it that are simple enough to be seen through, for tests of what reads them.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from training.data.corpus.manifest import (
    FORMAT,
    Counts,
    FileRecord,
    Manifest,
    ShardRecord,
    SourceRecord,
    SplitRecord,
    seal_manifest,
    write_manifest,
)
from training.data.corpus.shards import shard_schema
from training.data.reading.reader import Corpus
from training.layout import CorpusLayout

PADDING_ID = 7
PERCENTS = (0, 5, 25, 50, 75, 95, 99, 100)


def write_corpus(
    root: Path,
    lengths: Mapping[str, npt.NDArray[np.integer]],
    *,
    tokens_per_shard: int,
    token_bytes: Literal[2, 4] = 2,
    vocabulary: int = 8000,
    prompts: bool = True,
) -> Manifest:
    """Write a corpus whose train split has, per source, documents of these lengths, and 3 held-out ones.

    With ``prompts`` every other document of a shard is a prompt, its first third, and an answer; the rest are
    all targets. The same call writes the same bytes.
    """
    layout = CorpusLayout(root)
    rng = np.random.default_rng(5)
    train = [
        write_shard(
            root, name, part, token_bytes, rng.integers(8, vocabulary, int(part.sum())), prompts=prompts
        )
        for name, every in lengths.items()
        for part in cut(every, tokens_per_shard)
    ]
    first = next(iter(lengths))
    held_out = [write_shard(root, first, np.array([9, 8, 7]), token_bytes, rng.integers(8, vocabulary, 24))]
    manifest = Manifest(
        format=FORMAT,
        fingerprint="",
        tokenizer="t",
        chat_template=None,
        settings={},
        padding_id=PADDING_ID,
        token_bytes=token_bytes,
        sources={name: describe(len(every)) for name, every in lengths.items()},
        splits={
            "train": split(layout, train, np.concatenate(list(lengths.values()))),
            "held_out": split(layout, held_out, np.array([9, 8, 7])),
        },
    )
    manifest = seal_manifest(manifest)
    write_manifest(layout, manifest)
    return manifest


def cut(lengths: npt.NDArray[np.integer], tokens_per_shard: int) -> list[npt.NDArray[np.integer]]:
    shards = (np.cumsum(lengths) - lengths) // tokens_per_shard
    return np.split(lengths, np.flatnonzero(np.diff(shards)) + 1)


def write_shard(
    root: Path,
    source: str,
    lengths: npt.NDArray[np.integer],
    token_bytes: Literal[2, 4],
    tokens: npt.NDArray[np.integer],
    *,
    prompts: bool = True,
) -> ShardRecord:
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
    asked = lengths // 3 * (np.arange(len(lengths)) % 2) * prompts
    is_target = (within >= np.repeat(asked, lengths)).astype(np.uint8)
    names = [f"{source}:{number}" for number in range(len(lengths))]
    schema = shard_schema(token_bytes)
    columns = [
        pa.array(names, pa.string()),
        pa.array([source] * len(lengths), pa.string()),
        pa.array(names, pa.string()),
        pa.array(["text"] * len(lengths), pa.string()),
        pa.ListArray.from_arrays(bounds, tokens.astype(f"u{token_bytes}")),
        pa.ListArray.from_arrays(bounds, is_target),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    record = write_file(root, "shards", ".arrow", sink.getvalue().to_pybytes())
    return ShardRecord(
        **record.model_dump(),
        source=source,
        documents=len(lengths),
        tokens=int(bounds[-1]),
        targets=int(is_target.sum()),
    )


def write_file(root: Path, folder: str, suffix: str, content: bytes) -> FileRecord:
    checksum = xxhash.xxh3_128_hexdigest(content)
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / f"{checksum}{suffix}").write_bytes(content)
    return FileRecord(file=f"{folder}/{checksum}{suffix}", checksum=checksum, bytes=len(content))


def split(layout: CorpusLayout, shards: list[ShardRecord], lengths: npt.NDArray[np.integer]) -> SplitRecord:
    path = layout.root / "lengths.npy"
    np.save(path, lengths.astype(np.int32))
    index = write_file(layout.root, layout.index.name, ".npy", path.read_bytes())
    path.unlink()
    counts = add(shards)
    return SplitRecord(
        counts=counts,
        by_source={
            name: add([shard for shard in shards if shard.source == name])
            for name in dict.fromkeys(shard.source for shard in shards)
        },
        by_task={"text": counts},
        length_percentiles={str(percent): int(np.percentile(lengths, percent)) for percent in PERCENTS},
        lengths=index,
        shards=shards,
    )


def add(shards: list[ShardRecord]) -> Counts:
    return Counts(
        documents=sum(shard.documents for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        targets=sum(shard.targets for shard in shards),
    )


def describe(documents: int) -> SourceRecord:
    return SourceRecord(
        provenance={},
        licence="none",
        documents=documents,
        without_targets=0,
        skipped={},
        personal_data={},
        control_tokens=0,
        turns=0,
        turns_ended=0,
        removed_exact=0,
        removed_near=0,
        repeated=0,
    )


class NextFitPlan:
    """Each shard's documents one after the other; a new row where the next does not fit."""

    def __init__(self, corpus: Corpus, sequence_length: int) -> None:
        self.rows = [
            pack(corpus.shard(s).offsets.tolist(), sequence_length) for s in range(shards_of(corpus))
        ]
        counts = [len(row) for rows in self.rows for row in rows]
        pieces = [piece for rows in self.rows for row in rows for piece in row]
        self.first_rows = [sum(map(len, self.rows[:shard])) for shard in range(shards_of(corpus))]
        self.row_bounds = np.cumsum([0, *counts])
        self.begins = np.array([begin for begin, _ in pieces], dtype=np.int32)
        self.ends = np.array([end for _, end in pieces], dtype=np.int32)


def shards_of(corpus: Corpus) -> int:
    return len(corpus.record.shards)


def pack(bounds: list[int], sequence_length: int) -> list[list[tuple[int, int]]]:
    rows: list[list[tuple[int, int]]] = []
    left = 0
    for begin, end in itertools.pairwise(bounds):
        if end - begin > left:
            rows.append([])
            left = sequence_length
        rows[-1].append((begin, end))
        left -= end - begin
    return rows


@dataclass(frozen=True)
class FakeSamples:
    """As the order's own."""

    shards: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ShuffledOrder:
    """All rows in one order, again and again; a global batch is listed by shard, as that of lanes is."""

    plan: NextFitPlan
    global_batch_size: int

    @cached_property
    def line(self) -> npt.NDArray[np.int32]:
        """int32 [samples, 2]: shard and row."""
        every = [(shard, row) for shard, rows in enumerate(self.plan.rows) for row in range(len(rows))]
        return np.random.default_rng(3).permutation(np.array(every, dtype=np.int32))

    def batch(self, position: int, steps: int = 1) -> FakeSamples:
        batches = []
        for first in range(position, position + steps * self.global_batch_size, self.global_batch_size):
            mine = self.line[np.arange(first, first + self.global_batch_size) % len(self.line)]
            batches.append(mine[np.argsort(mine[:, 0], kind="stable")])
        every = np.concatenate(batches)
        return FakeSamples(every[:, 0], every[:, 1])
