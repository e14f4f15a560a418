"""The node's copy of a model: made once whoever races or dies, whole or absent, within its limit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from training.errors import ModelError, StorageError
from training.model import stage
from training.model.stage import staged

LIMIT = 10_000_000
RACER = """
import sys, time
from pathlib import Path
from training.model import stage
if sys.argv[3] == "hang":
    def hang(source, target):
        target.write_bytes(source.read_bytes()[:1000])
        print("half", flush=True)
        time.sleep(600)
    stage._copy_file = hang
with stage.staged(Path(sys.argv[1]), Path(sys.argv[2]), 10_000_000) as copy:
    print(copy.copied_bytes, (copy.folder / "model.safetensors").stat().st_ino, flush=True)
"""


def write_model(folder: Path, letter: bytes = b"w", size: int = 300_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(letter * size)
    (folder / "pytorch_model.bin").write_bytes(b"the same once more" * 1000)
    (folder / "original").mkdir(exist_ok=True)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "shared" / "model")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "node"


def start(source: Path, cache: Path, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", RACER, str(source), str(cache), how]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def stage_once(source: Path, cache: Path, limit_bytes: int) -> None:
    with staged(source, cache, limit_bytes):
        pass


def copies(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()} - {"locks"}


def test_the_copy_has_what_loading_reads_and_is_made_once(source: Path, cache: Path) -> None:
    with staged(source, cache, LIMIT) as first:
        assert first.copied_bytes == 300_002
        assert (first.folder / "model.safetensors").read_bytes() == b"w" * 300_000
        assert not (first.folder / "pytorch_model.bin").exists()
    with staged(source, cache, LIMIT) as second:
        assert (second.folder, second.copied_bytes) == (first.folder, 0)


def test_of_two_ranks_that_race_one_copies_and_both_read_the_same_file(source: Path, cache: Path) -> None:
    ranks = [start(source, cache, "go") for _ in range(2)]
    told = [rank.communicate(timeout=120)[0].split() for rank in ranks]

    assert sorted(int(copied) for copied, _ in told) == [0, 300_002]
    assert len({inode for _, inode in told}) == 1


def test_a_rank_that_reads_keeps_none_waiting_that_comes_later(source: Path, cache: Path) -> None:
    with staged(source, cache, LIMIT):
        later = start(source, cache, "go")
        assert later.communicate(timeout=120)[0].startswith("0 ")


def test_when_the_rank_that_copies_is_killed_the_one_that_waits_copies_anew(
    source: Path, cache: Path
) -> None:
    killed = start(source, cache, "hang")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "half\n"
    waiting = start(source, cache, "go")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=3)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    assert waiting.communicate(timeout=120)[0].startswith("300002 ")
    assert len(copies(cache)) == 1
    assert not next(iter(copies(cache))).endswith(".partial")


def damage(copy: Path) -> None:
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[1234] ^= 1
    (copy / "model.safetensors").write_bytes(content)


def shorten(copy: Path) -> None:
    os.truncate(copy / "model.safetensors", 5)


@pytest.mark.parametrize("harm", [damage, shorten], ids=lambda harm: harm.__name__)
def test_a_copy_that_was_damaged_before_the_node_was_started_is_made_again(
    harm: Callable[[Path], None], source: Path, cache: Path
) -> None:
    with staged(source, cache, LIMIT) as copy:
        pass
    record = json.loads((copy.folder / stage._RECORD).read_text(encoding="utf-8"))
    (copy.folder / stage._RECORD).write_text(json.dumps(record | {"boot": "another"}), encoding="utf-8")
    with staged(source, cache, LIMIT) as same:
        assert same.copied_bytes == 0, "the checksums are right"
    (copy.folder / stage._RECORD).write_text(json.dumps(record | {"boot": "another"}), encoding="utf-8")
    harm(copy.folder)

    with staged(source, cache, LIMIT) as again:
        assert again.copied_bytes == 300_002
        assert (again.folder / "model.safetensors").read_bytes() == b"w" * 300_000


def test_another_model_in_the_same_place_gets_another_copy(source: Path, cache: Path) -> None:
    with staged(source, cache, LIMIT) as first:
        pass
    write_model(source, b"v", 200_000)
    with staged(source, cache, LIMIT) as second:
        assert second.folder != first.folder
        assert (second.folder / "model.safetensors").read_bytes() == b"v" * 200_000


def test_the_least_recently_used_copies_leave_and_those_in_use_stay(tmp_path: Path, cache: Path) -> None:
    one, two, three = (write_model(tmp_path / name) for name in ("one", "two", "three"))
    with staged(one, cache, 700_000) as first:
        with staged(two, cache, 700_000) as second:
            pass
        os.utime(first.folder, (0, 0))  # the oldest, but in use
        with staged(three, cache, 700_000) as third:
            assert copies(cache) == {first.folder.name, third.folder.name}
            with pytest.raises(StorageError, match="model_cache_bytes=700000 is too small") as caught:
                stage_once(two, cache, 700_000)
    assert "\n" not in str(caught.value)
    assert second.folder.name not in copies(cache)
    with staged(two, cache, 700_000) as again:
        assert again.copied_bytes == 300_002


def test_bytes_that_come_otherwise_than_they_were_read_are_never_a_copy(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = stage._copy_file

    def flip(source: Path, target: Path) -> str:
        checksum = good(source, target)
        if target.name == "model.safetensors":
            damage(target.parent)
        return checksum

    monkeypatch.setattr(stage, "_copy_file", flip)
    with pytest.raises(ModelError, match=r"model\.safetensors: changed while it was copied, or .* loses"):
        stage_once(source, cache, LIMIT)
    assert all(name.endswith(".partial") for name in copies(cache))


def test_a_cache_that_cannot_be_written_is_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(
        StorageError, match=r"the model cannot be copied there .* set loader\.model_cache_path"
    ):
        stage_once(source, tmp_path / "file", LIMIT)
