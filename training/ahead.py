"""What would refuse a run once its ranks are up, looked at before they start: without torch, in a moment.

The ranks look again: between the two a corpus may change, and not all that starts them is the launcher.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.audit.gate import check_audit
from training.config.schema import RunConfig
from training.data.corpus.manifest import Manifest, SplitRecord, check_settings, few_held_out, read_manifest
from training.data.order.mixture import build_mixture
from training.data.order.packing import PackingCounts, add_counts, pack_documents
from training.data.order.plan import open_plan, read_counts
from training.layout import CorpusLayout

MOST_PACKED = 1_000_000
"""Documents that are packed only to be counted, which takes a second; more are packed for a plan alone."""


@dataclass(frozen=True, slots=True)
class _Named:
    id: str


@dataclass(frozen=True, slots=True)
class _TrainLengths:
    """The training split as a packing plan sees it; its documents are not read, and named by their number."""

    record: SplitRecord
    lengths: npt.NDArray[np.int32]
    plans_folder: Path

    def document(self, index: int) -> _Named:
        return _Named(_name_document(0, index))


def check_corpus(config: RunConfig, *, write: bool) -> list[str]:
    """Refuse a corpus that the ranks would refuse; ``data.path`` is a folder with a manifest.

    Args:
        config: The run.
        write: Whether a packing plan that is made for this may be kept for the ranks.

    Returns:
        What could not be looked at, in words.

    Raises:
        DataError: The corpus was prepared with other settings, is beyond a threshold of ``audit``, does not
            go with the mixture, or holds out too few documents.
        StorageError: The packing plan cannot be kept.
    """
    layout, notes = CorpusLayout(Path(config.data.path)), []
    manifest = read_manifest(layout.root)
    check_settings(manifest, config.data)
    if config.loop.evaluate_every_steps is not None:
        documents = sum(shard.documents for shard in manifest.splits["held_out"].shards)
        if documents <= config.evaluation.held_out_documents:
            raise few_held_out(config.data.path, documents, config.evaluation.held_out_documents)
    packings = _find_packings(layout, manifest, config, write=write)
    if packings is None:
        notes.append(
            "audit.max_cut, audit.min_density and data.mixture need the packed rows, which this many "
            "documents have when the run has started"
        )
    else:
        build_mixture(
            config.data.mixture,
            packings,
            global_batch_size=config.batch.global_batch_size,
            max_steps=config.loop.max_steps,
        )
    check_audit(manifest, packings or {}, config.batch.sequence_length, config.audit)
    return notes


def _find_packings(
    layout: CorpusLayout, manifest: Manifest, config: RunConfig, *, write: bool
) -> Mapping[str, PackingCounts] | None:
    record, length, policy = (
        manifest.splits["train"],
        config.batch.sequence_length,
        config.data.long_documents,
    )
    known = read_counts(layout.plans, record, length, policy)
    if known is not None:
        return known
    try:
        lengths = np.load(layout.root / record.lengths.file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None  # the ranks verify each file, and say what is wrong with it
    corpus = _TrainLengths(record, lengths, layout.plans)
    if write and os.access(layout.plans if layout.plans.exists() else layout.root, os.W_OK):
        return open_plan(corpus, length, policy).by_source
    return _count_packings(corpus, config) if len(lengths) <= MOST_PACKED else None


def _name_document(first: int, index: int) -> str:
    return f"number {first + index} of the train split"


def _count_packings(corpus: _TrainLengths, config: RunConfig) -> dict[str, PackingCounts]:
    """Pack shard by shard, as a plan is made, and keep the counts alone."""
    length, counts, first = config.batch.sequence_length, dict[str, PackingCounts](), 0
    for shard in corpus.record.shards:
        part = corpus.lengths[first : first + shard.documents]
        name_of = partial(_name_document, first)
        packing = pack_documents(part, length, config.data.long_documents, name_of)
        so_far = [counts[shard.source]] if shard.source in counts else []
        counts[shard.source] = add_counts([*so_far, packing.counts], length)
        first += shard.documents
    return counts
