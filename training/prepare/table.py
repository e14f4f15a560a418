"""What `metier prepare` says at its end: a table, what was left out, and how the rows are filled."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.config.schema import RunConfig
from training.data.corpus.manifest import Manifest, SourceRecord
from training.data.order.plan import open_plan
from training.data.reading.reader import open_corpus


def tabulate(manifest: Manifest) -> Table:
    """Say what each split holds."""
    table = Table("split", box=None)
    for heading in ("documents", "tokens", "targets", "mean length", "longest"):
        table.add_column(heading, justify="right")
    for split, record in manifest.splits.items():
        counts = record.counts
        table.add_row(
            split,
            f"{counts.documents:,}",
            f"{counts.tokens:,}",
            f"{counts.targets:,}",
            f"{counts.tokens / counts.documents:.1f}",
            f"{record.length_percentiles['100']:,}",
        )
    return table


def say_sources(manifest: Manifest, console: Console) -> None:
    """Say of each source what was left out, removed or changed; nothing where nothing was."""
    for name, source in manifest.sources.items():
        for line in _tell(source):
            console.print(f"{escape(name)}: {escape(line)}", soft_wrap=True)


def say_packing(config: RunConfig, console: Console) -> None:
    """Say how the run's rows are filled.

    Planned here only to be told: a document that does not fit is known before any training starts.
    """
    length = config.batch.sequence_length
    corpus = open_corpus(config.data.path, "train")
    counts = open_plan(corpus, length, config.data.long_documents).counts
    console.print(
        f"packing    {counts.rows:,} rows of {length:,} tokens, {counts.density:.1%} filled", soft_wrap=True
    )
    if longer := counts.split + counts.truncated + counts.dropped:
        console.print(
            f"           {longer:,} documents were longer than a row: data.long_documents="
            f"{config.data.long_documents}, {counts.tokens_left_out:,} tokens left out",
            soft_wrap=True,
        )


def _tell(source: SourceRecord) -> list[str]:
    skipped = sum(source.skipped.values())
    lines = {
        f"{skipped:,} bad records were skipped ({_list(source.skipped)})": skipped,
        f"{source.without_targets:,} of {source.documents:,} documents hold no target and were left out": (
            source.without_targets
        ),
        f"personal data: {_list(source.personal_data)}": len(source.personal_data),
        f"{source.control_tokens:,} documents hold control tokens in their text": source.control_tokens,
        f"{source.removed_exact:,} train documents are held out as well and were removed": (
            source.removed_exact
        ),
        f"{source.removed_near:,} train documents are nearly the same as a held-out one and were removed": (
            source.removed_near
        ),
        f"{source.repeated:,} train documents are copies of earlier ones; kept": source.repeated,
        f"{source.turns - source.turns_ended:,} of {source.turns:,} answers lack a trained end token": (
            source.turns - source.turns_ended
        ),
    }
    return [line for line, count in lines.items() if count]


def _list(counts: dict[str, int]) -> str:
    return ", ".join(f"{key} {count:,}" for key, count in counts.items())
