"""Bad files: bounded memory, one line that names the place, or one count for the record left out."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.make_sources import (
    RECORDS,
    as_array,
    as_arrow,
    as_csv,
    as_lines,
    as_parquet,
    as_tar,
    as_webdataset,
    files,
    read_items,
    refusal,
    zst,
)
from training.data.documents import Document, Text
from training.data.read import Skipped


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


CUT = gzip.compress(as_lines(RECORDS * 99), mtime=0)[:-20]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.jsonl.gz", CUT, ": damaged gzip file"),
        ("plain.jsonl.gz", as_lines(RECORDS), ": damaged gzip file"),
        ("cut.jsonl.zst", zst(as_lines(RECORDS * 99))[:-5], "damaged zst file"),
        ("plain.jsonl.zst", as_lines(RECORDS), "damaged zst file"),
        ("a.parquet", b"no parquet at all", ": no readable Parquet or Arrow file"),
        ("cut.parquet", as_parquet(RECORDS)[:-9], ": no readable Parquet or Arrow file"),
        ("cut.arrow", as_arrow(RECORDS, pa.ipc.new_stream)[:-40], ": no readable Parquet or Arrow file"),
        (
            "cut_between_batches.arrow",
            as_arrow(RECORDS, pa.ipc.new_stream)[:-8],
            "end-of-stream mark is missing",
        ),
        ("a.arrow", b"no arrow at all", ": no readable Parquet or Arrow file"),
        (
            "cut_between_members.tar",
            as_webdataset([{"text": "x"}, {"text": "y"}])[:2048],
            "the archive's end is missing",
        ),
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
