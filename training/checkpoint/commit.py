"""Brings one checkpoint to the disk, so that it is complete or it is not there.

The protocol: every rank writes its share into a staging folder and makes it durable; sizes and checksums go
to the lead through a collective, never through a shared disk's directory cache; the lead writes index and
manifest, looks at the fence, renames the folder (the commit) and makes the rename durable; all learn the
verdict. Whatever dies in between leaves a staging folder that the next save removes.
"""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from training.checkpoint.load import set_aside
from training.checkpoint.manifest import MANIFEST, FileRecord, Manifest
from training.checkpoint.retention import STAGING, Retention, prune, sweep
from training.checkpoint.share import Share, write_durably, write_share
from training.collectives import Council
from training.errors import StorageError
from training.fence import FencedError, check_fence
from training.files import say_bytes, sync_folder
from training.fragments.index import INDEX, Piece, build_index, dump_index
from training.layout import RunLayout
from training.progress import Progress
from training.ranks import Ranks

_MARGIN_BYTES = 16 << 20  # for index and manifest, and for the journal to go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Which run, which start of it, and how it is cut."""

    layout: RunLayout
    ranks: Ranks
    zero_stage: int
    """The one that was really carried out."""

    run: str
    """The run's id, as run.json has it."""

    incarnation: int
    optimizer: str
    """Its kind."""

    corpus: str
    """The corpus's fingerprint: a position means nothing in another corpus."""

    base: str
    """The base's fingerprint: an adapter, or what was not frozen, means nothing on other weights."""

    keep: Retention
    versions: dict[str, str]
    tensor_parallel_size: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is saved beside the tensors."""

    progress: Progress
    score: float | None


def write_checkpoint(
    share: Share | StorageError, moment: Moment, lineage: Lineage, council: Council
) -> StorageError | FencedError | None:
    """Write, commit and prune; give what went wrong, the same on every rank. Collective, within ``council``.

    Args:
        share: This rank's, or why it has none: then no rank commits.
        moment: Step and position.
        lineage: The run.
        council: The ranks' way to talk while the training talks as well.
    """
    checkpoints, step = lineage.layout.checkpoints, moment.progress.step
    staging = checkpoints / f"{STAGING}{step:08d}_{lineage.incarnation}"
    sizes = council.gather(0 if isinstance(share, StorageError) else share.size)
    problem = council.from_lead(_begin(staging, sum(sizes), lineage) if lineage.ranks.is_lead else None)
    if isinstance(problem, FencedError):
        return problem
    answers = council.gather_to_lead(_write_own(staging, share, lineage.ranks.rank, problem))
    verdict: StorageError | FencedError | None = None
    if lineage.ranks.is_lead:
        try:
            _commit(staging, answers, moment, lineage)
        except Exception as error:
            # Here as well: the others wait for the verdict.
            shutil.rmtree(staging, ignore_errors=True)
            verdict = error if isinstance(error, FencedError) else _explain(step, error)
        else:
            # The checkpoint is complete, and the others wait: what cannot be dropped now goes next time.
            with contextlib.suppress(OSError):
                prune(checkpoints, lineage.keep)
    return council.from_lead(verdict)


def _begin(staging: Path, wanted: int, lineage: Lineage) -> str | FencedError | None:
    """Make room unless a newer start has taken over: what lies about may be what that one is writing."""
    try:
        check_fence(lineage.layout.incarnations, lineage.incarnation)
    except FencedError as error:
        return error
    return _make_room(staging, wanted)


def _make_room(staging: Path, wanted: int) -> str | None:
    """Remove leftovers and make the staging folder; say why it cannot work where that is known."""
    try:
        staging.parent.mkdir(parents=True, exist_ok=True)
        sweep(staging.parent)
        free = shutil.disk_usage(staging.parent).free
        if free < wanted + _MARGIN_BYTES:
            needed = say_bytes(wanted + _MARGIN_BYTES)
            return f"with some room for what follows it needs {needed}, the disk has {say_bytes(free)} free"
        staging.mkdir()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _write_own(
    staging: Path, share: Share | StorageError, rank: int, problem: str | None
) -> tuple[FileRecord | None, tuple[Piece, ...], str | None]:
    """Give the file's record and what is in it, or the reason why there is none."""
    if problem is None and isinstance(share, StorageError):
        problem = str(share)
    if problem is not None or isinstance(share, StorageError):
        return None, (), problem
    try:
        return write_share(staging / f"rank_{rank:05d}.bin", share), share.pieces, None
    except Exception as error:
        # Whatever it is: a rank that left here would leave the others waiting for it.
        return None, (), f"rank {rank}: {_reason(error)}"


def _commit(
    staging: Path,
    answers: list[tuple[FileRecord | None, tuple[Piece, ...], str | None]],
    moment: Moment,
    lineage: Lineage,
) -> None:
    for _, _, problem in answers:
        if problem:
            raise StorageError(problem)
    files = [record for record, _, _ in answers if record is not None]
    index = build_index([record.path for record in files], [pieces for _, pieces, _ in answers])
    files.append(write_durably(staging / INDEX, [memoryview(dump_index(index))]))
    manifest = Manifest(
        step=moment.progress.step,
        samples_seen=moment.progress.samples_seen,
        memory=moment.progress.memory.as_json(),
        world_size=lineage.ranks.world_size,
        zero_stage=lineage.zero_stage,
        tensor_parallel_size=lineage.tensor_parallel_size,
        run=lineage.run,
        incarnation=lineage.incarnation,
        optimizer=lineage.optimizer,
        corpus=lineage.corpus,
        base=lineage.base,
        score=moment.score,
        files=files,
        versions=lineage.versions,
    )
    text = manifest.model_dump_json(indent=2) + "\n"
    write_durably(staging / MANIFEST, [memoryview(text.encode())])
    sync_folder(staging)
    check_fence(lineage.layout.incarnations, lineage.incarnation)
    target = lineage.layout.checkpoint(moment.progress.step)
    if target.exists():
        # Left by an earlier start that was ahead of the checkpoint this one resumed from.
        set_aside(target)
    staging.rename(target)
    sync_folder(lineage.layout.checkpoints)


def _explain(step: int, error: Exception) -> StorageError:
    return StorageError(
        f"checkpoint of step {step} could not be written ({_reason(error)}); free some space on the disk or "
        "set its permissions; what was saved before is untouched"
    )


def _reason(error: BaseException) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
