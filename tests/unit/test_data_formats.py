"""Formats: the same documents from all of them, in ranges that meet, every line exactly once."""

import gzip
import io
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.make_sources import (
    CHAT,
    RECORDS,
    as_array,
    as_arrow,
    as_csv,
    as_lines,
    as_parquet,
    as_tar,
    as_webdataset,
    files,
    write_lines,
    zst,
)
from training.data.documents import Document, Text
from training.data.read import Skipped, list_pieces, read_documents, read_piece
from training.data.sources.files import PIECE_BYTES
from training.data.sources.formats.lines import read_lines
from training.errors import DataError

FORMATS: dict[str, bytes] = {
    "a.jsonl": as_lines(RECORDS),
    "a.ndjson": as_lines(RECORDS),
    "A.JSONL": as_lines(RECORDS),
    "bom.jsonl": b"\xef\xbb\xbf" + as_lines(RECORDS),
    "crlf.jsonl": as_lines(RECORDS).replace(b"\n", b"\r\n"),
    "no-end.jsonl": as_lines(RECORDS).rstrip(),
    "a.jsonl.gz": gzip.compress(as_lines(RECORDS), mtime=0),
    "two.jsonl.gz": gzip.compress(as_lines(RECORDS[:1]), mtime=0)
    + gzip.compress(as_lines(RECORDS[1:]), mtime=0),
    "a.jsonl.zst": zst(as_lines(RECORDS)),
    "lines.json": as_lines(RECORDS),
    "array.json": as_array(RECORDS),
    "array.json.gz": gzip.compress(as_array(RECORDS), mtime=0),
    "a.csv": as_csv(RECORDS),
    "a.csv.gz": gzip.compress(as_csv(RECORDS), mtime=0),
    "a.csv.zst": zst(as_csv(RECORDS)),
    "a.parquet": as_parquet(RECORDS),
    "stream.arrow": as_arrow(RECORDS, pa.ipc.new_stream),
    "file.arrow": as_arrow(RECORDS, pa.ipc.new_file),
    "a.tar": as_webdataset(RECORDS),
    "a.tar.gz": gzip.compress(as_webdataset(RECORDS), mtime=0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_yields_the_same_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])

    documents = list(read_documents("notes", files(tmp_path / name)))

    assert [document.content for document in documents] == [Text(record["text"]) for record in RECORDS]
    assert len({document.id for document in documents}) == len(RECORDS)
    assert all(document.id.startswith(f"{tmp_path / name}:") for document in documents)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_reading_goes_on_behind_what_was_read_before(tmp_path: Path, name: str, skip: int) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    source = files(tmp_path / name)
    (piece,) = list_pieces("notes", source)

    everything = list(read_piece("notes", source, piece))

    assert list(read_piece("notes", source, piece, skip=skip)) == everything[skip:]


