"""Evaluates a run: the newest checkpoint against the model as it was before, on the same documents."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from training.checkpoint.load import check_base, check_corpus, find_checkpoint, read_step
from training.config.schema import RunConfig
from training.data.reading.reader import check_tokenizer, open_corpus
from training.evaluation.answers import Question, ask
from training.evaluation.material import Material, gather_material
from training.evaluation.measure import Measurement, measure
from training.evaluation.publish import publish_report
from training.evaluation.report import Circumstances, build_report
from training.evaluation.scores import compare
from training.evaluation.table import print_report
from training.evaluation.unpack import unpack_layers
from training.layout import RunLayout
from training.metrics.accounts import read_accounts
from training.metrics.lines import read_lines
from training.model.folder import fingerprint_base
from training.model.kind import AnyModel
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.model.trained import load_trained_model

PLAIN_WIDTH = 100
"""Columns where no terminal says how many there are."""


def evaluate(config: RunConfig) -> None:
    """Measure before and after, write report/, and print the table.

    Args:
        config: The run's; how it is evaluated may differ from what was frozen when it was trained.

    Raises:
        CheckpointError: The run has no checkpoint yet.
        DataError: The corpus is missing, or was prepared with another tokenizer.
        ModelError: The model is missing.
        StorageError: The corpus cannot be fetched, or the report not be written.
    """
    started = time.perf_counter()
    layout = RunLayout.of(config.run_root, config.name)
    checkpoint = find_checkpoint(layout, None)
    corpus = open_corpus(config.data.path, "held_out", config.loader)
    tokenizer = load_tokenizer(config.model)
    check_tokenizer(corpus.manifest, tokenizer_fingerprint(tokenizer), config.data.path)
    check_corpus(checkpoint, corpus.manifest.fingerprint)
    check_base(checkpoint, fingerprint_base(config.model))
    material = gather_material(
        corpus,
        config.evaluation,
        tokenizer,
        sequence_length=config.batch.sequence_length,
        salt=config.data.split_seed,
    )
    questions = [ask(document, tokenizer) for document in material.questions]
    console = open_console()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before, after, kernel = measure_both(
        config, checkpoint, tokenizer, material, questions, device=device, console=console
    )
    report = build_report(
        config,
        compare(material, questions, before, after, config.evaluation, seed=config.data.split_seed),
        material,
        read_lines(layout.metrics),
        corpus.manifest,
        Circumstances(
            checkpoint_step=read_step(checkpoint),
            device=name_device(device),
            kernel=kernel,
            seconds=time.perf_counter() - started,
            accounts=read_accounts(layout),
            training_versions=json.loads(layout.config.read_text(encoding="utf-8")).get("versions", {}),
        ),
    )
    publish_report(report, layout.report)
    print_report(console, report, layout.report)


def measure_both(  # noqa: PLR0913 - the run, what is measured, and where
    config: RunConfig,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    questions: list[Question],
    *,
    device: torch.device,
    console: Console,
) -> tuple[Measurement, Measurement, str]:
    """Measure the model without and with what training changed; also name the attention kernel.

    An adapter is switched off for "before", so that the base is the very same, 4-bit or not, and only
    training differs. Otherwise two models are loaded, one after the other.
    """
    work = len(material.held_out) + len(material.general) + len(questions)

    def measure_one(model: AnyModel, name: str) -> Measurement:
        with show_progress(console, name, work) as advance:
            return measure(model, tokenizer, material, questions, config.evaluation, advance=advance)

    if config.adapter.kind == "none":
        before = measure_one(load_trained_model(config, None, device), "before")
        model = load_trained_model(config, checkpoint, device)
    else:
        model = load_trained_model(config, checkpoint, device)
        if device.type == "cpu":
            unpack_layers(model)
        with model.disable_adapter():
            before = measure_one(model, "before")
    return before, measure_one(model, "after"), str(model.config._attn_implementation)


@contextmanager
def show_progress(console: Console, name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal, one line when done elsewhere."""
    started = time.perf_counter()
    if not console.is_terminal:
        yield lambda done: None
        console.print(
            f"measured {name}: {total} documents in {time.perf_counter() - started:.0f}s", highlight=False
        )
        return
    columns = (
        TextColumn("[bold]measuring {task.description}"),
        BarColumn(bar_width=None, complete_style="green"),
    )
    with Progress(
        *columns, MofNCompleteColumn(), TimeRemainingColumn(), console=console, expand=True
    ) as progress:
        task = progress.add_task(name, total=total)
        yield lambda done: progress.advance(task, done)


def open_console() -> Console:
    """Write as wide as the terminal is; in a file or a pipe wide enough for the table."""
    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=PLAIN_WIDTH)


def name_device(device: torch.device) -> str:
    """Name the GPU, or say how many cores were used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"
