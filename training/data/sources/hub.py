"""Datasets of the Hugging Face hub, and folders that `datasets` loads: streamed, nothing of them is stored.

The revision is resolved to a commit when the pieces are listed, and every process reads that commit: a
dataset that is pushed to in the meantime stays the one that was begun. One piece is one shard of the
dataset (a file, as a rule); with ``max_documents`` the dataset is one piece.
"""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from training.config.sources import HubSource
from training.data.documents import Document, Provenance
from training.data.sources.formats.tables import list_rows
from training.data.sources.pieces import Piece, Row, Skipped
from training.data.sources.records import RecordParser, read_rows
from training.errors import DataError

ROWS_PER_BATCH = 512
MOST_REASON = 300
"""Characters of an upstream message that are passed on: some go on for pages."""

HUB = "hf://"


@dataclass(frozen=True, slots=True)
class _State:
    """What a dataset was when it was asked."""

    identity: dict[str, Any]
    bytes: int


def list_hub_pieces(name: str, source: HubSource) -> list[Piece]:
    """List the dataset's shards, in order.

    Raises:
        DataError: There is no such dataset, subset or split, or the hub cannot be reached.
    """
    state = _find_state(name, source)
    if source.max_documents is not None:
        return [Piece(source.dataset, 0, None, state.identity, state.bytes)]
    with _stream(name, source, state.identity) as dataset:
        shards = int(dataset.num_shards)
    share = state.bytes // shards
    return [Piece(source.dataset, shard, shard + 1, state.identity, share) for shard in range(shards)]


def read_hub_piece(name: str, source: HubSource, piece: Piece, skip: int = 0) -> Iterator[Document | Skipped]:
    """Yield what lies in the piece, without its first ``skip`` items.

    Raises:
        DataError: The dataset is gone or changed, or a record is bad and ``bad_records`` is refuse.
    """
    if "revision" not in piece.identity and (found := _find_state(name, source).identity) != piece.identity:
        raise DataError(
            f"{source.dataset}: changed since it was listed ({piece.identity} -> {found}); "
            "start `metier prepare` again"
        )
    if source.max_documents is not None:
        yield from islice(_read_first(name, source, piece), skip, None)
        return
    parser = RecordParser(name, source)
    if parser.schema is None and (piece.start or skip):
        first = Piece(piece.name, 0, 1, piece.identity, 0)
        with closing(_stream_rows(name, source, first, 0)) as rows:
            parser.recognise_from(rows)
    with closing(_stream_rows(name, source, piece, skip)) as rows:
        yield from read_rows(parser, source, rows)


def trace_hub(name: str, source: HubSource) -> Provenance:
    """Name the dataset and the commit that is read.

    Raises:
        DataError: There is no such dataset, or the hub cannot be reached.
    """
    content = {
        "dataset": source.dataset,
        "subset": source.subset,
        "split": source.split,
        **_find_state(name, source).identity,
    }
    return Provenance(content=content, licence=source.licence, notes=dict(source.provenance))


def _read_first(name: str, source: HubSource, piece: Piece) -> Iterator[Document | Skipped]:
    read = 0
    with closing(_stream_rows(name, source, piece, 0)) as rows:
        for item in read_rows(RecordParser(name, source), source, rows):
            yield item
            read += isinstance(item, Document)
            if read == source.max_documents:
                return


def _stream_rows(name: str, source: HubSource, piece: Piece, skip: int) -> Generator[Row, None, None]:
    before = f"{source.dataset}/{source.split}"
    with _stream(name, source, piece.identity) as whole:
        dataset = whole
        if piece.stop is not None:
            dataset = whole.shard(num_shards=whole.num_shards, index=piece.start)
            before += f"-{piece.start}"
        if "Json(" in str(dataset.features):
            # Stored as text; only `datasets` knows which strings are JSON and which are strings.
            for row, record in enumerate(dataset.skip(skip), start=skip + 1):
                yield f"{before}:{row}", record
            return
        row = 0
        for table in dataset.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
            taken = min(max(skip - row, 0), len(table))
            yield from list_rows(before, row + taken, table.slice(taken))
            row += len(table)


@contextmanager
def _stream(name: str, source: HubSource, identity: dict[str, Any]) -> Iterator[Any]:
    import datasets  # noqa: PLC0415 -- seconds, which those who read other sources need not wait

    datasets.disable_progress_bars()
    # Locks and cards that `datasets` writes even when it streams: not into the user's home.
    with tempfile.TemporaryDirectory(prefix="metier-hub-") as cache, _explain(name, source):
        yield datasets.load_dataset(
            _split_name(source)[0],
            name=source.subset,
            split=source.split,
            streaming=True,
            revision=identity.get("revision"),
            cache_dir=cache,
        )


def _find_state(name: str, source: HubSource) -> _State:
    dataset, revision = _split_name(source)
    if source.dataset.startswith(HUB):
        from huggingface_hub import HfApi  # noqa: PLC0415 -- as above

        with _explain(name, source):
            info = HfApi().dataset_info(dataset, revision=revision, files_metadata=True)
        size = sum(file.size or 0 for file in info.siblings or [])
        return _State({"revision": info.sha}, size)
    folder = Path(dataset)
    if not folder.is_dir():
        raise DataError(
            f"data.sources.{name}.dataset: no folder {dataset} (seen from {Path.cwd()}); "
            f"a dataset of the hub is {HUB}OWNER/NAME"
        )
    with _explain(name, source):
        files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    newest = max((file.st_mtime_ns for file in files), default=0)
    size = sum(file.st_size for file in files)
    return _State({"files": len(files), "bytes": size, "modified_ns": newest}, size)


def _split_name(source: HubSource) -> tuple[str, str | None]:
    if not source.dataset.startswith(HUB):
        return source.dataset, None
    dataset, _, revision = source.dataset.removeprefix(HUB).removeprefix("datasets/").partition("@")
    return dataset, revision or None


@contextmanager
def _explain(name: str, source: HubSource) -> Iterator[None]:
    """Turn what `datasets` and the hub raise, which is of a dozen unrelated types, into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(
            f"data.sources.{name}.dataset: {source.dataset} cannot be read ({reason[:MOST_REASON]}); "
            "check its name, subset and split, and the network, or download it and give its folder"
        ) from None
