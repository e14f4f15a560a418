"""What held-out documents are asked while a run is trained: their loss, and some of them an answer."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from training.config.schema import RunConfig
from training.data.reading.reader import open_corpus
from training.early_stop import HeldOutLoss
from training.engine.deepspeed_engine import DeepSpeedEngine, Place
from training.held_out import HeldOutDocuments, draw_held_out
from training.metrics.record import MetricsSink
from training.model.drawing import Drawing
from training.model.tokenizer import load_tokenizer
from training.progress import Progress
from training.samples import SampleQuestions

_THREE = 3


def open_questions(
    config: RunConfig, place: Place, engine: DeepSpeedEngine, sources: Sequence[str], metrics: MetricsSink
) -> Callable[[Progress], HeldOutLoss]:
    """Hold the documents ready; give what measures their loss and has the questions answered. Collective.

    Raises:
        DataError: The corpus holds out too few documents.
        StorageError: A shard cannot be fetched.
    """
    documents = draw_held_out(
        open_corpus(config.data.path, "held_out", config.loader),
        first=config.evaluation.held_out_documents,
        size=config.loop.held_out_documents,
        sequence_length=config.batch.sequence_length,
        salt=config.data.split_seed,
    )
    tokens = config.batch.micro_batch_size * config.batch.sequence_length
    team = config.strategy.tensor_parallel_size
    held_out = HeldOutDocuments(documents, sources, place.ranks, tokens_per_batch=tokens, together=team)
    samples = SampleQuestions(
        documents[: config.loop.sample_documents],
        load_tokenizer(config.model),
        max_new_tokens=config.loop.sample_tokens,
        drawing=_find_drawing(config),
    )
    together = (config.strategy.zero_stage == _THREE and place.ranks.world_size > 1) or team > 1

    def measure(progress: Progress) -> HeldOutLoss:
        started = time.perf_counter()
        found = held_out.measure(engine.measure_nats, place.device)
        # Who holds all weights answers alone.
        if together or place.ranks.is_lead:
            for answer in samples.answer(engine.model, together=together):
                metrics.answer(progress, answer)
        return replace(found, seconds=time.perf_counter() - started)

    return measure


def _find_drawing(config: RunConfig) -> Drawing | None:
    temperature, top_p = config.loop.sample_temperature, config.loop.sample_top_p
    return Drawing(temperature=temperature, top_p=top_p, seed=config.seed) if temperature else None
