"""What `metier audit` does: facts, a search for personal data, documents to look at, thresholds."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.audit.choose import Choice, choose_documents
from training.audit.facts import find_facts
from training.audit.gate import find_breaches, refuse
from training.audit.lengths import measure_lengths
from training.audit.page import build_page
from training.audit.printed import print_documents
from training.audit.report import AuditReport, to_json
from training.audit.scan import Scan, scan_documents
from training.audit.screen import print_line, print_report
from training.config.freeze import read_frozen
from training.config.schema import AuditConfig, RunConfig
from training.config.sources import Detector
from training.data.corpus.manifest import check_settings
from training.data.order.plan import open_plan
from training.data.reading.reader import Corpus, check_tokenizer, open_corpus
from training.files import is_url, write_json, write_text
from training.layout import CorpusLayout
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint


def audit(path: Path) -> None:
    """Audit the corpus that the frozen configuration at ``path`` names.

    Raises:
        MetierError: There is no corpus, or it is beyond a threshold; then the report is written nevertheless.
    """
    config = read_frozen(path)
    console = Console()
    tokenizer = load_tokenizer(config.model)
    train, held_out = (open_corpus(config.data.path, split, config.loader) for split in ("train", "held_out"))
    check_settings(train.manifest, config.data)
    check_tokenizer(train.manifest, tokenizer_fingerprint(tokenizer), config.data.path)
    report = _examine(config, train, held_out, tokenizer)
    folder = find_audit_folder(config.data.path)
    write_json(folder / "audit.json", to_json(report))
    write_text(folder / "audit.html", build_page(report))
    print_report(report, console)
    print_line(console, "written", f"{folder / 'audit.html'}, audit.json")
    refuse(list(report.breaches))


def find_audit_folder(data_path: str) -> Path:
    """Name the report's folder: ``audit`` in the corpus; for a URL, ``audit-NAME`` in the current folder."""
    if is_url(data_path):
        return Path(f"audit-{data_path.rstrip('/').rpartition('/')[2]}")
    return CorpusLayout(Path(data_path)).audit


def _examine(config: RunConfig, train: Corpus, held_out: Corpus, tokenizer: Any) -> AuditReport:
    plan = open_plan(train, config.batch.sequence_length, config.data.long_documents)
    facts = find_facts(train.manifest, plan.by_source, config.batch.sequence_length)
    scans = _search([train, held_out], config.audit, tokenizer, config.data.personal_data.detectors)
    shares = {name: scan.documents for name, scan in scans.items()}
    return AuditReport(
        corpus=config.data.path,
        fingerprint=train.manifest.fingerprint,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        detectors=tuple(config.data.personal_data.detectors),
        action=config.data.personal_data.action,
        facts=facts,
        lengths=measure_lengths(train.record, train.lengths),
        scans=scans,
        printed=tuple(
            print_documents(train, list(train.manifest.sources), config.audit.printed_documents, tokenizer)
        ),
        breaches=tuple(find_breaches(facts, config.audit, shares)),
    )


def _search(
    corpora: Sequence[Corpus], settings: AuditConfig, tokenizer: Any, detectors: Sequence[Detector]
) -> dict[str, Scan]:
    columns = (
        TextColumn("searching {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # On standard error: the report itself can be sent to a file.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        return {
            source: _search_source(source, choices, progress, tokenizer, detectors)
            for source in corpora[0].manifest.sources
            if (choices := choose_documents(corpora, source, settings.scanned_documents))
        }


def _search_source(
    source: str, choices: Sequence[Choice], progress: Progress, tokenizer: Any, detectors: Sequence[Detector]
) -> Scan:
    task = progress.add_task(escape(source), total=sum(len(choice.documents) for choice in choices))
    try:
        return scan_documents(choices, tokenizer, detectors, lambda done: progress.advance(task, done))
    finally:
        progress.remove_task(task)
