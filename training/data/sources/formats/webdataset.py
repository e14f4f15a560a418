"""WebDataset: a tar in which the files of one record follow each other and share their name up to a dot.

``0001.json`` and ``0001.txt`` are one record. The object in the JSON gives the record's fields; text
becomes the field of its ending, and ``txt`` also the field ``text`` where the JSON has none. Pictures,
sound and other bytes are passed over: no document is made of them. `datasets` would want the same endings
in every record and stop at the first broken one without its name.
"""

import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, BinaryIO, cast

from training.data.sources.formats.lines import too_long
from training.data.sources.formats.tail import Tail
from training.data.sources.pieces import BadRecordError, Record, Row, RowRange
from training.data.sources.values import describe

TEXT_ENDINGS = ("txt", "text", "md", "cls", "transcript")


def read_webdataset(stream: BinaryIO, rows: RowRange) -> Iterator[Row]:
    """Yield the records in the order of the tar; a place is ``file:key``."""
    tail = Tail(stream, tarfile.BLOCKSIZE)
    with tarfile.open(fileobj=cast("BinaryIO", tail), mode="r|", bufsize=1 << 16) as archive:
        members = (member for member in _list_members(archive) if member.isfile())
        for index, (key, group) in enumerate(groupby(members, key=lambda member: _split(member.name)[0])):
            if index < rows.skip:
                continue
            yield f"{rows.name}:{key}", _read_record(archive, group, rows.most_bytes)
    if tail.last.strip(b"\0") or not tail.last:
        # tarfile takes an archive that was cut between two members for a whole one.
        raise tarfile.ReadError("cut off, or its writer was not closed: the archive's end is missing")


def _list_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := archive.next()) is not None:
        yield member
        cast(
            "Any", archive
        ).members.clear()  # tarfile remembers every member of an archive that may have millions


def _split(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, ending.lower()


def _read_record(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], most_bytes: int
) -> Record | BadRecordError:
    fields: Any = {}
    texts: Record = {}
    fault: BadRecordError | None = None
    for member in members:
        ending = _split(member.name)[1]
        if fault or (ending != "json" and ending not in TEXT_ENDINGS):
            continue
        if member.size > most_bytes:
            fault = too_long(most_bytes)
            continue
        file = archive.extractfile(member)
        content = file.read() if file else b""
        try:
            text = content.decode("utf-8")
            if ending == "json":
                fields = json.loads(text)
            else:
                texts[ending] = text
        except UnicodeDecodeError as error:
            fault = BadRecordError("invalid UTF-8", f"{member.name} is not UTF-8 at byte {error.start}")
        except (ValueError, RecursionError) as error:
            fault = BadRecordError("broken JSON", f"{member.name} is no JSON ({error})")
    if fault:
        return fault
    if not isinstance(fields, dict):
        return BadRecordError("wrong type", f"the JSON is {describe(fields)}, wanted an object")
    if "txt" in texts:
        texts.setdefault("text", texts["txt"])
    return texts | fields