@pytest.mark.parametrize("ending", [".txt", ".md", ".txt.gz", ".md.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, ending: str) -> None:
    pack = {"gz": gzip.compress, "zst": zst}.get(ending.rpartition(".")[2], bytes)
    (tmp_path / f"a{ending}").write_bytes(pack("One.\n\nTwo — ü.\n".encode()))

    (document,) = read_documents("notes", files(tmp_path / f"a{ending}"))

    assert (document.content, document.id) == (Text("One.\n\nTwo — ü.\n"), str(tmp_path / f"a{ending}"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow", "a.tar"])
def test_chats_are_read_from_every_format_that_nests(tmp_path: Path, name: str) -> None:
    contents = {
        "a.jsonl": as_lines([CHAT]),
        "a.json": as_array([CHAT]),
        "a.parquet": as_parquet([CHAT]),
        "a.arrow": as_arrow([CHAT], pa.ipc.new_stream),
        "a.tar": as_tar({"1.json": json.dumps(CHAT).encode(), "1.jpg": b"\xff"}),
    }
    (tmp_path / name).write_bytes(contents[name])

    (document,) = read_documents("notes", files(tmp_path / name))

    (wanted,) = read_documents("notes", files(write_lines(tmp_path / "wanted.jsonl", CHAT)))
    assert (document.content, document.family) == (wanted.content, wanted.family)


def test_values_of_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\n1+6?,007\nany?,None\n")

    documents = list(read_documents("notes", files(tmp_path / "a.csv", documents="prompt_completion")))

    assert [getattr(document.content, "completion", "") for document in documents] == ["007", "None"]


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b".")), max_size=12),
    ends=st.booleans(),
    size=st.integers(1, 30),
    limit=st.integers(4, 20),
)
def test_ranges_that_meet_give_every_line_exactly_once(
    lines: list[bytes], ends: bool, size: int, limit: int
) -> None:
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    starts = range(0, max(len(content), 1), size)

    cut = [
        line
        for start in starts
        for line in read_lines(io.BytesIO(content), start, min(start + size, len(content)), limit)
    ]

    assert cut == list(read_lines(io.BytesIO(content), 0, None, limit))
    wanted = content.splitlines(keepends=True) if b"\r" not in content else io.BytesIO(content).readlines()
    assert [line for _, line in cut if line is not None] == [
        line for line in wanted if len(line) <= limit or (len(line) == limit + 1 and line.endswith(b"\n"))
    ]


def test_a_big_file_of_lines_is_read_in_ranges_and_its_faults_have_their_lines(tmp_path: Path) -> None:
    record = json.dumps({"text": "x" * 999_980}) + "\n"
    lines = [record] * 70
    lines[68] = "broken\n"
    path = tmp_path / "big.jsonl"
    path.write_text("".join(lines))
    source = files(path, bad_records="skip")

    pieces = list_pieces("notes", source)
    items = [list(read_piece("notes", source, piece)) for piece in pieces]

    assert [(piece.start, piece.stop) for piece in pieces] == [
        (0, PIECE_BYTES),
        (PIECE_BYTES, path.stat().st_size),
    ]
    assert sum(piece.bytes for piece in pieces) == path.stat().st_size
    assert [len(part) for part in items] == [68, 2]
    assert isinstance(items[1][0], Skipped)
    assert list(read_piece("notes", source, pieces[1], skip=1)) == items[1][1:]
    offset = sum(map(len, lines[:69]))
    assert isinstance(items[1][1], Document)
    assert items[1][1].id == f"{path}@{offset}", "seek there and read the line"
    with pytest.raises(DataError, match=r"big\.jsonl:69: broken JSON"):
        list(read_piece("notes", files(path), pieces[1]))


def test_a_big_parquet_file_is_read_in_groups_of_row_groups(tmp_path: Path) -> None:
    noise = random.Random(1)
    texts = [noise.randbytes(500_000).hex() for _ in range(80)]
    path = tmp_path / "big.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=10, compression="none")
    source = files(path)

    pieces = list_pieces("notes", source)
    items = [list(read_piece("notes", source, piece)) for piece in pieces]

    assert [(piece.start, piece.stop) for piece in pieces] == [(0, 7), (7, 8)]
    documents = [item for part in items for item in part if isinstance(item, Document)]
    assert [document.content for document in documents] == [Text(text) for text in texts]
    assert [document.id for document in documents] == [f"{path}:{row}" for row in range(1, 81)]
    assert list(read_piece("notes", source, pieces[0], skip=65)) == items[0][65:]
    assert list(read_piece("notes", source, pieces[1], skip=3)) == items[1][3:]


def test_an_array_larger_than_the_window_is_read_whole(tmp_path: Path) -> None:
    records = [{"text": f"{number} [{{ü " * 20_000} for number in range(30)]
    (tmp_path / "a.json").write_bytes(as_array(records))

    documents = list(read_documents("notes", files(tmp_path / "a.json")))

    assert [document.content for document in documents] == [Text(record["text"]) for record in records]
    assert documents[29].id == f"{tmp_path / 'a.json'}:{2 + 29 * 3}"
