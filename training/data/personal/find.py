"""Finds personal data and secrets in text, and replaces them by their kind: ``[EMAIL]``, ``[PHONE]`` ...

Patterns, check digits and labels, no model: fast, the same on every machine, and blind to what has no form.
**Names, street addresses, dates of birth and descriptions of persons are not found.** A redacted corpus is
therefore not an anonymous one; docs/data.md lists for each detector what it finds and what it misses.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from training.config.sources import Detector
from training.data.documents import Document, Messages, PromptCompletion, Text
from training.data.personal.keys import find_key
from training.data.personal.patterns import (
    Detect,
    find_credit_card,
    find_email,
    find_ip_address,
    find_medical_record,
    find_national_id,
    find_phone,
    find_windows,
    whole_text,
)

_DETECTORS: dict[Detector, Detect] = {
    "key": whole_text(find_key),
    "email": whole_text(find_email),
    "credit_card": find_credit_card,
    "national_id": find_national_id,
    "medical_record": find_medical_record,
    "phone": find_phone,
    "ip_address": whole_text(find_ip_address),
}
"""What fits two detectors is the earlier one's: the surer comes first."""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One piece of personal data: ``text[start:stop]``."""

    start: int
    stop: int
    detector: Detector


def find_personal(text: str, detectors: Sequence[Detector]) -> list[Finding]:
    """Find what the named detectors find; findings do not overlap and come in the order of the text."""
    windows = find_windows(text)
    taken: list[Finding] = []
    for detector, detect in _DETECTORS.items():
        if detector in detectors:
            taken += [Finding(start, stop, detector) for start, stop in detect(text, windows)]
    return _without_overlaps(taken)


def redact(text: str, detectors: Sequence[Detector]) -> tuple[str, Counter[str]]:
    """Replace what is found by its kind in brackets; give the text and the findings by detector."""
    findings = find_personal(text, detectors)
    if not findings:
        return text, Counter()
    pieces: list[str] = []
    end = 0
    for finding in findings:
        pieces += [text[end : finding.start], f"[{finding.detector.upper()}]"]
        end = finding.stop
    return "".join([*pieces, text[end:]]), Counter(finding.detector for finding in findings)


def redact_document(document: Document, detectors: Sequence[Detector]) -> tuple[Document, Counter[str]]:
    """Redact all that the document says, tools and calls included; the same object when nothing is found."""
    counts: Counter[str] = Counter()

    def clean(text: str) -> str:
        cleaned, found = redact(text, detectors)
        counts.update(found)
        return cleaned

    content: Messages | PromptCompletion | Text
    match document.content:
        case Messages(messages) as chat:
            turns = tuple(
                replace(message, content=clean(message.content), extra=_clean_values(message.extra, clean))
                for message in messages
            )
            content = replace(chat, messages=turns, tools=tuple(_clean_values(chat.tools, clean)))
        case PromptCompletion(prompt, completion):
            content = PromptCompletion(clean(prompt), clean(completion))
        case Text(text):
            content = Text(clean(text))
    return (replace(document, content=content) if counts else document), counts


def _without_overlaps(findings: list[Finding]) -> list[Finding]:
    # Two that overlap become one that covers both: nothing of either is left to read.
    surer = list(_DETECTORS)
    merged: list[Finding] = []
    for finding in sorted(findings):
        if merged and finding.start < merged[-1].stop:
            last = merged[-1]
            detector = min(last.detector, finding.detector, key=surer.index)
            merged[-1] = Finding(last.start, max(last.stop, finding.stop), detector)
        else:
            merged.append(finding)
    return merged


def _clean_values(value: Any, clean: Callable[[str], str]) -> Any:
    match value:
        case str():
            return clean(value)
        case Mapping():
            return {clean(str(key)): _clean_values(each, clean) for key, each in value.items()}
        case list() | tuple():
            return [_clean_values(each, clean) for each in value]
        case _:
            return value
