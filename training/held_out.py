"""The loss of held-out documents while a run is trained: shared out over the ranks, each document once."""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from training.collectives import sum_over_ranks
from training.data.corpus.manifest import few_held_out
from training.data.reading.mapped import StoredDocument
from training.data.reading.reader import Corpus
from training.early_stop import HeldOutLoss
from training.model.inputs import Batch, cut_rows, lay_documents, shift_labels
from training.ranks import Ranks


class HeldOutDocuments:
    """Some documents and how the ranks share them; every rank makes as many forward passes as the others."""

    def __init__(
        self,
        documents: Sequence[StoredDocument],
        sources: Sequence[str],
        ranks: Ranks,
        *,
        tokens_per_batch: int,
        together: int = 1,
    ) -> None:
        """Lay this rank's documents side by side.

        Args:
            documents: The same on every rank; each has a target.
            sources: Names of the corpus' sources, in the order of their numbers.
            ranks: Who shares them.
            tokens_per_batch: Most tokens of a forward pass; a longer document has a pass of its own.
            together: Neighbouring ranks that make each pass together, and so have the same documents.
        """
        numbers = {name: number for number, name in enumerate(sources)}
        self._sources = sources
        self._targets = np.zeros(len(sources), dtype=np.int64)
        for document in documents:
            self._targets[numbers[document.source]] += document.is_target[1:].sum()
        rows = cut_rows([document.input_ids.size for document in documents], tokens_per_batch)
        teams = ranks.world_size // together
        mine = rows[ranks.rank // together :: teams]
        passes = -(-len(rows) // teams)
        # ZeRO-3 gathers a layer when all ranks ask for it: who has nothing left asks with the shortest row.
        idle = [rows[-1]] * (passes - len(mine))
        self._counted = 0 if ranks.rank % together else len(mine)
        self._batches = [_lay([documents[place] for place in row], numbers) for row in [*mine, *idle]]

    def measure(
        self, nats_by_source: Callable[[Batch], Sequence[float]], device: torch.device
    ) -> HeldOutLoss:
        """Sum the nats of all documents over all ranks, in fp64. Collective.

        Args:
            nats_by_source: Runs the model, dropout off; on every rank at the same time.
            device: Where sums travel.
        """
        started = time.perf_counter()
        nats = np.zeros(len(self._sources))
        for number, batch in enumerate(self._batches):
            found = np.asarray(nats_by_source(batch))
            if number < self._counted:
                nats += found
        sums = sum_over_ranks(nats.tolist(), device)
        counts = self._targets.tolist()
        told = zip(self._sources, sums, counts, strict=True)
        return HeldOutLoss(
            loss=sum(sums) / sum(counts),
            by_source={name: total / count for name, total, count in told if count},
            seconds=time.perf_counter() - started,
        )


def draw_held_out(
    corpus: Corpus, *, first: int, size: int, sequence_length: int, salt: int
) -> list[StoredDocument]:
    """Take ``size`` documents from place ``first`` of the shuffled order on; fewer when there are no more.

    The places before are those of `metier evaluate`: what a run is stopped by is not what it is judged by.

    Args:
        corpus: The held-out split.
        first: Documents to pass over.
        size: Documents to take.
        sequence_length: Longer documents are cut to this.
        salt: Of the order; the corpus' own.

    Raises:
        DataError: Not one document with a target is left.
        StorageError: A shard cannot be fetched.
    """
    places = shuffle(len(corpus), salt)[first : first + size]
    found = [_cut(corpus.document(int(place)), sequence_length) for place in places]
    found = [document for document in found if document.is_target[1:].any()]
    if not found:
        raise few_held_out(corpus.path, len(corpus), first)
    return found


def shuffle(size: int, salt: int) -> npt.NDArray[np.int64]:
    """Give 0..size-1, int64 [size], in an order that looks random and is always the same.

    Not even distances: questions often come in a rhythm (four about each code), and an even step would
    meet the same kind every time.
    """
    generator = np.random.default_rng([salt, zlib.crc32(b"evaluation")])
    return generator.permutation(size)


def _cut(document: StoredDocument, tokens: int) -> StoredDocument:
    return replace(document, input_ids=document.input_ids[:tokens], is_target=document.is_target[:tokens])


def _lay(documents: Sequence[StoredDocument], numbers: dict[str, int]) -> Batch:
    batch = lay_documents(
        [document.input_ids for document in documents],
        [shift_labels(document.input_ids, document.is_target) for document in documents],
    )
    return replace(batch, source_ids=tuple(numbers[document.source] for document in documents))
