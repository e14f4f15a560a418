"""Datasets of the Hugging Face hub, and folders that `datasets` loads: streamed, nothing of them is stored.

The revision is resolved to a commit when the pieces are listed, and every process reads that commit: a
dataset that is pushed to in the meantime stays the one that was begun. A piece is a group of
shards (files, as a rule) of about 64 MiB; with ``max_documents`` the dataset is one piece.

`datasets` writes nothing but the dataset's card, some kilobytes, into the hub's own cache.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
PIECE_BYTES = 1 << 26
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
    step = max(1, PIECE_BYTES // max(share, 1))
    starts = range(0, shards, step)
    stops = [min(start + step, shards) for start in starts]
    return [
        Piece(source.dataset, start, stop, state.identity, share * (stop - start))
        for start, stop in zip(starts, stops, strict=True)
    ]


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
    parser = RecordParser(name, source)
    with _stream(name, source, piece.identity) as dataset:
        shards = range(piece.start, dataset.num_shards if piece.stop is None else piece.stop)
        if source.max_documents is not None:
            items = read_rows(parser, source, _list_rows(source, dataset, shards, 0))
            yield from islice(_take(items, source.max_documents), skip, None)
            return
        if parser.schema is None and (piece.start or skip):
            # The schema that whoever reads the dataset from its beginning sees.
            parser.recognise_from(_list_rows(source, dataset, range(1), 0))
        yield from read_rows(parser, source, _list_rows(source, dataset, shards, skip))


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


def _take(items: Iterator[Document | Skipped], most: int) -> Iterator[Document | Skipped]:
    read = 0
    for item in items:
        yield item
        read += isinstance(item, Document)
        if read == most:
            return


def _list_rows(source: HubSource, dataset: Any, shards: range, skip: int) -> Iterator[Row]:
    # Stored as text; only `datasets` knows which strings are JSON and which are strings.
    nested = "Json(" in str(dataset.features)
    for shard in shards:
        before = f"{source.dataset}/{source.split}-{shard}"
        part = dataset.shard(num_shards=dataset.num_shards, index=shard)
        row = 0
        if nested:
            for row, record in enumerate(part, start=1):
                if row > skip:
                    yield f"{before}:{row}", record
        else:
            for table in part.with_format("arrow").iter(batch_size=ROWS_PER_BATCH):
                taken = min(max(skip - row, 0), len(table))
                yield from list_rows(before, row + taken, table.slice(taken))
                row += len(table)
        skip = max(skip - row, 0)


@contextmanager
def _stream(name: str, source: HubSource, identity: dict[str, Any]) -> Iterator[Any]:
    import datasets  # noqa: PLC0415 -- seconds, which those who read other sources need not wait

    datasets.disable_progress_bars()
    # For the locks that `datasets` writes even when it streams: not into the user's home.
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
