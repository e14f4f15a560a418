"""The audit in words: the same lines on the screen and on the page."""

from collections.abc import Iterator, Mapping

from training.audit.facts import CorpusFacts, Share, SourceFacts
from training.audit.lengths import Lengths
from training.audit.scan import Scan

DASH = "\u2013"
BARS = "▁▂▃▄▅▆▇█"

_EXTREME = 0.001
"""Nearer than this to none or all, a share is said with two decimals."""


def say_count(number: int, one: str, many: str = "") -> str:
    """Say a number of things: ``1 document``, ``1,200 documents``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def say_percent(share: Share) -> str:
    """Say a share: ``23.4%``; a dash for nothing of nothing. Only all is 100%, only none is 0%."""
    if share.value is None:
        return DASH
    if share.part in (0, share.whole):
        return f"{share.value:.0%}"
    is_extreme = min(share.value, 1 - share.value) < _EXTREME
    return f"{min(max(share.value, 0.0001), 0.9999):.2%}" if is_extreme else f"{share.value:.1%}"


def describe_source(source: SourceFacts, lengths: Lengths | None, scan: Scan) -> Iterator[tuple[str, str]]:
    """Say what there is to say of a source: label, line."""
    yield "licence", source.record.licence
    yield "documents", f"{source.train.documents:,} train, {source.held_out.documents:,} held out"
    yield "tokens", f"{source.train.tokens:,} train, {source.held_out.tokens:,} held out"
    yield "targets", f"{say_percent(source.targets)} of the tokens of train"
    if source.record.turns:
        yield "turn ends", _turn_ends(source)
    yield "lengths", describe_lengths(lengths)
    yield "left out", _left_out(source)
    yield "too long", _too_long(source)
    yield "duplicates", _duplicates(source)
    if source.record.control_tokens:
        many = say_count(source.record.control_tokens, "document")
        yield "control", f"{many} had control tokens written out in the text"
    yield "personal", _personal(source, scan)


def describe_packing(facts: CorpusFacts) -> str:
    """Say how full the rows are."""
    return f"{facts.rows:,} rows of {facts.sequence_length:,} tokens, {say_percent(facts.slots)} filled"


def describe_lengths(lengths: Lengths | None) -> str:
    """Draw the histogram in one line."""
    if lengths is None or not lengths.bins:
        return "no train documents"
    most = max(each.documents for each in lengths.bins)
    # The lowest bar is for few, no bar for none.
    bars = "".join(
        BARS[-(-each.documents * (len(BARS) - 1) // most)] if each.documents else " " for each in lengths.bins
    )
    return (
        f"{lengths.bins[0].first:,} {bars} {lengths.bins[-1].last:,} tokens; "
        f"median {lengths.median:,}, longest {lengths.longest:,}"
    )


def _turn_ends(source: SourceFacts) -> str:
    ends = source.turn_ends
    if ends.part == ends.whole:
        return f"a target in every one of {say_count(ends.whole, 'answer')}"
    return f"a target in {ends.part:,} of {say_count(ends.whole, 'answer')} ({say_percent(ends)})"


def _left_out(source: SourceFacts) -> str:
    parts = [f"{reason} {count:,}" for reason, count in source.record.skipped.items()]
    if source.record.without_targets:
        parts.append(f"without targets {source.record.without_targets:,}")
    if dropped := source.record.personal_data.get("dropped", 0):
        parts.append(f"with personal data {dropped:,}")
    return _join(parts)


def _too_long(source: SourceFacts) -> str:
    packing = source.packing
    if packing is None:
        return "nothing"
    kinds = (("split", packing.split), ("truncated", packing.truncated), ("dropped", packing.dropped))
    parts = [f"{say_count(count, 'document')} {kind}" for kind, count in kinds if count]
    if packing.tokens_left_out:
        parts.append(f"{say_count(packing.tokens_left_out, 'token')} lost")
    return _join(parts)


def _duplicates(source: SourceFacts) -> str:
    record = source.record
    parts = []
    if source.removed.part:
        parts.append(
            f"{record.removed_exact:,} exact and {record.removed_near:,} near copies of held-out documents "
            "removed from train"
        )
    if record.repeated:
        parts.append(f"{say_count(record.repeated, 'copy', 'copies')} of other train documents, kept")
    return _join(parts)


def _personal(source: SourceFacts, scan: Scan) -> str:
    redacted = {kind: count for kind, count in source.record.personal_data.items() if kind != "dropped"}
    parts = [f"redacted: {describe_findings(redacted)}"] if redacted else []
    searched = f"searched {scan.documents.whole:,} of {source.kept - source.removed.part:,} documents"
    if scan.documents.part:
        found = f"found in {scan.documents.part:,} ({say_percent(scan.documents)})"
        parts.append(f"{searched}, {found}: {describe_findings(scan.findings)}")
    else:
        parts.append(f"{searched}, nothing found")
    return "; ".join(parts)


def describe_findings(findings: Mapping[str, int]) -> str:
    """Say findings by detector."""
    return ", ".join(f"{detector} {count:,}" for detector, count in findings.items())


def _join(parts: list[str]) -> str:
    return ", ".join(parts) or "nothing"
