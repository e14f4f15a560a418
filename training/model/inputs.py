"""What goes through the model in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The label of a position that is no target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """``micro_batch_size`` packed rows laid end to end: documents side by side, none sees another.

    N = micro_batch_size x sequence_length.
    """

    input_ids: Tensor
    """int64 [1, N]."""

    labels: Tensor
    """int64 [1, N]; what comes after this token, IGNORE_INDEX where that is no target. Shifted already."""

    position_ids: Tensor
    """int64 [1, N]; restarts at 0 with each document."""

    document_bounds: tuple[int, ...]
    """Where each document begins in N, and N at the end; a row's padding is a document of its own."""

    source_ids: tuple[int, ...]
    """The source number of each document, in the order of ``document_bounds``; 0 for padding."""

    tokens: int
    """Tokens that are no padding."""

    targets: int
    """Labels that are not IGNORE_INDEX."""

    first_token: int = 0
    """Of a stretch of a larger batch: its first token's place there, where ``document_bounds`` lie."""

    def to(self, device: torch.device) -> "Batch":
        """Copy the tensors to ``device``; the bounds stay with the host, which cuts the attention by them."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
        )


def find_targets(batch: Batch) -> Tensor:
    """Find the places in N that have a label, int64 [targets], on the batch's device."""
    # The count is known, so that the GPU need not be waited for, as nonzero() would.
    return torch.nonzero_static(batch.labels[0] != IGNORE_INDEX, size=batch.targets)[:, 0]


def find_owners(batch: Batch, places: Tensor) -> Tensor:
    """Give the document that each place in N belongs to, int64 [P], by its number in the batch."""
    # Copies from ordinary memory are staged by the driver: the GPU is not waited for here either.
    starts = torch.tensor(batch.document_bounds[:-1], dtype=torch.int64).to(places.device, non_blocking=True)
    return torch.searchsorted(starts, places + batch.first_token, right=True) - 1


def find_target_sources(batch: Batch, places: Tensor) -> Tensor:
    """Give the source number of each place in N, int64 [P]."""
    numbers = torch.tensor(batch.source_ids, dtype=torch.int64).to(places.device, non_blocking=True)
    return numbers.index_select(0, find_owners(batch, places))


def count_targets_by_source(batch: Batch, sources: int) -> list[int]:
    """Count the targets of each source, ``sources`` numbers; the batch must lie on the CPU."""
    if sources == 1:
        return [batch.targets]
    owners = find_target_sources(batch, find_targets(batch))
    return [int(count) for count in torch.bincount(owners, minlength=sources).tolist()]


def lay_documents(ids: Sequence[npt.NDArray[np.integer]], labels: Sequence[npt.NDArray[np.int64]]) -> Batch:
    """Lay whole documents end to end as one row without padding, all of source 0.

    Args:
        ids: Of each document, [L].
        labels: Of each document, [L], shifted already.
    """
    sizes = [document.size for document in ids]
    joined = np.concatenate(labels)
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        labels=torch.from_numpy(joined)[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(size) for size in sizes]))[None],
        document_bounds=tuple(int(bound) for bound in np.cumsum([0, *sizes])),
        source_ids=(0,) * len(sizes),
        tokens=sum(sizes),
        targets=int((joined != IGNORE_INDEX).sum()),
    )


def cut_rows(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Group places so that the lengths of a group sum to no more than ``tokens_per_batch``.

    Equal lengths come together, which the per-document attention does in one call; longest first.
    """
    rows: list[list[int]] = []
    room = 0
    for place in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[place] > room or not rows:
            rows.append([])
            room = tokens_per_batch
        rows[-1].append(place)
        room -= lengths[place]
    return rows


def shift_labels(
    input_ids: npt.NDArray[np.integer], is_target: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Give for each token of a document its successor where that is a target, IGNORE_INDEX elsewhere; [L]."""
    labels = np.full(input_ids.size, IGNORE_INDEX, dtype=np.int64)
    wanted = is_target[1:]
    labels[:-1][wanted] = input_ids[1:][wanted]
    return labels
