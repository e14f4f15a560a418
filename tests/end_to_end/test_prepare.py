"""`python -m training.prepare FILE`: what it says, and what it leaves behind when it ends early."""

import hashlib
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.freeze import write_frozen
from training.data.reader import open_corpus

DEADLINE_SECONDS = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model is written once, by the first test that prepares."""
    return tmp_path_factory.mktemp("model") / "tiny"


def freeze(folder: Path, model: Path, *overrides: str) -> Path:
    composed = compose_run(
        ["experiment=tiny_smoke", f"model.folder={model}", f"data.path={folder / 'corpus'}", *overrides],
        ConfigTree(None),
    )
    path = folder / "prepare.json"
    write_frozen(path, composed.config, {})
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-m", "training.prepare", str(path)]


def run(path: Path, before: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(path),
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
        preexec_fn=before,
    )


def write_texts(path: Path, count: int) -> None:
    record = {"text": "word " * 200}
    path.write_text("".join(json.dumps({**record, "number": i}) + "\n" for i in range(count)))


def over_files(folder: Path) -> list[str]:
    return [
        "data=files_chat",
        f"data.sources.files.paths=[{folder / 'notes.jsonl'}]",
        "data.sources.files.documents=text",
        "data.documents_per_shard=64",
        "data.long_documents=split",
        f"data.path={folder / 'corpus'}",
    ]


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


def test_prepare_says_what_it_made_and_the_second_time_that_it_is_there(tmp_path: Path, model: Path) -> None:
    path = freeze(tmp_path, model)

    first, second = run(path), run(path)

    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "prepared" in first.stdout
    assert "held_out" in first.stdout
    assert "rows of 256 tokens" in first.stdout
    assert "already prepared" in second.stdout
    assert visible(tmp_path) == ["corpus", "prepare.json"]
    assert len(open_corpus(tmp_path / "corpus", "train")) > 50


def test_a_broken_record_is_one_line_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')

    ended = run(freeze(tmp_path, model, *over_files(tmp_path)))

    assert ended.returncode == 2
    assert "notes.jsonl:3: broken JSON" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert visible(tmp_path) == ["notes.jsonl", "prepare.json"]


def test_a_document_longer_than_the_row_is_one_line(tmp_path: Path, model: Path) -> None:
    write_texts(tmp_path / "notes.jsonl", 40)

    ended = run(freeze(tmp_path, model, *over_files(tmp_path), "data.long_documents=refuse"))

    assert ended.returncode == 2
    assert "notes.jsonl:" in ended.stderr
    assert "more than batch.sequence_length=256" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    write_texts(tmp_path / "notes.jsonl", 40)
    path = freeze(tmp_path, model, *over_files(tmp_path))
    assert run(path).returncode == 0
    write_texts(tmp_path / "notes.jsonl", 400)
    before = digest(tmp_path / "corpus")

    def let_no_file_grow() -> None:
        # Stands in for a full disk: every write beyond this size fails, as with ENOSPC.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = run(path, let_no_file_grow)

    assert ended.returncode == 2, ended.stderr
    assert "cannot be written" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert visible(tmp_path) == ["corpus", "notes.jsonl", "prepare.json"]
    assert digest(tmp_path / "corpus") == before


def test_a_kill_at_any_moment_leaves_no_half_corpus_and_the_same_bytes_after_the_next_run(
    tmp_path: Path, model: Path
) -> None:
    write_texts(tmp_path / "notes.jsonl", 3000)
    path = freeze(tmp_path, model, *over_files(tmp_path))
    partial = tmp_path / ".corpus.partial"
    seed = random.randrange(2**32)
    moments = random.Random(seed)

    for _ in range(2):
        with subprocess.Popen(command(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not partial.exists() and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 1.0))
            child.kill()
        assert not (tmp_path / "corpus").exists() or open_corpus(tmp_path / "corpus", "train"), f"seed {seed}"

    assert run(path).returncode == 0
    open_corpus(tmp_path / "corpus", "train").verify()
    open_corpus(tmp_path / "corpus", "held_out").verify()
    assert not partial.exists()
    interrupted = digest(tmp_path / "corpus")
    (tmp_path / "corpus").rename(tmp_path / "put_aside")
    assert run(path).returncode == 0
    assert digest(tmp_path / "corpus") == interrupted, f"seed {seed}"
