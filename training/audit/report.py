"""What an audit found, as one value; and the same as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.audit.facts import CorpusFacts, Share, SourceFacts
from training.audit.gate import Breach
from training.audit.lengths import Lengths
from training.audit.printed import PrintedDocument
from training.audit.scan import Scan


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """All that `metier audit` says."""

    corpus: str
    """``data.path``."""

    fingerprint: str
    made: str
    """When, ISO 8601 in UTC."""

    detectors: tuple[str, ...]
    action: str
    """``data.personal_data.action``, with which the corpus was prepared."""

    facts: CorpusFacts
    lengths: Mapping[str, Lengths]
    scans: Mapping[str, Scan]
    printed: tuple[PrintedDocument, ...]
    breaches: tuple[Breach, ...]


def to_json(report: AuditReport) -> dict[str, Any]:
    """Give the report as JSON values; shares with the counts that they are of."""
    facts = report.facts
    return {
        "corpus": report.corpus,
        "fingerprint": report.fingerprint,
        "made": report.made,
        "passed": not report.breaches,
        "breaches": [asdict(breach) for breach in report.breaches],
        "sequence_length": facts.sequence_length,
        "rows": facts.rows,
        "density": facts.slots.value,
        "personal_data": {"detectors": list(report.detectors), "action": report.action},
        "sources": {
            source.name: _source(source, report.lengths.get(source.name), report.scans[source.name])
            for source in facts.sources
        },
        "printed_documents": [asdict(document) for document in report.printed],
    }


def _source(source: SourceFacts, lengths: Lengths | None, scan: Scan) -> dict[str, Any]:
    return {
        **source.record.model_dump(mode="json"),
        "splits": {
            "train": source.train.model_dump(mode="json"),
            "held_out": source.held_out.model_dump(mode="json"),
        },
        "target_share": _share(source.targets),
        "without_targets_share": _share(source.without_targets),
        "skipped_share": _share(source.skipped),
        "cut_share": _share(source.cut),
        "removed_share": _share(source.removed),
        "turn_ends_share": _share(source.turn_ends),
        "packing": asdict(source.packing) | {"density": source.packing.density} if source.packing else None,
        "lengths": asdict(lengths) if lengths else None,
        "personal_data_found": {
            "documents": _share(scan.documents),
            "findings": scan.findings,
            "first_documents": [{"id": name, "detectors": list(kinds)} for name, kinds in scan.named],
        },
    }


def _share(share: Share) -> dict[str, float | int | None]:
    return {"part": share.part, "whole": share.whole, "value": share.value}
