"""Prepares a corpus: sources -> token ids -> shards, once per data configuration and tokenizer.

The folder is a corpus once its manifest is there; the manifest is written last and names all that counts.
What an earlier call committed is kept, whatever ended that call.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from training.config.sources import DataConfig
from training.data.corpus.assemble import TokenizerFacts, assemble_manifest
from training.data.corpus.manifest import (
    FORMAT,
    Manifest,
    describe_settings,
    read_manifest,
    write_manifest,
)
from training.data.corpus.parts import (
    Encoding,
    Part,
    PartRecord,
    is_whole,
    plan_parts,
    read_record,
    read_records,
)
from training.data.corpus.segments import Job, Listener
from training.data.documents import Provenance
from training.data.read import trace_source
from training.errors import DataError
from training.files import hold_lock, is_url, write_json
from training.layout import CorpusLayout
from training.model.tokenizer import chat_template_fingerprint

LARGEST_SHORT_ID = 0xFFFF

EncodeJobs = Callable[[Sequence[Job]], None]
"""Encodes parts, in this process or in several, in any order; all are committed when it returns."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What ``prepare_corpus`` found or made."""

    manifest: Manifest
    is_new: bool
    """False when the corpus was there already, made of the same input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which parts one job of an array encodes."""

    tasks: int
    task: int


def prepare_corpus(
    data: DataConfig, tokenizer: TokenizerFacts, encode: EncodeJobs, listener: Listener
) -> Prepared:
    """Encode what is not yet encoded, and write the manifest; keep a corpus that is there already.

    The same input gives the same bytes, for any number of processes. A corpus that was there stays whole
    until the new manifest takes the old one's place; then the files that it does not name are removed.

    Raises:
        DataError: A source is missing or damaged, or changed meanwhile, or a split is empty.
        ModelError: The tokenizer does not fit the documents.
        StorageError: The disk is full or refuses, or another process is writing the same corpus.
    """
    layout = _check_folder(data)
    with _hold_folder(layout):
        parts = _plan(layout, data, tokenizer)
        traces = {name: trace_source(name, source) for name, source in data.sources.items()}
        recipe = _hash_recipe(data, tokenizer, parts, traces)
        if (known := _find_whole(layout, recipe)) is not None:
            return Prepared(known, is_new=False)
        _encode_parts(layout, data, tokenizer, parts, encode, listener)
        listener.enter("comparing the splits")
        records = _read_finished(layout, parts)
        manifest = assemble_manifest(data, tokenizer, records, traces)
        write_manifest(layout, manifest)
        _remove_leftovers(layout, manifest, parts)
        # Last: a call that finds it has nothing left to do.
        write_json(_recipe_path(layout), {"recipe": recipe, "fingerprint": manifest.fingerprint})
    return Prepared(manifest, is_new=True)


def prepare_share(
    data: DataConfig, tokenizer: TokenizerFacts, share: Share, encode: EncodeJobs, listener: Listener
) -> tuple[int, int]:
    """Encode one job's share of the parts and write no manifest; jobs of one array may run side by side.

    Returns:
        The parts of this share, and all parts.

    Raises:
        DataError: A source is missing or damaged, or changed meanwhile.
        ModelError: The tokenizer does not fit the documents.
        StorageError: The disk is full or refuses, or the corpus is being finished at the same time.
    """
    layout = _check_folder(data)
    with hold_lock(_lock_path(layout), busy=_busy(layout), shared=True):
        parts = _plan(layout, data, tokenizer)
        mine = [part for place, part in enumerate(parts) if place % share.tasks == share.task]
        _encode_parts(layout, data, tokenizer, mine, encode, listener)
    return len(mine), len(parts)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, fingerprint: str) -> TokenizerFacts:
    """Say what the corpus remembers of its tokenizer."""
    largest = max(tokenizer.get_vocab().values())
    return TokenizerFacts(
        fingerprint=fingerprint,
        chat_template=chat_template_fingerprint(tokenizer),
        padding_id=find_padding(tokenizer),
        token_bytes=2 if largest <= LARGEST_SHORT_ID else 4,
    )


def find_padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Choose the id that fills a row's rest; any would do, as padding is never seen nor learnt."""
    padding = tokenizer.pad_token_id
    return padding if isinstance(padding, int) else 0


def _check_folder(data: DataConfig) -> CorpusLayout:
    if is_url(data.path):
        raise DataError(
            f"data.path={data.path} is a URL; prepare into a folder, and name the URL as data.upload_to"
        )
    layout = CorpusLayout(Path(data.path))
    is_corpus = layout.manifest.exists() or layout.parts.is_dir()
    root = layout.root
    if root.exists() and not is_corpus and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"data.path={root} is there already and holds no corpus; choose another folder")
    return layout


