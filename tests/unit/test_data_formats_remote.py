"""Files behind URLs: found, streamed, cut into ranges, and known again; faults in one line."""

import gzip
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from tests.unit.make_sources import files, read_texts, refusal, write_lines
from training.data.documents import Text
from training.data.read import list_pieces, read_documents, read_piece
from training.errors import DataError

numbers = count()


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty folder of fsspec's file system in memory, named by a URL."""
    url = f"memory://bucket-{next(numbers)}"
    system = fsspec.filesystem("memory")
    yield url
    system.rm(url, recursive=True)


def put(url: str, content: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


def test_urls_and_globs_of_urls_are_read_as_files_are(bucket: str) -> None:
    put(f"{bucket}/b.jsonl.gz", gzip.compress(b'{"text": "b"}\n'))
    put(f"{bucket}/a.jsonl", b'{"text": "a"}\n')

    documents = list(read_documents("notes", files(f"{bucket}/*", f"{bucket}/a.jsonl")))

    assert [document.content for document in documents] == [Text("a"), Text("b")]
    assert documents[0].id == f"{bucket.replace('://', ':///')}/a.jsonl:1"


def test_a_url_that_leads_to_nothing_is_named_with_its_setting(bucket: str) -> None:
    put(f"{bucket}/x.jsonl", b"")

    assert refusal(files(f"{bucket}/absent.jsonl")) == (
        f"data.sources.notes.paths: no file {bucket}/absent.jsonl; correct the path"
    )
    assert refusal(files(f"{bucket}/*.csv")).startswith("data.sources.notes.paths: no file")
    assert "is a folder" in refusal(files(bucket))
    assert "Protocol not known: nowhere" in refusal(files("nowhere://bucket/a.jsonl"))


@pytest.mark.parametrize("again", [None, b'{"text": "other"}\n'], ids=["deleted", "replaced"])
def test_a_remote_file_that_changes_after_it_was_listed_stops_the_reading(
    bucket: str, again: bytes | None
) -> None:
    url = put(f"{bucket}/a.jsonl", b'{"text": "a"}\n')
    source = files(url)
    (piece,) = list_pieces("notes", source)

    fsspec.filesystem("memory").rm(url)
    put(f"{bucket}/keep.jsonl", b"")
    if again:
        put(url, again)

    with pytest.raises(DataError, match="changed since it was listed" if again else "the file is gone"):
        list(read_piece("notes", source, piece))


class Quiet(SimpleHTTPRequestHandler):
    """A web server that, like many, sends no part of a file."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "web"))
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_web_addresses_are_streamed_also_with_a_query(tmp_path: Path, website: str) -> None:
    write_lines(tmp_path / "web" / "a.jsonl", {"text": "a"}, {"text": "b"})
    (tmp_path / "web" / "b.txt.gz").write_bytes(gzip.compress(b"c"))

    assert read_texts(files(f"{website}/a.jsonl?download=true", f"{website}/b.txt.gz")) == ["a", "b", "c"]
    assert "no file" in refusal(files(f"{website}/absent.jsonl"))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "tester",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # fsspec keeps its file systems, and with them the server of an earlier test.
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="corpus")
    yield client
    client.close()
    server.stop()


def test_a_file_on_s3_is_read_in_ranges_and_known_by_its_etag(s3: Any) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % number for number in range(1000))
    s3.put_object(Bucket="corpus", Key="chats/a.jsonl", Body=lines)
    source = files("s3://corpus/chats/*.jsonl")

    (piece,) = list_pieces("notes", source)
    ends = [5000, 5001, 9000, len(lines)]
    ranges = [replace(piece, start=start, stop=stop) for start, stop in pairwise([0, *ends])]
    documents = [document for part in ranges for document in read_piece("notes", source, part)]

    assert piece.bytes == len(lines)
    assert [getattr(document, "content", None) for document in documents] == [
        Text(str(number)) for number in range(1000)
    ]
    s3.put_object(Bucket="corpus", Key="chats/a.jsonl", Body=lines[::-1])
    with pytest.raises(DataError, match=r"chats/a\.jsonl: changed since it was listed \(version"):
        list(read_piece("notes", source, ranges[1]))
