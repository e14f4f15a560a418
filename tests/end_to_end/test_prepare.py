"""`python -m training.prepare FILE`: what it says, and what it leaves behind when it ends early."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.corpus_case import bytes_of
from tests.end_to_end.prepare_runs import (
    command,
    end_group,
    find_processes,
    find_workers,
    freeze,
    has_committed,
    run,
    start,
    wait_for_commits,
    wait_until,
    write_sources,
)
from tests.end_to_end.runs import environment
from training.data.reading.reader import open_corpus

MOST_STARTS = 5
IN_PARALLEL = ("data.tokens_per_shard=60000", "data.long_documents=split", "prepare.processes=2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model is written once, by the first test that prepares."""
    return tmp_path_factory.mktemp("model") / "tiny"


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def over_notes(folder: Path) -> list[str]:
    return ["data=files", f"data.sources.files.paths=[{folder / 'notes.jsonl'}]"]


def test_prepare_says_what_it_made_and_the_second_time_that_it_is_there(tmp_path: Path, model: Path) -> None:
    path = freeze(tmp_path, model, f"data.upload_to=file://{tmp_path / 'elsewhere'}")

    first, second = run(path), run(path)

    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    assert "prepared" in first.stdout
    assert "held_out" in first.stdout
    assert "rows of 256 tokens" in first.stdout
    assert "elsewhere  4 files" in first.stdout
    assert "already prepared" in second.stdout
    assert "elsewhere  0 files" in second.stdout
    assert visible(tmp_path) == ["corpus", "elsewhere", "prepare.json"]
    assert len(open_corpus(tmp_path / "corpus", "train")) > 50
    open_corpus(tmp_path / "elsewhere", "train").verify()


