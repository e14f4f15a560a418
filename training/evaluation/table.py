"""The before/after table on the screen."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.evaluation.report import Report
from training.evaluation.scores import Comparison
from training.evaluation.words import say_change, say_interval, say_value
from training.metrics.rates import say_duration

COLOURS = {"better": "green", "worse": "yellow", "unclear": "dim"}


def print_report(console: Console, report: Report, folder: Path) -> None:
    """Print the table, the two sentences, and where the report lies."""
    console.print()
    console.print(build_table(report))
    console.print(Text(report.gained))
    console.print(Text(report.lost))
    console.print()
    console.print(
        Text(f"report: {folder / 'report.html'}  (measured in {say_duration(report.seconds)})"),
        soft_wrap=True,
    )


def build_table(report: Report) -> Table:
    """Lay out one row per measure."""
    table = Table(
        title=f"{report.name}: before and after {report.checkpoint_step:,} steps",
        title_style="bold",
        title_justify="left",
        caption=f"small figures: {report.confidence:.0%} intervals; change is paired, document by document",
        caption_justify="left",
    )
    table.add_column("measure")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("documents", justify="right")
    for row in report.comparisons():
        table.add_row(
            row.label, _cell(row, "before"), _cell(row, "after"), _change(row), f"{row.documents:,}"
        )
    return table


def _cell(row: Comparison, side: str) -> Text:
    estimate = getattr(row, side)
    return Text.assemble(
        say_value(estimate.value, row.kind), "\n", (say_interval(estimate, row.kind), "dim"), justify="right"
    )


def _change(row: Comparison) -> Text:
    return Text.assemble((say_change(row), COLOURS[row.verdict]), "\n", (row.verdict, "dim"), justify="right")
