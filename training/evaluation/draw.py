"""The report's pictures: the loss curve, and before against after with error bars."""

import io
import textwrap
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from training.evaluation.report import Report
from training.evaluation.scores import Comparison
from training.evaluation.words import say_value

FONTS = ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"]
PNG_DOTS_PER_INCH = 160
BAR_WIDTH = 0.36
SMOOTHING_FROM_STEPS = 60
"""A curve of this many steps or more gets a running mean in front of the raw one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The colours of a picture."""

    ink: str
    faint: str
    grid: str
    paper: str
    before: str
    after: str


LIGHT = Theme(
    ink="#1b2430", faint="#5d6b7d", grid="#e3e8ef", paper="#ffffff", before="#a9b4c2", after="#0f766e"
)
DARK = Theme(
    ink="#e8edf4", faint="#9aa7b8", grid="#2b3543", paper="#161d27", before="#64748b", after="#2dd4bf"
)


def draw_png(report: Report) -> bytes:
    """Draw everything on one sheet, for a slide or a README; PNG."""
    with mpl.rc_context(_style(LIGHT)):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0.005, 0.01, 0.99, 0.86))
        figure = Figure(figsize=(12, 4.9), dpi=PNG_DOTS_PER_INCH, layout=layout)
        axes = figure.subplots(
            1, 3 if _answers(report) else 2, width_ratios=[1.25, 1, 1][: 3 if _answers(report) else 2]
        )
        figure.text(0.018, 0.935, report.headline, fontsize=17, fontweight="bold", color=LIGHT.ink)
        figure.text(0.018, 0.885, _subtitle(report), fontsize=10, color=LIGHT.faint)
        _draw_curve(axes[0], report, LIGHT)
        _draw_losses(axes[1], report, LIGHT)
        if _answers(report):
            _draw_answers(axes[2], report, LIGHT)
        _draw_legend(figure, axes[1])
        return _save(figure, "png", LIGHT)


def draw_curve_svg(report: Report, theme: Theme) -> bytes:
    """Draw the loss curve alone; SVG."""
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(9.6, 3.1), layout="constrained")
        _draw_curve(figure.subplots(), report, theme, titled=False)
        return _save(figure, "svg", theme)


def draw_bars_svg(report: Report, theme: Theme) -> bytes:
    """Draw before against after; SVG."""
    with mpl.rc_context(_style(theme)):
        figure = Figure(figsize=(9.6, 3.5), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 0.93)))
        axes = figure.subplots(1, 2 if _answers(report) else 1, squeeze=False)[0]
        _draw_losses(axes[0], report, theme)
        if _answers(report):
            _draw_answers(axes[1], report, theme)
        _draw_legend(figure, axes[0])
        return _save(figure, "svg", theme)


def _draw_curve(axes: Any, report: Report, theme: Theme, *, titled: bool = True) -> None:
    steps = [point.step for point in report.training.curve]
    losses = [point.loss for point in report.training.curve]
    smooth = len(losses) >= SMOOTHING_FROM_STEPS
    few = len(losses) < SMOOTHING_FROM_STEPS
    axes.plot(
        steps,
        losses,
        color=theme.after,
        linewidth=1.0 if smooth else 1.8,
        alpha=0.35 if smooth else 1,
        marker="o" if few else None,
        markersize=3.2,
    )
    if smooth:
        axes.plot(steps, running_mean(losses, len(losses) // 30), color=theme.after, linewidth=1.9)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per target token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    _dress(axes, "Training loss" if titled else "", theme)


def _draw_losses(axes: Any, report: Report, theme: Theme) -> None:
    scores = report.scores
    _draw_pairs(axes, [scores.domain, scores.general], ["held-out\ndomain", "general\ntext"], theme)
    axes.set_ylabel("nats per target token")
    _dress(axes, "Loss \u00b7 lower is better", theme)


def _draw_answers(axes: Any, report: Report, theme: Theme) -> None:
    _draw_pairs(axes, _answers(report), ["exactly\nright", "words in\ncommon (F1)"], theme)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_ylim(0, min(1.08, max(0.1, axes.get_ylim()[1])))
    _dress(axes, "Answers \u00b7 higher is better", theme)


def _draw_pairs(axes: Any, comparisons: list[Comparison], labels: list[str], theme: Theme) -> None:
    for offset, side, colour in ((-0.5, "before", theme.before), (0.5, "after", theme.after)):
        estimates = [getattr(comparison, side) for comparison in comparisons]
        places = [index + offset * (BAR_WIDTH + 0.04) for index in range(len(estimates))]
        values = [estimate.value for estimate in estimates]
        errors = [
            [max(0.0, estimate.value - estimate.low) for estimate in estimates],
            [max(0.0, estimate.high - estimate.value) for estimate in estimates],
        ]
        axes.bar(places, values, BAR_WIDTH, color=colour, label=side)
        axes.errorbar(places, values, errors, fmt="none", ecolor=theme.ink, elinewidth=1.1, capsize=3.5)
        for place, estimate, comparison in zip(places, estimates, comparisons, strict=True):
            axes.annotate(
                say_value(estimate.value, comparison.kind),
                (place, max(estimate.high, estimate.value)),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                fontsize=8.5,
                color=theme.ink,
            )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, 1.16 * max(max(c.before.high, c.after.high) for c in comparisons))
    axes.tick_params(axis="x", length=0)


def _draw_legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=2, frameon=False, fontsize=9.5, handlelength=1.1)


def running_mean(values: list[float], width: int) -> list[float]:
    """Average each value with up to ``width`` before it."""
    means, window = [], list[float]()
    for value in values:
        window = [*window, value][-max(1, width) :]
        means.append(sum(window) / len(window))
    return means


def _answers(report: Report) -> list[Comparison]:
    return [row for row in (report.scores.exact, report.scores.word_f1) if row is not None]


def _subtitle(report: Report) -> str:
    text = (
        f"{report.name}  \u00b7  {report.training.steps:,} steps, {report.training.tokens:,} tokens  \u00b7  "
        f"{report.scores.domain.documents:,} held-out documents, bars: {report.confidence:.0%} intervals"
    )
    return textwrap.shorten(text, 150, placeholder="\u2026")


def _dress(axes: Any, title: str, theme: Theme) -> None:
    if title:
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=theme.ink, pad=12)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "font.family": "sans-serif",
        "font.sans-serif": FONTS,
        "font.size": 9.5,
        "svg.fonttype": "path",
        "svg.hashsalt": "metier",
        "text.color": theme.ink,
        "axes.labelcolor": theme.faint,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "ytick.left": False,
    }


def _save(figure: Figure, form: str, theme: Theme) -> bytes:
    buffer = io.BytesIO()
    # No date: the same numbers give the same bytes.
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(buffer, format=form, facecolor=theme.paper, metadata=metadata)
    return buffer.getvalue()
