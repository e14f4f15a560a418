"""From two measurements to comparisons: before, after, what changed, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.config.schema import EvaluationConfig
from training.evaluation.answers import Question, find_word_f1, matches_exactly
from training.evaluation.bootstrap import Estimate, Floats, Resampler
from training.evaluation.losses import count_targets
from training.evaluation.material import EvaluationDocument, Material
from training.evaluation.measure import Measurement

Kind = Literal["loss", "perplexity", "share"]
SAMPLE_ANSWERS = 10
FEWEST_FAMILIES = 5
"""With fewer to draw from, an interval says nothing and no verdict is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One measure, before and after."""

    key: str
    label: str
    kind: Kind
    """``loss`` in nats per target token, ``perplexity``, or a ``share`` 0..1."""

    better: Literal["lower", "higher"]
    documents: int
    families: int
    targets: int | None
    """Target tokens; None where documents are counted."""

    before: Estimate
    after: Estimate
    change: Estimate
    """after - before, paired."""

    relative_change: Estimate | None
    """after / before - 1, paired; None when before is zero."""

    @property
    def verdict(self) -> Literal["better", "worse", "unclear"]:
        """What the interval of the change allows to say; one of too few families allows nothing."""
        if self.too_few or not self.change.excludes_zero:
            return "unclear"
        return "better" if (self.change.value < 0) == (self.better == "lower") else "worse"

    @property
    def too_few(self) -> bool:
        """Whether there are too few families for an interval to count, whatever it is."""
        return self.families < FEWEST_FAMILIES

    @property
    def intervals_apart(self) -> bool:
        """Whether the interval before and the interval after have nothing in common."""
        return self.after.high < self.before.low or self.before.high < self.after.low


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleAnswer:
    """One question with both answers."""

    task: str
    prompt: str
    expected: str
    before: str
    after: str
    right_before: bool
    right_after: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """All comparisons of one run."""

    domain: Comparison
    domain_perplexity: Comparison
    general: Comparison
    exact: Comparison | None
    word_f1: Comparison | None
    tasks: list[Comparison]
    """The domain's loss by task."""

    samples: list[SampleAnswer]


def compare(
    material: Material,
    questions: Sequence[Question],
    before: Measurement,
    after: Measurement,
    config: EvaluationConfig,
    *,
    seed: int,
) -> Scores:
    """Compare two measurements of the same material."""
    settings = Comparer(config, seed)
    domain = settings.losses(
        "held_out_loss",
        "Loss on held-out documents",
        material.held_out,
        before.held_out_nats,
        after.held_out_nats,
    )
    general = settings.losses(
        "general_loss", "Loss on general text", material.general, before.general_nats, after.general_nats
    )
    exact = word_f1 = None
    if questions:
        exact = settings.answers("exact_match", "Exact answers", questions, before, after, exact=True)
        word_f1 = settings.answers("word_f1", "Words in common (F1)", questions, before, after, exact=False)
    return Scores(
        domain=domain,
        domain_perplexity=as_perplexity(domain, "held_out_perplexity", "Perplexity on held-out documents"),
        general=general,
        exact=exact,
        word_f1=word_f1,
        tasks=settings.tasks(material.held_out, before.held_out_nats, after.held_out_nats),
        samples=pick_samples(questions, before, after),
    )


class Comparer:
    """Draws and compares with one set of bootstrap settings."""

    def __init__(self, config: EvaluationConfig, seed: int) -> None:
        """Take the number of draws, the confidence, and the draws' seed."""
        self._config = config
        self._seed = seed

    def losses(
        self, key: str, label: str, documents: Sequence[EvaluationDocument], before: Floats, after: Floats
    ) -> Comparison:
        """Compare sums of nats, weighed by target token."""
        targets = np.array([count_targets(document) for document in documents], dtype=np.float64)
        families = [document.family for document in documents]
        return self._compare(key, label, "loss", families, (before, after, targets))

    def answers(
        self,
        key: str,
        label: str,
        questions: Sequence[Question],
        before: Measurement,
        after: Measurement,
        *,
        exact: bool,
    ) -> Comparison:
        """Compare answers with what was expected."""
        score = matches_exactly if exact else find_word_f1
        sides = [
            np.array(
                [
                    float(score(answer, question.expected))
                    for answer, question in zip(answers, questions, strict=True)
                ]
            )
            for answers in (before.answers, after.answers)
        ]
        families = [question.family for question in questions]
        return self._compare(key, label, "share", families, (sides[0], sides[1], np.ones(len(questions))))

    def tasks(
        self, documents: Sequence[EvaluationDocument], before: Floats, after: Floats
    ) -> list[Comparison]:
        """Compare the loss of each task on its own."""
        comparisons = []
        for task in sorted({document.task for document in documents}):
            places = [place for place, document in enumerate(documents) if document.task == task]
            chosen = [documents[place] for place in places]
            comparisons.append(
                self.losses(task, task.replace("_", " "), chosen, before[places], after[places])
            )
        return comparisons

    def _compare(
        self, key: str, label: str, kind: Kind, families: Sequence[str], sides: tuple[Floats, Floats, Floats]
    ) -> Comparison:
        before, after, weights = sides
        resampler = Resampler(
            families,
            samples=self._config.bootstrap_samples,
            confidence=self._config.confidence,
            seed=self._seed,
        )
        return Comparison(
            key=key,
            label=label,
            kind=kind,
            better="higher" if kind == "share" else "lower",
            documents=len(families),
            families=resampler.groups,
            targets=int(weights.sum()) if kind == "loss" else None,
            before=resampler.ratio(before, weights),
            after=resampler.ratio(after, weights),
            change=resampler.change(before, after, weights),
            relative_change=resampler.relative_change(before, after),
        )


def as_perplexity(loss: Comparison, key: str, label: str) -> Comparison:
    """Tell a loss as a perplexity, exp(loss).

    The change of a perplexity has no interval of its own here but follows from the loss: the ratio of two
    perplexities is exp(change of the loss).
    """
    ratio = loss.change.exp()
    before, after = loss.before.exp(), loss.after.exp()
    return Comparison(
        key=key,
        label=label,
        kind="perplexity",
        better="lower",
        documents=loss.documents,
        families=loss.families,
        targets=loss.targets,
        before=before,
        after=after,
        change=Estimate(
            value=after.value - before.value,
            low=before.value * (ratio.low - 1),
            high=before.value * (ratio.high - 1),
        ),
        relative_change=Estimate(value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1),
    )


def pick_samples(
    questions: Sequence[Question], before: Measurement, after: Measurement
) -> list[SampleAnswer]:
    """Take answers at even distances, good or bad as they come."""
    size = min(SAMPLE_ANSWERS, len(questions))
    picked = [index * len(questions) // size for index in range(size)]
    return [
        SampleAnswer(
            task=questions[index].task,
            prompt=questions[index].prompt,
            expected=questions[index].expected,
            before=before.answers[index],
            after=after.answers[index],
            right_before=matches_exactly(before.answers[index], questions[index].expected),
            right_after=matches_exactly(after.answers[index], questions[index].expected),
        )
        for index in picked
    ]
