"""The thresholds of ``audit.*``: what a corpus must be for a run on it to be worth its time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from training.audit.facts import CorpusFacts, Share, SourceFacts, find_facts
from training.config.schema import AuditConfig
from training.data.corpus.manifest import Manifest
from training.data.order.packing import PackingCounts
from training.errors import DataError

_MOST_DECIMALS = 9
_TOO_LONG = "are longer than batch.sequence_length"


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
            found, limit = personal_data[source.name], audit.max_personal_data
            sentence = ("{} searched documents", "hold personal data")
            yield from _judge(source, "max_personal_data", limit, found, sentence)
    density = facts.slots.value
    # A row that stays open because nothing is left to put into it is no fault of the corpus.
    if density is not None and density < audit.min_density and facts.rows > facts.fewest_rows:
        yield Breach(
            key="min_density",
            source=None,
            line=f"data.path: {_say_share(density, audit.min_density)} of the slots of {facts.rows:,} packed "
            f"rows hold a token, less than audit.min_density={audit.min_density}; choose a "
            f"batch.sequence_length (now {facts.sequence_length}) into which several documents fit, set "
            "data.long_documents=split, or change the threshold",
        )


def _of_source(source: SourceFacts, audit: AuditConfig) -> Iterator[Breach]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in source.record.skipped.items())
    shares = (
        ("max_without_targets", source.without_targets, "{} documents", "hold no target"),
        ("min_target_share", source.targets, "{} tokens", "are targets"),
        ("min_turn_ends", source.turn_ends, "the end token is a target of {} answers", ""),
        ("max_skipped", source.skipped, "{} records", f"were left out as bad ({reasons})"),
        ("max_cut", source.cut, "{} documents", f"{_TOO_LONG} and were cut or dropped"),
        ("max_removed", source.removed, "{} train documents", "are held out as well and were removed"),
    )
    for key, found, sentence, rest in shares:
        yield from _judge(source, key, getattr(audit, key), found, (sentence, rest))


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


def _judge(
    source: SourceFacts, key: str, limit: float, found: Share, sentence: tuple[str, str]
) -> Iterator[Breach]:
    """Compare a share with its threshold, an upper one if its name says so.

    The sentence's first part has a place for ``12 of 80``, the share in percent stands between the two.
    """
    is_upper = key.startswith("max_")
    if found.value is None or (found.value <= limit if is_upper else found.value >= limit):
        return
    what = sentence[0].format(f"{found.part:,} of {found.whole:,}")
    said = f"{what} ({_say_share(found.value, limit)}) {sentence[1]}".rstrip()
    beyond = f"{'more' if is_upper else 'less'} than audit.{key}={limit}"
    line = f"data.sources.{source.name}: {said}, {beyond}; {_ADVICE[key]}, or change the threshold"
    yield Breach(key=key, source=source.name, line=line)


def _say_share(value: float, limit: float) -> str:
    """Say a share in percent, with as many decimals as tell it from the threshold that it is beyond."""
    if value in (0.0, 1.0):
        return f"{value:.0%}"
    decimals = (each for each in range(1, _MOST_DECIMALS) if f"{value:.{each}%}" != f"{limit:.{each}%}")
    return f"{value:.{next(decimals, _MOST_DECIMALS)}%}"
