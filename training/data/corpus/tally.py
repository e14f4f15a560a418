"""What became of the items that were read, counted: for a segment, a part, a source."""

from collections import Counter
from collections.abc import Iterable, Mapping

from pydantic import Field, NonNegativeInt

from training.config.base import Section
from training.data.corpus.manifest import SPLITS, Counts, Split


class Tally(Section):
    """Sums over items; see ``SourceRecord`` for what each counts."""

    documents: NonNegativeInt = 0
    without_targets: NonNegativeInt = 0
    control_tokens: NonNegativeInt = 0
    turns: NonNegativeInt = 0
    turns_ended: NonNegativeInt = 0
    skipped: dict[str, int] = Field(default_factory=dict)
    personal_data: dict[str, int] = Field(default_factory=dict)
    by_task: dict[Split, dict[str, Counts]] = Field(default_factory=dict)
    """Documents that lie in shards."""


NO_COUNTS = Counts(documents=0, tokens=0, targets=0)


def add_tallies(tallies: Iterable[Tally]) -> Tally:
    """Add up; an empty sum is a tally of nothing."""
    items = list(tallies)
    return Tally(
        documents=sum(item.documents for item in items),
        without_targets=sum(item.without_targets for item in items),
        control_tokens=sum(item.control_tokens for item in items),
        turns=sum(item.turns for item in items),
        turns_ended=sum(item.turns_ended for item in items),
        skipped=_add_numbers(item.skipped for item in items),
        personal_data=_add_numbers(item.personal_data for item in items),
        by_task={split: add_tables(item.by_task.get(split, {}) for item in items) for split in SPLITS},
    )


def add_tables(tables: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """Add counts by their key; keys in sorted order."""
    sums: dict[str, Counts] = {}
    for table in tables:
        for key, counts in table.items():
            sums[key] = add_counts([sums.get(key, NO_COUNTS), counts])
    return dict(sorted(sums.items()))


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Add documents, tokens and targets."""
    items = list(counts)
    return Counts(
        documents=sum(item.documents for item in items),
        tokens=sum(item.tokens for item in items),
        targets=sum(item.targets for item in items),
    )


def subtract_counts(whole: Counts, part: Counts) -> Counts:
    """Take ``part`` out of ``whole``."""
    return Counts(
        documents=whole.documents - part.documents,
        tokens=whole.tokens - part.tokens,
        targets=whole.targets - part.targets,
    )


def _add_numbers(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for table in tables:
        sums.update(table)
    return dict(sorted(sums.items()))
