"""Builds the parts of one run and drives the loop: run.json -> parts -> loop -> outcome."""

import resource
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from training.audit.gate import check_audit
from training.checkpoint.commit import Lineage
from training.checkpoint.retention import Retention
from training.checkpoint.store import CheckpointStore
from training.collectives import from_lead, gather_over_ranks, leave, take_blocked_seconds
from training.config.freeze import MODEL_REVISION, note_version, read_frozen, read_run_id
from training.config.schema import RunConfig
from training.data.corpus.manifest import check_settings
from training.data.order.plan import open_plan
from training.data.reading.loader import BatchStream, build_stream
from training.data.reading.reader import Corpus, check_tokenizer, open_corpus
from training.early_stop import HeldOutLoss
from training.engine.deepspeed_engine import DeepSpeedEngine, Place
from training.engine.partition import build_share
from training.engine.seeds import make_deterministic
from training.engine.swap_folder import own_swap_folder
from training.errors import EXIT_OK
from training.fence import FencedError, check_fence, within_fence
from training.layout import RunLayout
from training.loop import StopReason, train
from training.metrics.goodput import find_goodput, read_first_start
from training.metrics.lines import read_lines
from training.metrics.record import MetricsSink
from training.metrics.sink import open_metrics
from training.metrics.system import start_system_watch
from training.model.arithmetic import flops_per_token, peak_flops
from training.model.folder import fingerprint_base
from training.model.inputs import Batch
from training.model.kind import AnyModel
from training.model.place import find_revision
from training.model.provenance import check_source, describe_source
from training.model.self_test import CUTS, measure_isolation, refuse_leak
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.parts import Parts
from training.progress import Progress
from training.ranks import Ranks
from training.rules.check import check_rules
from training.rules.strategies import effective_stage
from training.schedule import learning_rate_at
from training.worker.attended import mean_attended_tokens
from training.worker.blame import find_names, name_worst_documents
from training.worker.life import Life, Outside, claim_life, end_unborn, gather_host_notes, open_pace
from training.worker.questions import open_questions
from training.worker.start import take_place
from training.worker.tell import tell_end, tell_failure

