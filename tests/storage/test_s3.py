"""Training from S3: what comes is what was written, whatever happens on the way; or one line says why not."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import boto3
import fsspec
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.storage.s3_case import Fault, Faults, proxy_before
from tests.synthetic_corpus import write_corpus
from training.batch import BatchPlan
from training.config.schema import LoaderConfig
from training.config.sources import MixtureConfig
from training.data.order.order import build_order
from training.data.order.plan import open_plan
from training.data.reading.access import CachedFiles
from training.data.reading.loader import BatchStream
from training.data.reading.reader import Corpus, open_corpus
from training.errors import DataError, StorageError
from training.model.inputs import Batch

LENGTH = 128
GLOBAL = 32
URL = "s3://bucket/corpus"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lengths = np.random.default_rng(2).integers(4, 120, 6000)
    write_corpus(folder, {"law": lengths[:4000], "code": lengths[4000:]}, tokens_per_shard=6000)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[int, Faults]]:
    """An S3 server that holds the corpus, behind the proxy; the environment leads there, as a user's does."""
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    upstream = moto.get_host_and_port()[1]
    with proxy_before(upstream) as (port, faults), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # Below our own tries there are botocore's and s3fs'; ours are what is tested.
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        # fsspec keeps its file systems, and with them the server of an earlier test.
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{upstream}")
        client.create_bucket(Bucket="bucket")
        for path in folder.rglob("*"):
            if path.is_file() and "plans" not in path.parts:
                client.upload_file(str(path), "bucket", f"corpus/{path.relative_to(folder)}")
        client.close()
        yield port, faults
    moto.stop()


@pytest.fixture
def faults(server: tuple[int, Faults]) -> Faults:
    server[1].reset()
    return server[1]


def open_cached(cache: Path, **changes: object) -> Corpus:
    values: dict[str, object] = {
        "cache_path": str(cache),
        "cache_bytes": 10**9,
        "ahead_steps": 2,
        "fetch_attempts": 4,
    }
    values |= {"model_cache_path": None, "model_cache_bytes": 1}
    return open_corpus(URL, "train", LoaderConfig.model_validate(values | changes))