def test_a_broken_record_is_one_line_and_nothing_is_left(tmp_path: Path, model: Path) -> None:
    (tmp_path / "notes.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": \n')

    ended = run(freeze(tmp_path, model, *over_notes(tmp_path)))

    assert ended.returncode == 2
    assert "notes.jsonl:3: " in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert visible(tmp_path) == ["notes.jsonl", "prepare.json"]


def test_a_document_longer_than_the_row_is_one_line(tmp_path: Path, model: Path) -> None:
    texts = [json.dumps({"text": f"{number} " + "word " * 200}) for number in range(40)]
    (tmp_path / "notes.jsonl").write_text("\n".join(texts))

    ended = run(freeze(tmp_path, model, *over_notes(tmp_path), "data.long_documents=refuse"))

    assert ended.returncode == 2
    assert "notes.jsonl:" in ended.stderr
    assert "batch.sequence_length=256" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(tmp_path: Path, model: Path) -> None:
    sources = write_sources(tmp_path, 2, 300)
    path = freeze(tmp_path, model, *IN_PARALLEL, sources=sources)

    def let_no_file_grow() -> None:
        # Every write beyond this size fails in every process, as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    refused = run(path, let_no_file_grow)
    finished = run(path)

    assert refused.returncode == 2, refused.stderr
    assert "cannot be written" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert finished.returncode == 0, finished.stderr
    open_corpus(tmp_path / "corpus", "train").verify()
    assert not [name for name in bytes_of(tmp_path / "corpus") if name.endswith(".partial")]


def test_no_space_left_on_a_real_file_system_is_one_line(tmp_path: Path, model: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=200k tmpfs {disk}"
    unshare = shutil.which("unshare") or "unshare"
    if subprocess.run([unshare, "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system of its own")
    path = freeze(tmp_path, model, f"data.path={disk}/corpus", sources=write_sources(tmp_path, 1, 600))

    ended = subprocess.run(
        [unshare, "-m", "sh", "-c", f'{mount} && exec "$0" "$@"', *command(path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2, ended.stderr
    assert "cannot be written (No space left on device); free some space" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_any_number_of_processes_kills_and_stops_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    # Much more than is done before the third signal, however late this process hears of a commit.
    sources = write_sources(tmp_path, 4, 3000)
    alone = tmp_path / "alone"
    alone.mkdir()
    assert run(freeze(alone, model, *IN_PARALLEL, "prepare.processes=1", sources=sources)).returncode == 0
    path = freeze(tmp_path, model, *IN_PARALLEL, sources=sources)
    corpus = tmp_path / "corpus"
    moments = random.Random(5)

    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for _ in range(MOST_STARTS):
            already = len(list((corpus / "shards").glob("*.arrow")))
            with start(path) as child:
                wanted = already + moments.randrange(1, 5)
                wait_until(partial(has_committed, child, corpus, wanted), "segments are committed")
                said, problems = end_group(child, number)
            if child.returncode != 0:
                break
            # All was done before the signal came, as on a machine with more to do: from the start again.
            assert (corpus / "manifest.json").exists()
            shutil.rmtree(corpus)
        assert child.returncode == code, problems
        assert not (corpus / "manifest.json").exists()
        wait_until(lambda session=child.pid: not find_processes(session), "all processes have ended")
        if number != signal.SIGKILL:
            assert "stopped: what was done is kept" in said
            assert "Traceback" not in problems
    finished = run(path)

    assert finished.returncode == 0, finished.stderr
    assert bytes_of(corpus) == bytes_of(alone / "corpus")


def test_workers_end_with_their_parent_and_a_worker_that_dies_is_named(tmp_path: Path, model: Path) -> None:
    path = freeze(tmp_path, model, *IN_PARALLEL, sources=write_sources(tmp_path, 3, 1500))
    corpus = tmp_path / "corpus"

    with start(path) as child:
        wait_for_commits(child, corpus)
        assert len(find_workers(child.pid)) == 2
        child.kill()
        wait_until(lambda: not find_processes(child.pid), "the workers have ended")
    already = len(list((corpus / "shards").glob("*.arrow")))
    with start(path) as child:
        wait_for_commits(child, corpus, already + 1)
        worker = find_workers(child.pid)[0]
        os.kill(worker, signal.SIGKILL)
        _, problems = child.communicate()

    assert child.returncode == 2
    assert f"the process {worker} that encoded {tmp_path}/texts" in problems
    assert "was ended by SIGKILL (the kernel does so when memory runs out)" in problems
    assert problems.count("\n") == 1
    wait_until(lambda: not find_processes(child.pid), "all processes have ended")


def test_what_goes_wrong_in_a_worker_is_the_one_line_that_it_would_be_without(
    tmp_path: Path, model: Path
) -> None:
    sources = write_sources(tmp_path, 2, 50)
    with (tmp_path / "texts1.jsonl").open("a") as lines:
        lines.write("broken\n")

    ended = run(freeze(tmp_path, model, *IN_PARALLEL, sources=sources))

    assert ended.returncode == 2
    assert "texts1.jsonl:51: " in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_array_of_jobs_makes_what_one_job_makes(tmp_path: Path, model: Path) -> None:
    sources = write_sources(tmp_path, 3, 50)
    alone = tmp_path / "alone"
    alone.mkdir()
    assert run(freeze(alone, model, *IN_PARALLEL, sources=sources)).returncode == 0

    jobs = [
        run(freeze(tmp_path, model, "prepare.tasks=2", f"prepare.task={task}", *IN_PARALLEL, sources=sources))
        for task in (1, 0)
    ]
    manifest_after_jobs = (tmp_path / "corpus" / "manifest.json").exists()
    last = run(freeze(tmp_path, model, *IN_PARALLEL, sources=sources))

    assert [job.returncode for job in jobs] == [0, 0]
    assert "1 of 3 parts are this task's" in jobs[0].stdout
    assert "2 of 3 parts are this task's" in jobs[1].stdout
    assert not manifest_after_jobs
    assert last.returncode == 0, last.stderr
    assert bytes_of(tmp_path / "corpus") == bytes_of(alone / "corpus")


def test_a_url_that_cannot_be_written_is_one_line_and_the_corpus_is_kept(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    ended = run(freeze(tmp_path, model, f"data.upload_to=file://{tmp_path}/file/corpus"))

    assert ended.returncode == 2
    assert f"data.upload_to=file://{tmp_path}/file/corpus: cannot be written" in ended.stderr
    assert ended.stderr.count("\n") == 1
    open_corpus(tmp_path / "corpus", "train").verify()


def test_the_module_says_how_it_is_called() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "training.prepare"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert "metier prepare" in ended.stderr
