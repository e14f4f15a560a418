"""What `metier prepare` does: the model's folder, then the corpus; each once."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.config.freeze import read_frozen
from training.config.schema import RunConfig
from training.data.corpus import Prepared, prepare_corpus
from training.data.loader import plan_rows
from training.data.reader import open_corpus
from training.model.source import prepare_model
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.prepare.speak import Speaker


def prepare(path: Path) -> None:
    """Prepare what the frozen configuration at ``path`` names.

    Raises:
        MetierError: The configuration, the model, a source or the disk does not allow it.
    """
    config = read_frozen(path)
    console = Console()
    folder = prepare_model(config.model, config.seed)
    console.print(f"model      {escape(str(folder))}", soft_wrap=True)
    tokenizer = load_tokenizer(config.model)
    with Speaker(console) as speaker:
        prepared = prepare_corpus(config.data, tokenizer, tokenizer_fingerprint(tokenizer), speaker.advance)
    state = "prepared" if prepared.is_new else "already prepared"
    console.print(f"corpus     {escape(config.data.path)}  {state}", soft_wrap=True)
    console.print(_tabulate(prepared))
    for name, source in prepared.manifest.sources.items():
        if source.without_targets:
            console.print(
                f"{escape(name)}: {source.without_targets:,} of {source.documents:,} documents hold no "
                "target and were left out",
                soft_wrap=True,
            )
    _say_packing(config, console)


def _say_packing(config: RunConfig, console: Console) -> None:
    # Planned here only to be told: a document that does not fit is known before any training starts.
    length = config.batch.sequence_length
    counts = plan_rows(open_corpus(config.data.path, "train"), length, config.data.long_documents).counts
    console.print(
        f"packing    {counts.rows:,} rows of {length:,} tokens, {counts.density:.1%} filled", soft_wrap=True
    )
    if longer := counts.split + counts.truncated + counts.dropped:
        console.print(
            f"           {longer:,} documents were longer than a row: data.long_documents="
            f"{config.data.long_documents}, {counts.tokens_left_out:,} tokens left out",
            soft_wrap=True,
        )


def _tabulate(prepared: Prepared) -> Table:
    table = Table("split", box=None)
    for heading in ("documents", "families", "tokens", "targets", "mean length", "longest"):
        table.add_column(heading, justify="right")
    for split, record in prepared.manifest.splits.items():
        counts = record.counts
        table.add_row(
            split,
            f"{counts.documents:,}",
            f"{record.families:,}",
            f"{counts.tokens:,}",
            f"{counts.targets:,}",
            f"{counts.tokens / counts.documents:.1f}",
            f"{record.length_percentiles['100']:,}",
        )
    return table
