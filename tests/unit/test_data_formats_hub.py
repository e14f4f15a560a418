"""Datasets of the hub, from a hub on this machine and from folders: streamed, in order, of one commit."""

import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from tests.unit.make_sources import CHAT, hub, write_lines
from training.data.documents import Document, Message, Messages, Text
from training.data.read import Skipped, list_pieces, read_documents, read_piece, trace_source
from training.errors import DataError

COMMIT = "1" * 40
FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    **{
        f"data/train-{shard}.jsonl": b"".join(
            json.dumps({"text": f"{shard}{row}"}).encode() + b"\n" for row in range(3)
        )
        for shard in "ab"
    },
}


class Hub(BaseHTTPRequestHandler):
    """So much of the hub's interface as `datasets` asks for: one dataset, me/notes, at one commit."""

    protocol_version = "HTTP/1.1"
    commits: ClassVar[set[str]] = set()
    """The commits of which files were asked for."""

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(json.dumps([entry(path) for path in asked["paths"] if path in FILES]).encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if re.fullmatch(r"/api/datasets/me/notes(/revision/\w+)?", path):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in FILES.items()]
            self.answer(json.dumps({"id": "me/notes", "sha": COMMIT, "siblings": siblings}).encode())
        elif found := re.fullmatch(r"/api/datasets/me/notes/tree/\w+/?(.*)", path):
            self.answer(json.dumps(list_folder(found[1])).encode())
        elif found := re.fullmatch(r"/datasets/me/notes/resolve/(\w+)/(.+)", path):
            self.commits.add(found[1])
            self.send_file(found[2])
        else:
            self.answer(b"{}", 404, X_Error_Code="RepoNotFound")

    def send_file(self, name: str) -> None:
        content = FILES.get(name)
        if content is None:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
        elif part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(part[1]), int(part[2])
            told = f"bytes {first}-{last}/{len(content)}"
            self.answer(content[first : last + 1], 206, Content_Range=told, ETag='"x"')
        else:
            self.answer(content, ETag='"x"')


def entry(path: str) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(FILES[path]), "oid": "2" * 40}


def list_folder(folder: str) -> list[dict[str, object]]:
    if folder:
        return [entry(path) for path in FILES if path.startswith(f"{folder}/")]
    folders = sorted({path.partition("/")[0] for path in FILES if "/" in path})
    files = [entry(path) for path in FILES if "/" not in path]
    return [{"type": "directory", "path": path, "oid": "3" * 40} for path in folders] + files


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


READ = textwrap.dedent(
    """
    import json, sys
    from tests.unit.make_sources import hub
    from training.data.read import list_pieces, read_piece, trace_source
    from training.errors import DataError
    for name in sys.argv[1:]:
        source = hub(name)
        try:
            pieces = list_pieces("notes", source)
            texts = [item.content.text for piece in pieces for item in read_piece("notes", source, piece)]
            print(json.dumps({"texts": texts, "trace": trace_source("notes", source).content}))
        except DataError as error:
            print(json.dumps({"error": str(error)}))
    """
)


def read_apart(endpoint: str, home: Path, *datasets: str) -> list[dict[str, Any]]:
    """Read in a process of its own: the hub's address is fixed when its package is imported."""
    done = subprocess.run(
        [sys.executable, "-c", READ, *datasets],
        env={**os.environ, "HF_ENDPOINT": endpoint, "HOME": str(home), "HF_HOME": str(home / "hf")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_of_the_hub_is_streamed_at_one_commit_and_a_missing_one_named(
    endpoint: str, tmp_path: Path
) -> None:
    Hub.commits.clear()

    found, missing = read_apart(endpoint, tmp_path, "hf://me/notes@main", "hf://me/absent")

    assert found["texts"] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert found["trace"] == {
        "dataset": "hf://me/notes@main",
        "subset": None,
        "split": "train",
        "revision": COMMIT,
    }
    assert Hub.commits == {COMMIT}
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and b"a0" in path.read_bytes()]
    assert not stored, "nothing of the dataset is kept"
    assert missing["error"].startswith(
        "data.sources.notes.dataset: hf://me/absent cannot be read (Repository"
    )
    assert "download it and give its folder" in missing["error"]
    assert "\n" not in missing["error"]


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    (found,) = read_apart("http://127.0.0.1:9", tmp_path, "hf://me/notes")

    assert "Connection refused" in found["error"]
    assert "check its name, subset and split, and the network" in found["error"]


def test_a_folder_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", CHAT, {"messages": [{"role": "user", "content": "?"}]})
    write_lines(tmp_path / "b.jsonl", CHAT)
    source = hub(tmp_path, bad_records="skip")

    (piece,) = list_pieces("notes", source)
    items = list(read_piece("notes", source, piece))

    first, bad, last = items
    assert isinstance(first, Document)
    assert first.content == Messages((Message("user", "Hi"), Message("assistant", "Hello")))
    assert bad == Skipped(f"{tmp_path}/train-0:2", "wrong roles")
    assert isinstance(last, Document)
    assert (last.id, last.family) == (f"{tmp_path}/train-1:1", first.family)
    for skip in (1, 2):
        assert list(read_piece("notes", source, piece, skip=skip)) == items[skip:]
    limited = source.model_copy(update={"max_documents": 2})
    (whole,) = list_pieces("notes", limited)
    assert list(read_piece("notes", limited, whole, skip=1)) == items[1:]


def test_a_folder_that_changes_after_it_was_listed_stops_the_reading(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a"})
    source = hub(tmp_path)
    (piece,) = list_pieces("notes", source)
    before = trace_source("notes", source).content

    write_lines(tmp_path / "b.jsonl", {"text": "b"})

    with pytest.raises(DataError, match="changed since it was listed"):
        list(read_piece("notes", source, piece))
    assert trace_source("notes", source).content != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "nowhere"}, "cannot be read (ValueError: Bad split: nowhere"),
        ({"subset": "none"}, "cannot be read (ValueError: BuilderConfig 'none' not found"),
    ],
    ids=["split", "subset"],
)
def test_a_wrong_split_or_subset_is_named(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a"})

    with pytest.raises(DataError) as caught:
        list(read_documents("notes", hub(tmp_path, **settings)))

    assert str(caught.value).startswith("data.sources.notes.dataset: ")
    assert words in str(caught.value)


def test_a_missing_folder_says_how_the_hub_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a dataset of the hub is hf://OWNER/NAME"):
        list_pieces("notes", hub(tmp_path / "absent"))


def test_a_plain_text_of_a_folder_is_read_by_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")

    documents = read_documents("notes", hub(tmp_path))

    assert [document.content for document in documents] == [Text("one"), Text("two")]
