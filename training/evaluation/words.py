"""Numbers as a person reads them, and the report's plain sentences."""

from training.evaluation.bootstrap import Estimate
from training.evaluation.scores import FEWEST_FAMILIES, Comparison, Scores

MINUS, DASH = "\u2212", "\u2013"


def say_value(value: float, kind: str) -> str:
    """Write one value: a share in percent, a loss or perplexity with the digits that it is good for."""
    if kind == "share":
        return f"{value:.1%}"
    if kind == "perplexity":
        return f"{value:,.1f}" if value < 1e4 else f"{value:.2g}"  # noqa: PLR2004
    return f"{value:.3f}"


def say_interval(estimate: Estimate, kind: str) -> str:
    """Write an interval as ``2.512 - 2.731``."""
    return f"{say_value(estimate.low, kind)} {DASH} {say_value(estimate.high, kind)}"


def say_signed_percent(fraction: float) -> str:
    """Write a relative change with its sign: ``+1.6%``."""
    return f"{fraction:+.1%}".replace("-", MINUS)


def say_change(comparison: Comparison) -> str:
    """Write what changed: in percent of the value before, or in percentage points for a share."""
    if comparison.kind == "share":
        return f"{comparison.change.value * 100:+.1f} points".replace("-", MINUS)
    if comparison.relative_change is None:
        return f"{comparison.change.value:+.3f}".replace("-", MINUS)
    return say_signed_percent(comparison.relative_change.value)


def say_change_interval(comparison: Comparison) -> str:
    """Write the interval of what ``say_change`` tells."""
    if comparison.kind == "share":
        low, high = comparison.change.low * 100, comparison.change.high * 100
        return f"{low:+.1f} to {high:+.1f}".replace("-", MINUS)
    if comparison.relative_change is None:
        return f"{comparison.change.low:+.3f} to {comparison.change.high:+.3f}".replace("-", MINUS)
    low, high = comparison.relative_change.low, comparison.relative_change.high
    return f"{say_signed_percent(low)} to {say_signed_percent(high)}"


def tell_domain(scores: Scores, confidence: float) -> str:
    """Say in one or two sentences what was gained."""
    domain = scores.domain
    text = (
        f"On {domain.documents:,} documents of the domain that training never saw, the loss "
        f"{_moved(domain)} from {domain.before.value:.3f} to {domain.after.value:.3f} nats per target token "
        f"({say_change(domain)}; {confidence:.0%} interval {say_change_interval(domain)}){_doubt(domain)}."
    )
    if scores.exact is not None and scores.word_f1 is not None:
        exact, words = scores.exact, scores.word_f1
        text += (
            f" Asked {exact.documents:,} held-out questions, the model answers {exact.after.value:.1%} "
            f"exactly right (before: {exact.before.value:.1%}); its words agree with the right answer's by "
            f"{words.after.value:.1%} (F1; before: {words.before.value:.1%})."
        )
    return text


def tell_general(scores: Scores, confidence: float) -> str:
    """Say in one sentence what was lost, or that nothing can be said."""
    general = scores.general
    numbers = (
        f"from {general.before.value:.3f} to {general.after.value:.3f} ({say_change(general)}; "
        f"{confidence:.0%} interval {say_change_interval(general)}) on {general.documents:,} texts"
    )
    match general.verdict:
        case "worse":
            return f"On general text the loss rose {numbers}: this much of what the model knew was given up."
        case "better":
            return f"On general text the loss fell {numbers}: nothing was given up there."
        case "unclear":
            return f"On general text the loss went {numbers}{_doubt(general)}."


def tell_headline(scores: Scores) -> str:
    """Say the result in a few words."""
    domain = scores.domain
    match domain.verdict:
        case "better":
            return f"Held-out loss {say_change(domain)}"
        case "worse":
            return f"Held-out loss rose: {say_change(domain)}"
        case "unclear" if domain.too_few:
            return f"Too few unrelated held-out documents to judge: loss {say_change(domain)}"
        case "unclear":
            return "No change that can be told from chance on the held-out documents"


def _moved(comparison: Comparison) -> str:
    match comparison.verdict:
        case "better":
            return "fell"
        case "worse":
            return "rose"
        case "unclear":
            return "went"


def _doubt(comparison: Comparison) -> str:
    """Say why nothing follows from an interval, in the end of a sentence; nothing where something does."""
    if comparison.verdict != "unclear":
        return ""
    if comparison.too_few:
        groups = "one group" if comparison.families == 1 else f"{comparison.families} groups"
        return (
            f"; they are only {groups} of related documents, too few for this interval to count "
            f"(wanted: {FEWEST_FAMILIES})"
        )
    return "; the interval holds zero, so this cannot be told from chance"
