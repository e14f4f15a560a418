"""What is known of a corpus without reading its documents: from the manifest and the packing alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.data.corpus.manifest import Counts, Manifest, SourceRecord
from training.data.corpus.tally import NO_COUNTS
from training.data.order.packing import PackingCounts


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a whole; the whole may be nothing."""

    part: int
    whole: int

    @property
    def value(self) -> float | None:
        """0..1; None where there is no whole."""
        return self.part / self.whole if self.whole else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """One source: what was kept, and what became of the rest."""

    name: str
    record: SourceRecord
    train: Counts
    held_out: Counts
    packing: PackingCounts | None
    """Of the source's train documents; None where it has none."""

    @property
    def kept(self) -> int:
        """Documents stored in either split, those removed from train included."""
        return self.record.documents - self.record.without_targets

    @property
    def targets(self) -> Share:
        """Target tokens of the tokens that are trained on."""
        return Share(self.train.targets, self.train.tokens)

    @property
    def without_targets(self) -> Share:
        """Documents in which nothing is learnt, of all that could be read."""
        return Share(self.record.without_targets, self.record.documents)

    @property
    def skipped(self) -> Share:
        """Records left out as bad, of all records."""
        bad = sum(self.record.skipped.values())
        return Share(bad, self.record.documents + bad)

    @property
    def cut(self) -> Share:
        """Train documents that were truncated or dropped as too long for a row."""
        if self.packing is None:
            return Share(0, 0)
        return Share(self.packing.truncated + self.packing.dropped, self.packing.documents)

    @property
    def removed(self) -> Share:
        """Train documents removed because they are held out as well."""
        removed = self.record.removed_exact + self.record.removed_near
        return Share(removed, self.train.documents + removed)

    @property
    def turn_ends(self) -> Share:
        """Answers to be learnt whose end token is a target."""
        return Share(self.record.turns_ended, self.record.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFacts:
    """All sources, and how their documents fill rows."""

    sequence_length: int
    sources: tuple[SourceFacts, ...]

    @property
    def slots(self) -> Share:
        """Slots of the packed rows that hold a token."""
        packings = [source.packing for source in self.sources if source.packing]
        rows = sum(packing.rows for packing in packings)
        return Share(sum(packing.tokens for packing in packings), rows * self.sequence_length)

    @property
    def rows(self) -> int:
        """Packed rows."""
        return self.slots.whole // self.sequence_length

    @property
    def fewest_rows(self) -> int:
        """Rows that no packing can do without: every source's last one may stay open."""
        packings = [source.packing for source in self.sources if source.packing]
        return sum(-(-packing.tokens // self.sequence_length) for packing in packings)


def find_facts(
    manifest: Manifest, packings: Mapping[str, PackingCounts], sequence_length: int
) -> CorpusFacts:
    """Collect the facts; takes milliseconds for any size of corpus.

    Args:
        manifest: Of the corpus.
        packings: What packing the train split came to, by source.
        sequence_length: Slots of a row.
    """
    return CorpusFacts(
        sequence_length=sequence_length,
        sources=tuple(
            SourceFacts(
                name=name,
                record=record,
                train=manifest.splits["train"].by_source.get(name, NO_COUNTS),
                held_out=manifest.splits["held_out"].by_source.get(name, NO_COUNTS),
                packing=packings.get(name),
            )
            for name, record in manifest.sources.items()
        ),
    )
