"""One rank's share of a checkpoint: what it holds, laid out as its file will be, and its way to the disk."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from training.checkpoint.manifest import FileRecord
from training.fragments.fragment import NAMES, Fragment
from training.fragments.index import Piece, lay_out

_CHUNK_BYTES = 8 << 20
_WRITE_BYTES = 1 << 20  # what the checksum has read is then still in the processor's cache


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank writes: tensors, each with its first byte in the file, in that order."""

    pieces: tuple[Piece, ...]
    tensors: tuple[tuple[int, Tensor], ...]
    size: int

    on_disk: bool = False
    """Some of it is files already; it is written from there, without a copy in memory."""


class HostBuffer:
    """Memory of this process for one rank's share, kept from one save to the next.

    It is the only memory that a save costs: as many bytes as the share has, pinned beside a GPU.
    """

    def __init__(self) -> None:
        """Take no memory yet."""
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def copy(self, share: Share, ready: torch.cuda.Event | None) -> Share:
        """Copy a share, so that what it was made of may change.

        Args:
            share: Views of tensors that nobody changes meanwhile.
            ready: From ``mark_ready``: when the device has done what the share is to show.
        """
        device = _find_gpu(share)
        if len(self._bytes) != share.size:
            self._bytes = torch.empty(0, dtype=torch.uint8)
            self._bytes = torch.zeros(share.size, dtype=torch.uint8, pin_memory=device is not None)
        if device is None:
            self._copy(share)
        else:
            # A stream of its own: the copies run beside the next forward pass, not behind it.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.device(device), torch.cuda.stream(stream):
                if ready is not None:
                    stream.wait_event(ready)
                self._copy(share)
                stream.synchronize()
        return Share(share.pieces, ((0, self._bytes),), share.size)

    def _copy(self, share: Share) -> None:
        target = self._bytes.numpy()
        for place, tensor in share.tensors:
            if tensor.is_cuda:
                self._bytes[place : place + tensor.nbytes].view(tensor.dtype).copy_(tensor, non_blocking=True)
            else:
                # By numpy, in this thread alone: torch would start as many threads as the training has.
                target[place : place + tensor.nbytes] = tensor.view(torch.uint8).numpy()


def mark_ready(share: Share) -> torch.cuda.Event | None:
    """Mark in the queue of a share's GPU that its tensors are now what is to be copied; None on a CPU."""
    device = _find_gpu(share)
    if device is None:
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _find_gpu(share: Share) -> torch.device | None:
    return next((tensor.device for _, tensor in share.tensors if tensor.is_cuda), None)


def plan_share(fragments: Iterable[Fragment]) -> Share:
    """Lay fragments end to end; their tensors are looked at, not copied."""
    pieces, tensors, offset, on_disk = [], [], 0, False
    for fragment in fragments:
        keys = {key: NAMES[tensor.dtype] for key, tensor in fragment.tensors.items()}
        start, stop, runs = fragment.stretch
        places, free = lay_out(stop - start, keys, offset)
        pieces.append(
            Piece(
                name=fragment.name,
                shape=fragment.shape,
                keys=keys,
                scalars=fragment.scalars,
                start=start,
                stop=stop,
                offset=offset,
                runs=runs,
            )
        )
        tensors += [(places[key], tensor.detach()) for key, tensor in fragment.tensors.items()]
        offset, on_disk = free, on_disk or fragment.on_disk
    return Share(tuple(pieces), tuple(tensors), offset, on_disk)


def write_share(path: Path, share: Share) -> FileRecord:
    """Write a share into a new file; returns once a power cut could not lose it.

    Raises:
        OSError: The disk is full or refuses.
    """
    return write_durably(path, _stretches(share))


def _stretches(share: Share) -> Iterator[memoryview]:
    reached = 0
    for place, tensor in share.tensors:
        if place > reached:
            yield memoryview(bytes(place - reached))
        step = _CHUNK_BYTES // tensor.element_size()
        for first in range(0, len(tensor), step):
            # A GPU's memory passes through this process a chunk at a time; a CPU's is not copied.
            chunk = tensor[first : first + step].cpu()
            yield memoryview(chunk.view(torch.uint8).numpy().data)
        reached = place + tensor.nbytes


def write_durably(path: Path, stretches: Iterable[memoryview]) -> FileRecord:
    """Write a new file, its checksum taken on the way.

    Raises:
        OSError: The disk is full or refuses.
    """
    digest, size = xxhash.xxh3_128(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for stretch in stretches:
            for first in range(0, len(stretch), _WRITE_BYTES):
                chunk = stretch[first : first + _WRITE_BYTES]
                digest.update(chunk)
                size += len(chunk)
                while chunk:
                    chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return FileRecord(path=path.name, size=size, checksum=digest.hexdigest())
