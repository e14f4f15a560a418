"""Reads and writes tensors on the node's disk, in the place of DeepSpeed's own asynchronous I/O.

DeepSpeed's (0.19) is compiled against libaio at the first start, for minutes, and does not look at the disk's
answers: a write that found no space, or a read to an address that the disk refuses, goes unnoticed. This one
asks for large pieces from a few threads, past the page cache where the file system can, and every answer is
looked at. Its names and arguments are those that DeepSpeed's swappers use.
"""

import errno
import mmap
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import torch
from deepspeed.runtime.swap_tensor import partitioned_optimizer_swapper, partitioned_param_swapper
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from torch import Tensor

from training.errors import StorageError

_THREADS = 8
_PIECE_BYTES = 8 << 20
_TOO_SHORT = "the file is shorter than it was"
ALIGNMENT = 4096
"""Addresses and lengths of direct I/O are multiples of this: what every disk takes."""


class DiskHandle:
    """Tensors on their way to and from files, and memory that is fit for it."""

    _living: ClassVar[weakref.WeakSet["DiskHandle"]] = weakref.WeakSet()

    def __init__(self, **_: object) -> None:
        """Have nothing on its way; queue depths and the like are DeepSpeed's own."""
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")
        self._pending: list[tuple[str, int, list[Future[None]]]] = []
        self._buffers: dict[int, Tensor] = {}
        self._living.add(self)

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        """Begin to fill ``buffer`` from a file; give 0.

        Raises:
            StorageError: It cannot be opened.
        """
        return self._begin(os.preadv, os.O_RDONLY, buffer, path, offset)

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        """Begin to write ``buffer`` into a file; give 0.

        Raises:
            StorageError: It cannot be opened.
        """
        return self._begin(os.pwritev, os.O_WRONLY | os.O_CREAT, buffer, path, offset)

    def wait(self) -> int:
        """Wait for all that was begun; give how many tensors that were.

        Raises:
            StorageError: The disk refused one of them, for instance because it is full.
        """
        pending, self._pending = self._pending, []
        refusal: StorageError | None = None
        for path, descriptor, pieces in pending:
            for piece in pieces:
                error = piece.exception()
                if error is not None and not isinstance(error, OSError):
                    raise error
                refusal = refusal or (_explain(path, error) if error else None)
            os.close(descriptor)
        if refusal is not None:
            raise refusal
        return len(pending)

    def new_cpu_locked_tensor(self, elements: int, like: Tensor) -> Tensor:
        """Make a tensor [elements] of the dtype of ``like`` from and to which the disk can transfer."""
        if torch.cuda.is_available():
            made = torch.empty(int(elements), dtype=like.dtype, pin_memory=True)
        else:
            pages = mmap.mmap(-1, max(int(elements) * like.element_size(), 1))
            made = torch.frombuffer(pages, dtype=like.dtype, count=int(elements))
        self._buffers[made.data_ptr()] = made
        return made

    def free_cpu_locked_tensor(self, tensor: Tensor) -> bool:
        """Let go of such a tensor; say whether it was one."""
        return self._buffers.pop(tensor.data_ptr(), None) is not None

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in memory that some handle has made."""
        place = tensor.data_ptr()
        return any(
            start <= place < start + made.nbytes
            for handle in self._living
            for start, made in handle._buffers.items()
        )

    def _begin(self, transfer: Callable[..., int], flags: int, buffer: Tensor, path: str, offset: int) -> int:
        view = buffer.detach().view(torch.uint8).numpy().data
        try:
            descriptor = _open(
                path, flags, direct=buffer.data_ptr() % ALIGNMENT == 0 == view.nbytes % ALIGNMENT
            )
        except OSError as error:
            raise _explain(path, error) from None
        pieces = [
            self._threads.submit(
                _transfer, transfer, descriptor, view[start : start + _PIECE_BYTES], offset + start
            )
            for start in range(0, view.nbytes, _PIECE_BYTES)
        ]
        self._pending.append((path, descriptor, pieces))
        return 0


def _open(path: str, flags: int, *, direct: bool) -> int:
    if direct:
        try:
            return os.open(path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system has no direct I/O
                raise
    return os.open(path, flags, 0o600)


def _transfer(transfer: Callable[..., int], descriptor: int, piece: memoryview, offset: int) -> None:
    while piece:
        count = transfer(descriptor, [piece], offset)
        if count == 0:
            raise OSError(errno.EIO, _TOO_SHORT)
        piece, offset = piece[count:], offset + count


def _explain(path: str, error: BaseException) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error)
    number = getattr(error, "errno", None)
    if number == errno.ENOENT or (number == errno.EIO and reason == _TOO_SHORT):
        what = "something else removes or changes files there; name a folder that is this run's alone"
    else:
        what = "free some space on that disk, name a folder on another, or use strategy=zero3_offload"
    return StorageError(f"strategy.nvme_path: {path} cannot be read or written ({reason}); {what}")


class _Builder:
    """What DeepSpeed's swappers ask for their I/O."""

    aio_handle = DiskHandle

    def load(self, verbose: bool = False) -> "_Builder":
        return self


def serve_swappers() -> None:
    """Have DeepSpeed's swappers use this I/O; harmless when repeated."""
    for module in (partitioned_optimizer_swapper, partitioned_param_swapper):
        users: Any = module
        users.AsyncIOBuilder = _Builder
    gathering: Any = partition_parameters
    gathering.NoGatherHandle = _LeavingBuffer
    gathering.NoGatherCoalescedHandle = _LeavingBuffers


def _leave_buffer(parameter: Any) -> None:
    """Give a parameter that lies in a buffer of the swapper memory of its own.

    One rank has nothing to gather, and on a CPU DeepSpeed (0.19) makes the buffer itself the parameter. The
    buffer is soon another's, while autograd still holds views of the weights that it was read for.
    """
    partition = parameter.ds_tensor
    if partition.final_location == OffloadDeviceEnum.nvme and parameter.data_ptr() == partition.data_ptr():
        parameter.data = parameter.data.clone()


class _LeavingBuffer(partition_parameters.NoGatherHandle):  # type: ignore[misc]
    def __init__(self, param: Any) -> None:
        super().__init__(param)
        _leave_buffer(param)


class _LeavingBuffers(partition_parameters.NoGatherCoalescedHandle):  # type: ignore[misc]
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for each in params:
            _leave_buffer(each)
