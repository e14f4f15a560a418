"""Copies a corpus's files from where they lie: any URL that fsspec reads, or a folder.

Credentials and endpoints are the environment's, never the configuration's, which is kept with the run:

* S3: what botocore reads (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_PROFILE``, instance roles);
  another endpoint (MinIO, Ceph, R2) by ``AWS_ENDPOINT_URL``.
* Google Cloud Storage: ``GOOGLE_APPLICATION_CREDENTIALS``, or the machine's own account.
* Any option of any fsspec file system: ``FSSPEC_S3_ANON=true`` and the like, or ``~/.config/fsspec/*.json``
  (https://filesystem-spec.readthedocs.io, "Configuration").
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import xxhash

from training.errors import ConfigError, DataError, StorageError

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
PIECE_BYTES = 4 << 20
"""Read at once: one ranged request. What a fetch holds in memory."""


class TransferError(Exception):
    """The other side, or the way to it, failed; worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a corpus was written to."""

    root: str
    """A folder, or a URL such as ``s3://bucket/corpus``."""

    attempts: int
    """How often a file is tried before the run ends: ``loader.fetch_attempts``."""

    first_wait_seconds: float = FIRST_WAIT_SECONDS
    """Before the second try; doubled with each further one, LONGEST_WAIT_SECONDS at most."""

    def place(self, file: str) -> str:
        """Name a file of the corpus in full."""
        return f"{self.root.rstrip('/')}/{file}"

    def read_bytes(self, file: str) -> bytes:
        """Read a small file whole.

        Raises:
            DataError: It is not there.
            StorageError: It cannot be read, after all attempts.
            ConfigError: fsspec does not know the URL, or lacks the package that reads it.
        """

        def read() -> bytes:
            return b"".join(self._read_pieces(file))

        return self._try(file, read)

    def copy(self, file: str, sink: int) -> str:
        """Write a file into the open descriptor ``sink``, from its beginning.

        Returns:
            The XXH3-128 of what was written, hexadecimal.

        Raises:
            OSError: ``sink`` cannot be written.
            DataError: As ``read_bytes``.
            StorageError: As ``read_bytes``.
            ConfigError: As ``read_bytes``.
        """

        def copy() -> str:
            hasher = xxhash.xxh3_128()
            offset = 0
            for piece in self._read_pieces(file):
                hasher.update(piece)
                offset += _write_all(sink, piece, offset)
            os.ftruncate(sink, offset)
            return hasher.hexdigest()

        return self._try(file, copy)

    def _read_pieces(self, file: str) -> Iterator[bytes]:
        """Raises TransferError for whatever may go better next time, FileNotFoundError where nothing is."""
        system, path = self._find(file)
        try:
            with system.open(path, "rb", block_size=PIECE_BYTES, cache_type="none") as stream:
                size = getattr(stream, "size", None)
                done = 0
                while piece := stream.read(PIECE_BYTES):
                    done += len(piece)
                    yield piece
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            raise TransferError(_first_line(error)) from error
        if size is not None and done != size:
            raise TransferError(f"{done} of {size} bytes came")

    def _find(self, file: str) -> tuple[Any, str]:
        """Choose fsspec's file system; nothing is sent yet."""
        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(self.place(file))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{self.place(file)}: fsspec cannot read it ({_first_line(error)})") from None
        return found

    def _try(self, file: str, action: Callable[[], T]) -> T:
        place, wait = self.place(file), self.first_wait_seconds
        for left in reversed(range(self.attempts)):
            try:
                return action()
            except FileNotFoundError:
                raise DataError(
                    f"{place}: missing; run `metier prepare`, with data.upload_to where it lies behind a URL"
                ) from None
            except PermissionError as error:
                raise StorageError(
                    f"{place}: may not be read ({_first_line(error)}); check the environment's credentials"
                ) from None
            except TransferError as error:
                if not left:
                    raise StorageError(
                        f"{place}: cannot be read after {self.attempts} attempts ({error}); check the "
                        "address and the network, or raise loader.fetch_attempts"
                    ) from error
            time.sleep(min(wait, LONGEST_WAIT_SECONDS))
            wait *= 2
        raise AssertionError("at least one attempt")


def _write_all(sink: int, piece: bytes, offset: int) -> int:
    view = memoryview(piece)
    done = 0
    while done < len(view):
        done += os.pwrite(sink, view[done:], offset + done)
    return done


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
