"""Formats: the same documents from all of them, in ranges that meet, in bounded memory; faults in a line."""

import csv
import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.make_sources import CHAT, files, write_lines
from training.config.sources import FilesSource
from training.data.documents import Document, Text
from training.data.read import Skipped, list_pieces, read_documents, read_piece
from training.data.sources.files import PIECE_BYTES
from training.data.sources.formats.lines import read_lines
from training.errors import DataError

RECORDS = [{"text": "one"}, {"text": "zwei — ü,\nneu"}, {"text": '"3"'}]


def read_items(source: FilesSource) -> list[Document | Skipped]:
    return [item for piece in list_pieces("notes", source) for item in read_piece("notes", source, piece)]


def refusal(source: FilesSource) -> str:
    with pytest.raises(DataError) as caught:
        read_items(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def as_array(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, indent=2, ensure_ascii=False).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def as_parquet(records: list[dict[str, Any]], rows: int | None = None) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records).slice(0, rows), sink, row_group_size=2)
    return sink.getvalue()


def as_arrow(records: list[dict[str, Any]], new: Callable[..., Any]) -> bytes:
    table, sink = pa.Table.from_pylist(records), io.BytesIO()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def as_tar(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def as_webdataset(records: list[dict[str, Any]]) -> bytes:
    return as_tar({f"part/{n:04}.txt": record["text"].encode() for n, record in enumerate(records)})


def zst(content: bytes) -> bytes:
    # In two frames, as tools that work in parallel write.
    half = len(content) // 2
    pack = zstandard.ZstdCompressor().compress
    return pack(content[:half]) + pack(content[half:])


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


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zst], ids=["plain", "gz", "zst"])
def test_a_line_of_fifty_megabytes_is_a_bad_record_in_bounded_memory(
    tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    ending = {bytes: "", gzip.compress: ".gz"}.get(pack, ".zst")
    path = tmp_path / f"a.jsonl{ending}"
    long = b'{"text": "' + b"x" * 50_000_000 + b'"}\n'
    path.write_bytes(pack(as_lines(RECORDS[:1]) + long + as_lines(RECORDS[1:])))
    del long
    source = files(path, bad_records="skip", max_line_bytes=1 << 20)

    tracemalloc.start()
    try:
        items = read_items(source)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert items[1] == Skipped(f"{path}:2", "line too long")
    assert [type(item) for item in items] == [Document, Skipped, Document, Document]
    assert peak < 12 << 20
    refused = source.model_copy(update={"bad_records": "refuse"})
    assert refusal(refused).startswith(f"{path}:2: longer than 1,048,576 bytes; cut it up")


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.tar", "a.json"])
def test_a_record_that_is_too_long_is_bad_in_every_format(tmp_path: Path, name: str) -> None:
    long = {"text": "x" * 5000}
    contents = {
        "a.csv": as_csv([long]),
        "a.txt": long["text"].encode(),
        "a.tar": as_webdataset([long]),
        "a.json": as_array([long]),
    }
    (tmp_path / name).write_bytes(contents[name])

    message = refusal(files(tmp_path / name, documents="text", max_line_bytes=1000))

    assert "longer than 1,000 bytes" in message
    assert message.startswith(str(tmp_path / name))


def test_an_array_larger_than_the_window_is_read_whole(tmp_path: Path) -> None:
    records = [{"text": f"{number} [{{ü " * 20_000} for number in range(30)]
    (tmp_path / "a.json").write_bytes(as_array(records))

    documents = list(read_documents("notes", files(tmp_path / "a.json")))

    assert [document.content for document in documents] == [Text(record["text"]) for record in records]
    assert documents[29].id == f"{tmp_path / 'a.json'}:{2 + 29 * 3}"


CUT = gzip.compress(as_lines(RECORDS * 99), mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.jsonl.gz", CUT, ": damaged gzip file"),
        ("plain.jsonl.gz", as_lines(RECORDS), ": damaged gzip file"),
        ("cut.jsonl.zst", zst(as_lines(RECORDS * 99))[:-5], "damaged zst file"),
        ("plain.jsonl.zst", as_lines(RECORDS), "damaged zst file"),
        ("a.parquet", b"no parquet at all", ": no readable Parquet or Arrow file"),
        ("cut.parquet", FORMATS["a.parquet"][:-9], ": no readable Parquet or Arrow file"),
        ("cut.arrow", FORMATS["stream.arrow"][:-40], ": no readable Parquet or Arrow file"),
        ("a.arrow", b"no arrow at all", ": no readable Parquet or Arrow file"),
        ("cut.tar", as_webdataset([{"text": "x" * 9999}])[:5000], ": damaged tar file"),
        ("cut.json", as_array(RECORDS)[:-5], ":8: broken JSON array"),
        ("more.json", as_array(RECORDS) + b"{}", "found more behind the array"),
        ("latin.json", b'[{"text": "\xfc"}]', ":1: broken JSON array (not UTF-8"),
        ("a.docx", b"x", ": wanted a file ending in .jsonl"),
        ("a.parquet.gz", b"x", ": wanted a file ending in .jsonl"),
        ("twice.csv", b"text,text\na,b\n", ':1: the header names the field "text" twice'),
    ],
)
def test_a_damaged_file_is_refused_also_where_bad_records_are_skipped(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    """How much of it is lost nobody knows, so nothing could be counted."""
    (tmp_path / name).write_bytes(content)

    for bad_records in ("refuse", "skip"):
        message = refusal(files(tmp_path / name, documents="text", bad_records=bad_records))
        assert message.startswith(str(tmp_path / name))
        assert words in message


@pytest.mark.parametrize(
    ("name", "content", "place", "reason", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2", "invalid UTF-8", "not UTF-8 at byte 10"),
        ("a.txt", b"a\xff", "", "invalid UTF-8", "not UTF-8 at byte 1"),
        ("a.csv", b"text\na\n\xff\n", ":3", "invalid UTF-8", "not UTF-8 at byte 0"),
        ("a.csv", b'text,b\na,1\n"c"d,e\n', ":3", "broken CSV", "broken CSV ("),
        ("a.csv", b"text,b\na,1\nc\n", ":3", "broken CSV", "the row has 1 values and the header 2 fields"),
        ("a.tar", as_tar({"1.txt": b"a", "2.json": b"{"}), ":2", "broken JSON", "2.json is no JSON"),
        ("a.tar", as_tar({"1.txt": b"a", "2.txt": b"\xff"}), ":2", "invalid UTF-8", "2.txt is not UTF-8"),
        ("a.json", b'[{"text": "a"},\n3]', ":2", "wrong type", "found a number, wanted one JSON object"),
        (
            "a.parquet",
            as_parquet([{"text": "a"}, {"text": None}]),
            ":2",
            "wrong type",
            'field "text" is null, wanted a string',
        ),
    ],
)
def test_a_bad_record_of_any_format_is_named_or_counted(
    tmp_path: Path, name: str, content: bytes, place: str, reason: str, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    message = refusal(files(path, documents="text"))
    items = read_items(files(path, documents="text", bad_records="skip"))

    assert words in message
    assert message.startswith(str(path))
    assert [item for item in items if isinstance(item, Skipped)] == [Skipped(f"{path}{place}", reason)]


def test_strings_of_an_arrow_file_that_are_not_utf8_are_bad_records(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff", b"too"], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)

    items = read_items(files(tmp_path / "a.arrow", bad_records="skip"))

    assert [item.reason if isinstance(item, Skipped) else item.content for item in items] == [
        Text("fine"),
        "invalid UTF-8",
        Text("too"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \n"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.csv", b""),
        ("a.csv", b"text\n"),
        ("a.txt", b" \n"),
        ("a.tar", as_tar({})),
        ("a.parquet", as_parquet([{"text": "x"}], rows=0)),
    ],
)
def test_an_empty_file_is_refused_or_counted(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    assert refusal(files(path)) == (
        f"{path}: the file holds no record; fill it or take it out of data.sources.notes.paths"
    )
    assert read_items(files(path, bad_records="skip")) == [Skipped(str(path), "empty file")]