def open_stream(
    corpus: Corpus, *, rank: int = 0, world_size: int = 1, samples_seen: int = 0
) -> tuple[BatchStream, int]:
    """Give the stream, and the steps of an epoch."""
    plan = BatchPlan(
        global_batch_size=GLOBAL,
        micro_batch_size=4,
        gradient_accumulation_steps=GLOBAL // 4 // world_size,
        world_size=world_size,
        sequence_length=LENGTH,
    )
    rows = open_plan(corpus, LENGTH, "refuse")
    mixture = MixtureConfig(by="documents", shares={}, replay=None)
    order = build_order(corpus.record, rows, mixture, seed=1, global_batch_size=GLOBAL, max_steps=100)
    stream = BatchStream(corpus, plan, rows, order, rank=rank, samples_seen=samples_seen, ahead_steps=2)
    return stream, -(-rows.counts.rows // GLOBAL)


def values_of(steps: list[list[Batch]]) -> list[tuple[object, ...]]:
    return [
        (batch.input_ids.tolist(), batch.labels.tolist(), batch.document_bounds, batch.source_ids)
        for step in steps
        for batch in step
    ]


def read(corpus: Corpus, steps: int, samples_seen: int = 0) -> list[tuple[object, ...]]:
    stream, _ = open_stream(corpus, samples_seen=samples_seen)
    with stream:
        return values_of(list(islice(stream, steps)))


def files_of(corpus: Corpus) -> CachedFiles:
    assert isinstance(corpus.files, CachedFiles)
    return corpus.files


FAULTS: list[Fault] = ["503", "drop", "500", "slow", "none"]


def choose_some(path: str, number: int) -> Fault:
    """Half of the shards break once or twice, each in its own way, and then come slowly."""
    kind = int(path.rpartition("/")[2][:4], 16)
    broken = kind % 2 and number < 1 + kind % 4 // 2
    return FAULTS[(kind + number) % 4] if broken else FAULTS[3 + kind % 2]


def test_training_goes_on_through_errors_and_slow_answers(
    tmp_path: Path, folder: Path, faults: Faults
) -> None:
    faults.reset(choose_some)

    found = read(open_cached(tmp_path), 20)

    assert found == read(open_corpus(folder, "train"), 20)
    assert max(faults.asked.values()) > 1, "some were asked for again"


def test_a_shard_that_comes_damaged_is_fetched_again(tmp_path: Path, folder: Path, faults: Faults) -> None:
    faults.reset(lambda path, number: "none" if number else "corrupt")
    corpus = open_cached(tmp_path)

    assert read(corpus, 3) == read(open_corpus(folder, "train"), 3)
    assert files_of(corpus).cache.refetched == len(faults.asked)
    assert set(faults.asked.values()) == {2}


def test_a_shard_that_stays_damaged_is_named(tmp_path: Path, faults: Faults) -> None:
    corpus = open_cached(tmp_path)
    bad = corpus.record.shards[0].file
    faults.reset(lambda path, number: "corrupt" if path.endswith(bad) else "none")
    stream, epoch = open_stream(corpus)

    with stream, pytest.raises(DataError, match=f"^{URL}/{bad}: damaged, .* also when fetched again") as told:
        list(islice(stream, epoch))
    assert "\n" not in str(told.value)


def test_a_server_that_fails_for_good_ends_the_run_in_one_line(tmp_path: Path, faults: Faults) -> None:
    corpus = open_cached(tmp_path, fetch_attempts=2)
    faults.reset(lambda path, number: "drop")
    stream, _ = open_stream(corpus)

    with stream, pytest.raises(StorageError, match=rf"^{URL}/shards/\w+.arrow: .* after 2 attempts") as told:
        next(stream)
    assert "\n" not in str(told.value)


def test_a_server_that_is_not_there_ends_the_run_in_one_line(
    tmp_path: Path, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fsspec's own way to name an endpoint; nobody listens on port 1.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:1"})

    with pytest.raises(StorageError, match=f"^{URL}/manifest.json: .* after 2 attempts") as told:
        open_cached(tmp_path, fetch_attempts=2)
    assert "\n" not in str(told.value)


def test_a_shard_that_was_not_uploaded_is_named(
    tmp_path: Path, server: tuple[int, Faults], faults: Faults
) -> None:
    corpus = open_cached(tmp_path)
    gone = corpus.record.shards[0]
    renamed = gone.model_copy(update={"file": "shards/none.arrow", "checksum": "0" * 32})

    with pytest.raises(DataError, match=f"^{URL}/shards/none.arrow: missing"):
        files_of(corpus).fetch(renamed)


def test_a_resumed_run_fetches_only_what_it_needs(tmp_path: Path, folder: Path, faults: Faults) -> None:
    corpus = open_cached(tmp_path)

    assert read(corpus, 1, 10 * GLOBAL) == read(open_corpus(folder, "train"), 1, 10 * GLOBAL)

    assert len(corpus.record.shards) > 50
    # At most one shard for each sample of the steps that were read, or fetched ahead, by then.
    assert len(faults.asked) < len(corpus.record.shards)


@pytest.mark.parametrize("nodes", [2, 4])
def test_a_node_fetches_about_its_share_of_an_epoch(
    tmp_path: Path, folder: Path, faults: Faults, nodes: int
) -> None:
    fetched, seen = [], []
    for node in range(nodes):
        corpus = open_cached(tmp_path / str(node))
        stream, epoch = open_stream(corpus, rank=node, world_size=nodes)
        steps = epoch - 6  # so that nothing of the next epoch is fetched ahead
        with stream:
            seen.append([values_of([step]) for step in islice(stream, steps)])
        fetched.append(files_of(corpus).cache.fetched_bytes)

    everything = sum(shard.bytes for shard in corpus.record.shards)
    assert sum(fetched) > 0.9 * everything
    assert max(fetched) < (1 / nodes + 0.1) * everything
    together = [value for step in zip(*seen, strict=True) for node in step for value in node]
    assert together == read(open_corpus(folder, "train"), steps)
