"""audit.html: one file that opens anywhere, offline."""

from pathlib import Path

from training.audit.lengths import Bin, Lengths
from training.audit.report import AuditReport
from training.audit.visible import show_text
from training.audit.words import describe_findings, describe_packing, describe_source, say_percent
from training.pages import open_templates

TEMPLATE = "audit.html.j2"


def build_page(report: AuditReport) -> str:
    """Fill the template; every text in it is escaped, and what does not print is written out."""
    environment = open_templates(Path(__file__).parent)
    environment.finalize = lambda value: show_text(value) if type(value) is str else value
    environment.globals.update(
        describe_findings=describe_findings,
        describe_packing=describe_packing,
        describe_source=describe_source,
        say_percent=say_percent,
        bar_height=bar_height,
        is_longer=is_longer,
    )
    return environment.get_template(TEMPLATE).render(report=report, facts=report.facts)


def is_longer(each: Bin, lengths: Lengths, sequence_length: int) -> bool:
    """Tell whether a bin reaches beyond a row, where a document does."""
    return each.last > sequence_length and lengths.longest > sequence_length


def bar_height(each: Bin, lengths: Lengths) -> float:
    """Give a bin's bar in percent of the highest; a bin with any document at all can be seen."""
    most = max(bar.documents for bar in lengths.bins)
    return max(1.5, 100 * each.documents / most) if each.documents else 0.0
