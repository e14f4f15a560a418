"""The thresholds of ``audit.*``: what a corpus must be for a run on it to be worth its time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.audit.facts import CorpusFacts, Share, SourceFacts, find_facts
from training.config.schema import AuditConfig
from training.data.corpus.manifest import Manifest
from training.data.order.packing import PackingCounts
from training.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A value beyond its threshold."""

    key: str
    """The threshold's name in ``audit``."""

    source: str | None
    """None: it is of the corpus as a whole."""

    line: str
    """What was found, what was wanted, what to do."""


def check_audit(
    manifest: Manifest, packings: Mapping[str, PackingCounts], sequence_length: int, audit: AuditConfig
) -> None:
    """Refuse a corpus that is beyond a threshold; reads no document, takes milliseconds.

    Args:
        manifest: Of the corpus.
        packings: What packing the train split came to, by source: ``RowPlan.by_source``.
        sequence_length: ``batch.sequence_length``.
        audit: The thresholds. ``max_personal_data`` needs the documents: only `metier audit` looks at it.

    Raises:
        DataError: It is beyond one; the line names source, value, threshold and what to do.
    """
    refuse(list(find_breaches(find_facts(manifest, packings, sequence_length), audit)))


def refuse(breaches: list[Breach]) -> None:
    """Raise the first of the breaches, if there is one.

    Raises:
        DataError: There is one.
    """
    if breaches:
        more = f" ({len(breaches) - 1} more: `metier audit` shows all)" if len(breaches) > 1 else ""
        raise DataError(breaches[0].line + more)


def find_breaches(
    facts: CorpusFacts, audit: AuditConfig, personal_data: Mapping[str, Share] | None = None
) -> Iterator[Breach]:
    """Compare the facts with the thresholds, source by source.

    Args:
        facts: Of the corpus.
        audit: The thresholds.
        personal_data: By source, documents in which some was found of those searched.
    """
    for source in facts.sources:
        yield from _of_source(source, audit)
        if personal_data and source.name in personal_data:
            found = personal_data[source.name]
            said = f"{_say(found, 'searched documents')} hold personal data"
            yield from _above(source, "max_personal_data", audit.max_personal_data, found, said)
    density = facts.slots.value
    # A row that stays open because nothing is left to put into it is no fault of the corpus.
    if density is not None and density < audit.min_density and facts.rows > facts.fewest_rows:
        yield Breach(
            key="min_density",
            source=None,
            line=f"data.path: {density:.3g} of the slots of {facts.rows:,} packed rows hold a token, less "
            f"than audit.min_density={audit.min_density}; choose a batch.sequence_length (now "
            f"{facts.sequence_length}) into which several documents fit, set data.long_documents=split, "
            "or change the threshold",
        )


def _of_source(source: SourceFacts, audit: AuditConfig) -> Iterator[Breach]:
    said = f"{_say(source.without_targets, 'documents')} hold no target"
    yield from _above(source, "max_without_targets", audit.max_without_targets, source.without_targets, said)
    said = f"{_say(source.targets, 'tokens')} are targets"
    yield from _below(source, "min_target_share", audit.min_target_share, source.targets, said)
    said = f"the end token is a target of {_say(source.turn_ends, 'answers')}"
    yield from _below(source, "min_turn_ends", audit.min_turn_ends, source.turn_ends, said)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in source.record.skipped.items())
    said = f"{_say(source.skipped, 'records')} were left out as bad ({reasons})"
    yield from _above(source, "max_skipped", audit.max_skipped, source.skipped, said)
    said = f"{_say(source.cut, 'documents')} are longer than batch.sequence_length and were cut or dropped"
    yield from _above(source, "max_cut", audit.max_cut, source.cut, said)
    said = f"{_say(source.removed, 'train documents')} are held out as well and were removed"
    yield from _above(source, "max_removed", audit.max_removed, source.removed, said)


_ADVICE = {
    "max_without_targets": "look at them with `metier audit`: fields, templates, train_on and weight decide "
    "what is learnt",
    "min_target_share": "see in `metier audit` whether its answers are the targets: fields, templates and "
    "train_on decide",
    "min_turn_ends": "the model would not learn to stop: mend the chat template (model.chat_template)",
    "max_skipped": "mend the records, or its fields and templates",
    "max_cut": "raise batch.sequence_length or set data.long_documents=split",
    "max_removed": "remove the copies, or name the field that they share as its family_field",
    "max_personal_data": "set data.personal_data.action to redact or drop and run `metier prepare` again",
}


def _above(source: SourceFacts, key: str, limit: float, found: Share, said: str) -> Iterator[Breach]:
    if found.value is not None and found.value > limit:
        yield _breach(source, key, f"{said}, more than audit.{key}={limit}")


def _below(source: SourceFacts, key: str, limit: float, found: Share, said: str) -> Iterator[Breach]:
    if found.value is not None and found.value < limit:
        yield _breach(source, key, f"{said}, less than audit.{key}={limit}")


def _breach(source: SourceFacts, key: str, said: str) -> Breach:
    line = f"data.sources.{source.name}: {said}; {_ADVICE[key]}, or change the threshold"
    return Breach(key=key, source=source.name, line=line)


def _say(share: Share, things: str) -> str:
    return f"{share.part:,} of {share.whole:,} {things} ({share.part / (share.whole or 1):.3g})"
