"""The report as one value: what report.json holds and every picture and page is drawn from."""

import json
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from training.config.schema import RunConfig
from training.data.corpus.manifest import Manifest
from training.evaluation.material import Material
from training.evaluation.scores import Comparison, Scores
from training.evaluation.words import tell_domain, tell_general, tell_headline
from training.metrics.accounts import Accounts

FORMAT = 1
MOST_CURVE_POINTS = 2000
PACKAGES = ("metier", "torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One step of the loss curve."""

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the journal tells of the training."""

    steps: int
    max_steps: int
    samples_seen: int
    tokens: int
    seconds: float
    tokens_per_second: float
    curve: list[CurvePoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """Where one source's documents came from."""

    name: str
    licence: str
    provenance: str
    documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """What the corpus' manifest tells."""

    fingerprint: str
    sources: list[SourceFacts]
    train_documents: int
    train_tokens: int
    held_out_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is told."""

    name: str
    made: str
    """UTC, ISO 8601."""

    checkpoint_step: int
    headline: str
    gained: str
    lost: str
    confidence: float
    bootstrap_samples: int
    scores: Scores
    training: Training
    accounts: Accounts
    """Of the whole run so far, also of what came after the checkpoint."""

    corpus: CorpusFacts
    cut_documents: int
    """Held-out documents of which only the first sequence_length tokens were measured."""

    settings: list[tuple[str, str]]
    versions: dict[str, str]
    seconds: float
    """How long the evaluation took."""

    def comparisons(self) -> list[Comparison]:
        """List the table's rows."""
        scores = self.scores
        rows = [scores.domain, scores.domain_perplexity, scores.exact, scores.word_f1, scores.general]
        return [row for row in rows if row is not None]

    def as_json(self) -> str:
        """Give report.json's text."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What the measurement itself was made with."""

    checkpoint_step: int
    device: str
    kernel: str
    seconds: float
    accounts: Accounts
    training_versions: dict[str, str]
    """Of the packages at the start of the training, from run.json."""


def build_report(
    config: RunConfig,
    scores: Scores,
    material: Material,
    journal: list[dict[str, Any]],
    manifest: Manifest,
    circumstances: Circumstances,
) -> Report:
    """Put together what is told."""
    confidence = config.evaluation.confidence
    return Report(
        name=config.name,
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        checkpoint_step=circumstances.checkpoint_step,
        headline=tell_headline(scores),
        gained=tell_domain(scores, confidence),
        lost=tell_general(scores, confidence),
        confidence=confidence,
        bootstrap_samples=config.evaluation.bootstrap_samples,
        scores=scores,
        training=sum_up_training(journal, config.loop.max_steps, circumstances.checkpoint_step),
        accounts=circumstances.accounts,
        corpus=sum_up_corpus(manifest),
        cut_documents=material.cut,
        settings=list_settings(config, circumstances),
        versions=circumstances.training_versions | find_versions(),
        seconds=round(circumstances.seconds, 1),
    )


def sum_up_training(journal: list[dict[str, Any]], max_steps: int, checkpoint_step: int) -> Training:
    """Add up the steps that led to the checkpoint; thin out a very long curve evenly."""
    lines = [line for line in journal if line["step"] <= checkpoint_step]
    seconds = sum(line["step_seconds"] + line["checkpoint_stall_seconds"] for line in lines)
    tokens = sum(line["tokens"] for line in lines)
    stride = -(-len(lines) // MOST_CURVE_POINTS) or 1
    return Training(
        steps=checkpoint_step,
        max_steps=max_steps,
        samples_seen=lines[-1]["samples_seen"] if lines else 0,
        tokens=tokens,
        seconds=round(seconds, 1),
        tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        curve=[
            CurvePoint(step=line["step"], loss=line["loss"], learning_rate=line["learning_rate"])
            for line in lines[::stride]
            if line["loss"] is not None
        ],
    )


def sum_up_corpus(manifest: Manifest) -> CorpusFacts:
    """Take from the manifest what a reader wants to know."""
    train, held_out = manifest.splits["train"], manifest.splits["held_out"]
    return CorpusFacts(
        fingerprint=manifest.fingerprint,
        sources=[
            SourceFacts(
                name=name,
                licence=source.licence,
                provenance=", ".join(f"{key} {_brief(value)}" for key, value in source.provenance.items()),
                documents=source.documents,
            )
            for name, source in manifest.sources.items()
        ],
        train_documents=train.counts.documents,
        train_tokens=train.counts.tokens,
        held_out_documents=held_out.counts.documents,
    )


def list_settings(config: RunConfig, circumstances: Circumstances) -> list[tuple[str, str]]:
    """List what decided the result, in words."""
    adapter, batch = config.adapter, config.batch
    trained = "all weights"
    if adapter.kind != "none":
        name = {"lora": "LoRA", "dora": "DoRA"}[adapter.kind]
        trained = f"{name}, rank {adapter.rank}, alpha {adapter.alpha:g}, on a {adapter.base_bits}-bit base"
    return [
        ("Model", config.model.path or "random weights"),
        ("Trained", trained),
        (
            "Optimizer",
            f"{config.optimizer.kind}, learning rate {config.optimizer.learning_rate:g}, "
            f"{config.schedule.kind} schedule",
        ),
        ("Batch", f"{batch.global_batch_size} samples of {batch.sequence_length} tokens per step"),
        ("Spread", f"ZeRO stage {config.strategy.zero_stage}, {_count_processes(config)}"),
        ("Precision", config.precision),
        ("Attention", circumstances.kernel),
        ("Measured on", circumstances.device),
        ("Seed", str(config.seed)),
    ]


def find_versions() -> dict[str, str]:
    """Find the versions that made the measurement; a missing package is left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _count_processes(config: RunConfig) -> str:
    cluster = config.cluster
    kind, count = (
        ("GPU", cluster.gpus_per_node)
        if cluster.gpus_per_node
        else ("CPU process", cluster.processes_per_node)
    )
    total = cluster.nodes * count
    plural = kind + ("" if total == 1 else "es" if kind.endswith("s") else "s")
    return f"{total} {plural} on {cluster.nodes} node{'' if cluster.nodes == 1 else 's'}"


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004
