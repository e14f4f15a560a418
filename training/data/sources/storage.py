"""Files on a disk or behind a URL: found, opened as what they were when they were listed, faults in one line.

A file is known by its identity: its size and its time of change on a disk, its size and version (ETag, hash)
behind a URL. It is compared when a piece of the file is opened and once more when the piece has been read:
what changes or vanishes while a corpus is prepared stops the work instead of mixing two states.
"""

import glob
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa

from training.errors import DataError
from training.files import find_local_files, is_url

BLOCK_BYTES = 1 << 23
"""Read ahead of remote files: some tens of milliseconds on a fast network, little memory."""

BUFFER_BYTES = 1 << 20

_VERSIONS = (
    *("ETag", "etag", "generation", "blob_id", "oid", "md5Hash", "Content-MD5", "Digest"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "created"),
)
"""What file systems call the state of a file; the first one that is there is taken."""

_REMOTE_FAULTS = ("aiohttp", "asyncio", "botocore", "fsspec", "s3fs", "gcsfs", "huggingface_hub", "httpx")
"""Packages whose exceptions mean that a remote file cannot be read; not all of them are OSErrors."""


_Opened = tuple[BinaryIO, Callable[[], dict[str, Any]]]
"""The stream, and how to ask for the identity of the file as it is now."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was found."""

    name: str
    """Path as the user wrote it, or URL."""

    bytes: int
    """0 where a server does not say."""

    identity: dict[str, Any]


def is_remote(name: str) -> bool:
    """Say whether this is a URL that is not on this machine's disks."""
    return is_url(name) and not name.startswith("file://")


def find_files(setting: str, patterns: list[str]) -> list[StoredFile]:
    """Resolve paths, globs and URLs; each file once, sorted by name.

    Raises:
        DataError: A pattern matches nothing, names a folder, or its storage cannot be asked; the message
            begins with ``setting``.
    """
    found: dict[str, StoredFile] = {}
    for pattern in patterns:
        with explain_faults(pattern):
            files = _find_remote(pattern) if is_remote(pattern) else _find_local(setting, pattern)
        if not files:
            raise DataError(f"{setting}: no file {pattern}; correct the path")
        found |= {file.name: file for file in files}
    return [found[name] for name in sorted(found)]


@contextmanager
def open_file(name: str, identity: dict[str, Any]) -> Iterator[BinaryIO]:
    """Open a file as it lies there, buffered, and see to it that it is and stays the one that was listed.

    Raises:
        DataError: It is gone, changed, not permitted or damaged.
    """
    opened = _open_remote(name) if is_remote(name) else _open_local(name)
    with explain_faults(name), opened as (stream, identify):
        _compare(name, identity, identify())
        yield stream
        _compare(name, identity, identify())


def decompress(name: str, stream: BinaryIO) -> BinaryIO:
    """Read through the compression that the file's ending names; a cut-off file raises."""
    lower = name.lower()
    if lower.endswith(".gz"):
        return cast("BinaryIO", io.BufferedReader(cast("Any", gzip.GzipFile(fileobj=stream)), BUFFER_BYTES))
    if lower.endswith(".zst"):
        packed = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
        return cast("BinaryIO", io.BufferedReader(packed, BUFFER_BYTES))
    return stream


@contextmanager
def explain_faults(name: str) -> Iterator[None]:
    """Turn what storage, compression and file formats raise into one line that begins with ``name``.

    Raises:
        DataError: Instead of the exception.
    """
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(
            f"{name}: the file is gone; put it back, or take it out of the source's paths"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: damaged gzip file ({error}); fetch it again") from None
    except tarfile.TarError as error:
        raise DataError(f"{name}: damaged tar file ({error}); fetch it again") from None
    except pa.ArrowException as error:
        raise DataError(
            f"{name}: no readable Parquet or Arrow file ({_line(error)}); fetch it again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({_line(error.strerror or error)}){_advise(error)}"
        ) from None
    except ImportError as error:
        raise DataError(f"{name}: {_line(error)}; install the package and start again") from None
    except Exception as error:
        known = type(error).__module__.partition(".")[0] in _REMOTE_FAULTS or isinstance(error, ValueError)
        if not is_remote(name) or not known:
            raise
        raise DataError(f"{name}: cannot be read ({type(error).__name__}: {_line(error)})") from None


def _advise(error: OSError) -> str:
    text = str(error)
    if isinstance(error, PermissionError):
        return "; give yourself the permission to read it"
    if "Truncated compressed stream" in text or "ZSTD" in text:
        return ": damaged zst file; fetch it again"
    return ""


def _line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _find_local(setting: str, pattern: str) -> list[StoredFile]:
    return [_stat_local(name) for name in find_local_files(setting, pattern)]


def _stat_local(name: str) -> StoredFile:
    path = str(Path(name))
    status = Path(name).stat()
    return StoredFile(path, status.st_size, _identify_local(status))


def _identify_local(status: os.stat_result) -> dict[str, Any]:
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _find_remote(pattern: str) -> list[StoredFile]:
    system, path = fsspec.core.url_to_fs(pattern)
    # A web server cannot be listed, and a question mark there begins a query.
    web = pattern.startswith(("http://", "https://"))
    try:
        infos = {path: system.info(path)}
    except FileNotFoundError:
        infos = {} if web or not glob.has_magic(path) else system.glob(path, detail=True)
    if any(info["type"] == "directory" for info in infos.values()) and len(infos) == 1:
        raise DataError(f"{pattern} is a folder; name its files, for instance {pattern.rstrip('/')}/*.jsonl")
    return [
        StoredFile(system.unstrip_protocol(path), info.get("size") or 0, _identify_remote(info))
        for path, info in infos.items()
        if info["type"] == "file"
    ]


def _identify_remote(info: dict[str, Any]) -> dict[str, Any]:
    version = next((info[key] for key in _VERSIONS if info.get(key) is not None), None)
    if isinstance(version, datetime):
        # One and the same file system gives seconds in a listing and a date for a single file.
        version = version.timestamp()
    return {"bytes": info.get("size"), "version": None if version is None else str(version).strip('"')}


@contextmanager
def _open_local(name: str) -> Iterator[_Opened]:
    descriptor = os.open(name, os.O_RDONLY)
    try:
        # Readers close the stream when they like; the file stays open to be compared at the end.
        with os.fdopen(descriptor, "rb", buffering=BUFFER_BYTES, closefd=False) as stream:
            yield stream, lambda: _identify_local(os.fstat(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def _open_remote(name: str) -> Iterator[_Opened]:
    system, path = fsspec.core.url_to_fs(name)

    def identify() -> dict[str, Any]:
        system.invalidate_cache()  # a listing kept in memory would show what was there before
        return _identify_remote(system.info(path))

    web = name.startswith(("http://", "https://"))
    # Not every web server can send a part of a file: what is read from front to end is streamed.
    whole = web and not path.partition("?")[0].lower().endswith(".parquet")
    with system.open(path, "rb", block_size=0 if whole else BLOCK_BYTES) as remote:
        # The buffer in front reads lines in C; fsspec's own files do it in Python.
        yield cast("BinaryIO", io.BufferedReader(remote, BUFFER_BYTES)), identify


def _compare(name: str, listed: dict[str, Any], found: dict[str, Any]) -> None:
    if found != listed:
        what = ", ".join(
            f"{key} {listed.get(key)} -> {found[key]}" for key in found if found[key] != listed.get(key)
        )
        raise DataError(f"{name}: changed since it was listed ({what}); start `metier prepare` again")
