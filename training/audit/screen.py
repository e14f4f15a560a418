"""The audit on the screen: facts of each source, then documents with their targets in colour."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from training.audit.printed import Piece, PrintedDocument
from training.audit.report import AuditReport
from training.audit.visible import show_text
from training.audit.words import describe_packing, describe_source

LABEL_WIDTH = 11
TARGET, CONTEXT, CONTROL = "bold green", "default", "reverse"
OPEN, CLOSE = "⟦", "⟧"
"""Around targets where there is no colour."""


def print_report(report: AuditReport, console: Console) -> None:
    """Print the facts of every source, the documents, and what is beyond a threshold."""
    print_line(console, "corpus", report.corpus)
    print_line(console, "packing", describe_packing(report.facts))
    for source in report.facts.sources:
        console.print()
        console.print(Text(show_text(source.name), style="bold"))
        for label, line in describe_source(
            source, report.lengths.get(source.name), report.scans[source.name]
        ):
            print_line(console, f"  {label}", line)
    if report.printed:
        console.print()
        legend = Text("Documents; what is learnt is ")
        console.print(legend + _marked([Piece(text="in colour", is_target=True, is_control=False)], console))
        for document in report.printed:
            _print_document(document, console)
    console.print()
    for breach in report.breaches:
        print_line(console, "beyond", breach.line)
    if not report.breaches:
        print_line(console, "thresholds", "all kept")


def _print_document(document: PrintedDocument, console: Console) -> None:
    console.print()
    title = (
        f"── {document.source} · {document.id} · {document.targets:,} targets of {document.tokens:,} tokens"
    )
    console.print(Text(show_text(title), style="dim"), soft_wrap=True)
    text = _marked(document.head, console)
    if document.left_out:
        text += Text(f"\n… {document.left_out:,} tokens not shown …\n", style="dim")
        text += _marked(document.tail, console)
    console.print(text, soft_wrap=True)


def _marked(pieces: Sequence[Piece], console: Console) -> Text:
    # Text, never markup: a document may well contain [red].
    text = Text()
    in_colour = console.color_system is not None
    is_open = False
    for piece in pieces:
        if not in_colour and piece.is_target != is_open:
            text.append(OPEN if piece.is_target else CLOSE)
            is_open = piece.is_target
        style = TARGET if piece.is_target else CONTEXT
        text.append(show_text(piece.text), style=f"{style} {CONTROL}" if piece.is_control else style)
    if is_open:
        text.append(CLOSE)
    return text


def print_line(console: Console, label: str, line: str) -> None:
    """Print a labelled line, however long it is."""
    console.print(Text(f"{label:<{LABEL_WIDTH + 2}}{show_text(line)}"), soft_wrap=True)
