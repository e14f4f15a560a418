"""The node's own copy of a model folder: made once, complete or absent, shared by all processes of the node.

What keeps processes apart is flock alone, which the kernel takes back from whoever is killed. A copy has two
locks: who looks whether it is there, makes it or evicts it holds the first alone; who reads it shares the
second, so that nobody evicts it. The first is held for no longer than that: ranks that read must not keep one
waiting that comes later, or they would wait for each other in the next collective. flock needs a file system
of this machine, which a cache should be on anyway.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from training.config.learning import ModelConfig
from training.config.schema import LoaderConfig
from training.errors import ModelError, StorageError
from training.files import file_checksum, sync_folder, write_json
from training.model.place import find_model_folder

_RECORD = ".metier_copy.json"
_PARTIAL = ".partial"
_MAKING = ".making"
_ROOM = "room"
_LOCKS = "locks"
_CHUNK_BYTES = 1 << 22
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_OTHER_WEIGHTS = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


@dataclass(frozen=True, slots=True)
class Copy:
    """A model folder on the node's own disk."""

    folder: Path
    copied_bytes: int
    """What this process copied; 0 where the copy was there already."""


@contextlib.contextmanager
def staged(source: Path, cache: Path, limit_bytes: int) -> Iterator[Copy]:
    """Give this node's copy of ``source``, made where it is not there; it stays while the context lasts.

    A copy is named after what it was made of: another model in the same place gets another one. Its bytes are
    compared with checksums when it is made, and again by the first who uses it after the node was started.

    Args:
        source: A model folder on a shared disk.
        cache: A folder on the node's own disk.
        limit_bytes: What all copies together may have; the least recently used go first.

    Raises:
        ModelError: The folder cannot be read.
        StorageError: There is no room, or the disk refuses.
    """
    sizes, name = _look_at(source)
    copied = 0
    with _telling(cache), _locked(cache, name + _MAKING, fcntl.LOCK_EX):
        if not _is_whole(cache / name, sizes):
            _make(source, cache / name, sizes, limit_bytes)
            copied = sum(sizes.values())
        with contextlib.suppress(PermissionError):  # another user's: it ages, that is all
            os.utime(cache / name)
        reading = _lock(cache, name, fcntl.LOCK_SH)
    try:
        yield Copy(cache / name, copied)
    finally:
        os.close(reading)


@contextlib.contextmanager
def near_model(model: ModelConfig, loader: LoaderConfig) -> Iterator[ModelConfig]:
    """Give the settings of a model that lies on this node's disk, if they ask for a copy there.

    What comes from the hub lies in the hub's own cache.

    Raises:
        ModelError: As ``staged``.
        StorageError: As ``staged``.
    """
    folder = Path(find_model_folder(model))
    if loader.model_cache_path is None or not folder.is_dir():
        yield model
        return
    with staged(folder, Path(loader.model_cache_path).expanduser(), loader.model_cache_bytes) as copy:
        yield model.model_copy(update={"source": "huggingface", "path": str(copy.folder)})


def _look_at(source: Path) -> tuple[dict[str, int], str]:
    """List the files that loading needs with their sizes, and name what they are."""
    try:
        states = {path.name: path.stat() for path in sorted(source.iterdir()) if path.is_file()}
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror}); check model.path") from error
    if any(name.endswith(".safetensors") for name in states):
        kept = {name for name in states if Path(name).suffix not in _OTHER_WEIGHTS}
        states = {name: states[name] for name in kept if not name.startswith("consolidated")}
    facts = sorted((name, state.st_size, state.st_mtime_ns) for name, state in states.items())
    digest = xxhash.xxh3_128_hexdigest(json.dumps([str(source.resolve()), facts]).encode())
    return {name: state.st_size for name, state in states.items()}, digest


def _is_whole(copy: Path, sizes: dict[str, int]) -> bool:
    """Whether a copy is there and is what it was when it was made."""
    try:
        record = json.loads((copy / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    if any(
        not (copy / name).is_file() or (copy / name).stat().st_size != size for name, size in sizes.items()
    ):
        return False
    boot = _BOOT.read_text(encoding="ascii").strip()
    if record["boot"] != boot:
        if any(file_checksum(copy / name) != record["checksums"][name] for name in sizes):
            return False
        write_json(copy / _RECORD, record | {"boot": boot})
    return True


def _make(source: Path, copy: Path, sizes: dict[str, int], limit_bytes: int) -> None:
    """Copy a folder beside its place, compare it with what was read, and rename it there."""
    partial = copy.with_name(copy.name + _PARTIAL)
    for leftover in (partial, copy):
        shutil.rmtree(leftover, ignore_errors=True)
    with _locked(copy.parent, _ROOM, fcntl.LOCK_EX):
        _make_room(copy.parent, sum(sizes.values()), limit_bytes)
        partial.mkdir()
        for name, size in sizes.items():
            _reserve(partial / name, size)
    checksums = {name: _copy_file(source / name, partial / name) for name in sizes}
    for name, checksum in checksums.items():
        if (partial / name).stat().st_size != sizes[name] or file_checksum(partial / name) != checksum:
            raise ModelError(
                f"{source / name}: changed while it was copied, or {partial.parent} loses what is written to "
                "it; start again, or set loader.model_cache_path to another disk"
            )
    boot = _BOOT.read_text(encoding="ascii").strip()
    write_json(partial / _RECORD, {"boot": boot, "checksums": checksums})
    sync_folder(partial)
    partial.rename(copy)
    sync_folder(copy.parent)


def _reserve(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if size:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _copy_file(source: Path, target: Path) -> str:
    """Copy the bytes of a file into one that is there; give the checksum of what was read."""
    hasher = xxhash.xxh3_128()
    with source.open("rb") as reader, target.open("r+b") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            hasher.update(chunk)
            writer.write(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return hasher.hexdigest()


def _make_room(cache: Path, wanted: int, limit_bytes: int) -> None:
    """Evict copies that nobody reads or makes, the least recently used first. Under the room's lock."""
    held = {}
    for path in sorted((each for each in cache.iterdir() if each.name != _LOCKS), key=_last_use):
        with contextlib.suppress(FileNotFoundError):  # it was finished, and so renamed, meanwhile
            held[path] = sum(file.stat().st_size for file in path.iterdir())
    for path in list(held):
        if sum(held.values()) + wanted <= limit_bytes and shutil.disk_usage(cache).free >= wanted:
            return
        name, at_once = path.name.removesuffix(_PARTIAL), fcntl.LOCK_EX | fcntl.LOCK_NB
        with (
            contextlib.suppress(BlockingIOError),
            _locked(cache, name + _MAKING, at_once),
            _locked(cache, name, at_once),
        ):
            shutil.rmtree(path)
            del held[path]
    if sum(held.values()) + wanted > limit_bytes:
        raise StorageError(
            f"{cache}: loader.model_cache_bytes={limit_bytes} is too small for a model of {wanted} bytes "
            f"beside those in use; raise it to {sum(held.values()) + wanted} or more"
        )


def _last_use(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _lock(cache: Path, name: str, how: int) -> int:
    """Lock a name. These few files are never removed: a lock on a removed file would keep out nobody."""
    (cache / _LOCKS).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache / _LOCKS / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _locked(cache: Path, name: str, how: int) -> Iterator[None]:
    descriptor = _lock(cache, name, how)
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _telling(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{cache}: the model cannot be copied there ({error.strerror or error}); free some space, set "
            "its permissions, or set loader.model_cache_path to another disk"
        ) from error