_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What stays the same while a run is trained."""

    layout: RunLayout
    config: RunConfig
    place: Place
    corpus: Corpus
    engine: DeepSpeedEngine
    metrics: MetricsSink
    life: Life


def run(layout: RunLayout, ranks: Ranks, outside: Outside) -> int:
    """Train until the run is finished or asked to stop; give the exit code. Collective.

    A stop that is asked for before there is a loop to stop is heard once all ranks have met.
    """
    frozen = read_frozen(layout.config)
    check_rules(frozen)
    with own_swap_folder(frozen) as config:
        return _run(layout, config, ranks, outside)


def _run(layout: RunLayout, config: RunConfig, ranks: Ranks, outside: Outside) -> int:
    outside.pulse.enter("start", 0)
    if config.deterministic:
        make_deterministic()
    place = take_place(config, ranks)
    corpus = open_corpus(config.data.path, "train", config.loader)
    if config.model.source != "huggingface":
        check_source(Path(config.model.folder or ""), describe_source(config.model))
    check_tokenizer(corpus.manifest, tokenizer_fingerprint(load_tokenizer(config.model)), config.data.path)
    check_settings(corpus.manifest, config.data)
    rows = open_plan(corpus, config.batch.sequence_length, config.data.long_documents)
    check_audit(corpus.manifest, rows.by_source, config.batch.sequence_length, config.audit)
    life = claim_life(layout, config, place, outside)
    try:
        system = start_system_watch(layout, ranks, config.tracker.system_seconds)
        with within_fence(layout.incarnations, life.incarnation), closing(system):
            _live(layout, config, place, corpus, life)
    except FencedError:
        raise
    except Exception as error:
        tell_failure(layout, ranks, error, life.incarnation)
        raise
    leave()
    return EXIT_OK


def _live(layout: RunLayout, config: RunConfig, place: Place, corpus: Corpus, life: Life) -> None:
    """Train, and leave the outcome of an orderly end."""
    if life.stop.is_set():
        finished, step = False, end_unborn(layout, place, life)
    else:
        reason, progress = _build_and_train(layout, config, place, corpus, life)
        finished, step = reason is StopReason.FINISHED, progress.step
    life.pulse.enter("finish", step)
    if place.ranks.is_lead:
        check_fence(layout.incarnations, life.incarnation)
        state: Literal["COMPLETED", "STOPPED"] = "COMPLETED" if finished else "STOPPED"
        tell_end(layout, state, step, life.incarnation, life.stop.notice)


def _build_and_train(
    layout: RunLayout, config: RunConfig, place: Place, corpus: Corpus, life: Life
) -> tuple[StopReason, Progress]:
    model, why_whole = build_share(config, place)
    if place.ranks.is_lead and (revision := find_revision(config.model)):
        note_version(layout.config, MODEL_REVISION, revision)
    metrics = _open_metrics(layout, config, place, life.incarnation, _flops_per_token(config, model, corpus))
    try:
        for note in gather_host_notes(place, config.cluster.nodes):
            metrics.event("note", text=note)
        if why_whole is not None:
            text = f"every rank has read the whole model before its share of it was cut: {why_whole}"
            metrics.event("note", text=text)
        engine = DeepSpeedEngine(model, config, place, sources=len(corpus.manifest.sources))
        _check_isolation(engine, corpus, metrics)
        store = CheckpointStore(
            engine, _lineage(layout, config, place.ranks, life.incarnation, corpus), metrics
        )
        scene = Scene(
            layout=layout,
            config=config,
            place=place,
            corpus=corpus,
            engine=engine,
            metrics=metrics,
            life=life,
        )
        reason, progress = _train(scene, store)
    except Exception as error:
        metrics.event("failed", error_class=type(error).__name__, reason=str(error))
        raise
    finally:
        metrics.close()
    return reason, progress


def _train(scene: Scene, store: CheckpointStore) -> tuple[StopReason, Progress]:
    config, place, metrics = scene.config, scene.place, scene.metrics
    progress = store.resume()
    metrics.rewind(progress)
    metrics.event("resumed" if progress.step else "started", step=progress.step)
    batches = build_stream(
        scene.corpus,
        place.plan,
        config,
        rank=place.ranks.rank,
        samples_seen=progress.samples_seen,
    )
    for note in batches.notes:
        metrics.event("note", text=note)
    parts = _gather_parts(scene, store, batches)
    first = progress.step
    try:
        reason, progress = train(parts, config.loop, progress)
    finally:
        batches.close()
        store.close()
    # The command of a finished run, typed again, says nothing new; least of all about the time since then.
    facts = _find_goodput(scene.layout) if place.ranks.is_lead and progress.step > first else {}
    if reason is StopReason.FINISHED:
        metrics.event("finished", step=progress.step, **facts)
    else:
        metrics.event("stopped", step=progress.step, notice=scene.life.stop.notice, **facts)
    return reason, progress


def _find_goodput(layout: RunLayout) -> dict[str, float]:
    found = find_goodput(
        read_lines(layout.metrics), started=read_first_start(layout.incarnations), now=time.time()
    )
    return asdict(found) | {"goodput": found.goodput}


def _gather_parts(scene: Scene, store: CheckpointStore, batches: BatchStream) -> Parts[Batch]:
    config, place, engine = scene.config, scene.place, scene.engine
    sources = list(scene.corpus.manifest.sources)

    def blame(micro_batches: Sequence[Batch], position: int) -> list[str]:
        names = find_names(
            scene.corpus, batches.rows, batches.order, place.plan, rank=place.ranks.rank, position=position
        )
        return name_worst_documents(micro_batches, names, partial(engine.measure_nats, by_document=True))

    def measure_nothing(_: Progress) -> HeldOutLoss:
        raise RuntimeError("no documents were held ready: loop.evaluate_every_steps is null")

    def tell_memory() -> None:
        if engine.memory is not None:
            ranks = [asdict(account) for account in gather_over_ranks(engine.memory)]
            scene.metrics.event("memory", ranks=ranks)

    return Parts(
        batches=batches,
        engine=engine,
        checkpoints=store,
        metrics=scene.metrics,
        stop=scene.life.stop,
        pulse=scene.life.pulse,
        pace=open_pace(scene.layout, place, scene.life.pulse),
        sources=sources,
        learning_rate_at=lambda step: learning_rate_at(
            step, optimizer=config.optimizer, schedule=config.schedule, max_steps=config.loop.max_steps
        ),
        memory_peak_bytes=lambda: memory_peak_bytes(place.device),
        blame=blame,
        tell_memory=tell_memory,
        measure_held_out=open_questions(config, place, engine, sources, scene.metrics)
        if config.loop.evaluate_every_steps
        else measure_nothing,
        take_blocked_seconds=take_blocked_seconds,
    )


def _check_isolation(engine: DeepSpeedEngine, corpus: Corpus, metrics: MetricsSink) -> None:
    """Refuse to train where packed documents see each other; tell how far they are from it."""
    started = time.perf_counter()
    # The first ones: of a remote corpus no more than a shard or two is fetched for them.
    documents = [corpus.document(place).input_ids for place in range(min(len(CUTS), len(corpus)))]
    isolation = measure_isolation(engine.model, documents, engine)
    refuse_leak(gather_over_ranks(isolation))
    metrics.event("self_test", **asdict(isolation), seconds=round(time.perf_counter() - started, 3))


def _lineage(layout: RunLayout, config: RunConfig, ranks: Ranks, incarnation: int, corpus: Corpus) -> Lineage:
    return Lineage(
        layout=layout,
        ranks=ranks,
        zero_stage=effective_stage(config.strategy.zero_stage, config.precision),
        run=read_run_id(layout.config),
        incarnation=incarnation,
        optimizer=config.optimizer.kind,
        corpus=corpus.manifest.fingerprint,
        base=from_lead(fingerprint_base(config.model) if ranks.is_lead else ""),
        keep=Retention(newest=config.loop.keep_checkpoints, every_steps=config.loop.keep_every_steps),
        versions=_find_versions(config),
        tensor_parallel_size=config.strategy.tensor_parallel_size,
    )


def _find_versions(config: RunConfig) -> dict[str, str]:
    revision = find_revision(config.model)
    return {name: version(name) for name in _PACKAGES} | ({MODEL_REVISION: revision} if revision else {})


def _open_metrics(
    layout: RunLayout, config: RunConfig, place: Place, incarnation: int, flops: float | None
) -> MetricsSink:
    on_gpu = place.device.type == "cuda"
    return open_metrics(
        layout,
        config,
        place.ranks,
        incarnation=incarnation,
        flops_per_token=flops,
        peak_flops=peak_flops(torch.cuda.get_device_name(place.device)) if on_gpu else None,
    )


def _flops_per_token(config: RunConfig, model: AnyModel, corpus: Corpus) -> float | None:
    """Count what a token of this corpus costs: it attends to its own document, cut to a row, alone."""
    attended = mean_attended_tokens(corpus.lengths, config.batch.sequence_length, config.data.long_documents)
    return flops_per_token(model.config.to_dict(), attended, frozen_base=config.adapter.kind != "none")


def memory_peak_bytes(device: torch.device) -> int:
    """Measure the most memory used so far: the device's on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