@contextlib.contextmanager
def _hold_folder(layout: CorpusLayout) -> Iterator[None]:
    """Keep every other call out; where nothing was committed in a new folder, leave nothing behind."""
    was_there = layout.root.exists()
    with hold_lock(_lock_path(layout), busy=_busy(layout)):
        try:
            yield
        except BaseException:
            if not layout.manifest.exists() and not any(layout.parts.glob("*.json")):
                shutil.rmtree(layout.parts)
                if not was_there:
                    shutil.rmtree(layout.root)
            raise


def _plan(layout: CorpusLayout, data: DataConfig, tokenizer: TokenizerFacts) -> list[Part]:
    return plan_parts(data.sources, _find_encoding(data, tokenizer), read_records(layout))


def _find_encoding(data: DataConfig, tokenizer: TokenizerFacts) -> Encoding:
    return Encoding(
        tokenizer=tokenizer.fingerprint,
        token_bytes=tokenizer.token_bytes,
        control_tokens=data.control_tokens,
        personal_data=data.personal_data,
        held_out_fraction=data.held_out_fraction,
        split_seed=data.split_seed,
        tokens_per_shard=data.tokens_per_shard,
    )


def _encode_parts(
    layout: CorpusLayout,
    data: DataConfig,
    tokenizer: TokenizerFacts,
    parts: Sequence[Part],
    encode: EncodeJobs,
    listener: Listener,
) -> None:
    records = {part.key: read_record(layout, part) for part in parts}
    todo = [part for part in parts if not records[part.key].is_finished]
    if not todo:
        return
    total = sum(part.bytes for part in parts)
    done = total - sum(part.bytes - records[part.key].bytes_done for part in todo)
    listener.begin(total_bytes=total, done_bytes=done)
    encoding = _find_encoding(data, tokenizer)
    encode(
        [
            Job(root=layout.root, part=part, source=data.sources[part.source], encoding=encoding)
            # The largest first: no process is left alone with one at the end.
            for part in sorted(todo, key=lambda part: -part.bytes)
        ]
    )


def _read_finished(layout: CorpusLayout, parts: Sequence[Part]) -> list[PartRecord]:
    records = [read_record(layout, part) for part in parts]
    if any(not record.is_finished for record in records):
        raise DataError(
            f"{layout.root}: a shard vanished while the corpus was made; run the same command again"
        )
    return records


def _hash_recipe(
    data: DataConfig, tokenizer: TokenizerFacts, parts: Sequence[Part], traces: Mapping[str, Provenance]
) -> str:
    """Hash whatever the manifest depends on."""
    values = {
        "format": FORMAT,
        "parts": [part.key for part in parts],
        "sources": {name: (trace.content, trace.licence) for name, trace in traces.items()},
        "settings": describe_settings(data),
        "tokenizer": asdict(tokenizer),
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _find_whole(layout: CorpusLayout, recipe: str) -> Manifest | None:
    try:
        made = json.loads(_recipe_path(layout).read_bytes())
        manifest = read_manifest(layout.root)
    except (OSError, ValueError, DataError):
        return None
    if made != {"recipe": recipe, "fingerprint": manifest.fingerprint}:
        return None
    return manifest if all(is_whole(layout.root, record) for record in manifest.files()) else None


def _remove_leftovers(layout: CorpusLayout, manifest: Manifest, parts: Sequence[Part]) -> None:
    # Packing plans are made of the index, and again where they are missing.
    shutil.rmtree(layout.plans, ignore_errors=True)
    named = {Path(record.file).name for record in manifest.files()}
    records = {f"{part.key}.json" for part in parts} | {_lock_path(layout).name, _recipe_path(layout).name}
    for folder, kept in ((layout.shards, named), (layout.index, named), (layout.parts, records)):
        for path in folder.iterdir():
            if path.name not in kept and path.is_file():
                path.unlink(missing_ok=True)
    for path in layout.root.glob(f".{layout.manifest.name}.*"):
        path.unlink(missing_ok=True)


def _lock_path(layout: CorpusLayout) -> Path:
    return layout.parts / "lock"


def _recipe_path(layout: CorpusLayout) -> Path:
    return layout.parts / "recipe"


def _busy(layout: CorpusLayout) -> str:
    return f"{layout.root}: another `metier prepare` is writing it; wait for it to end"
