"""``python -m launcher.scaling.draw SCALE_JSON PNG``: a process of its own, because matplotlib takes long."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from training.errors import EXIT_OK
from training.files import write_atomically

_DOTS_PER_INCH = 160
_INK, _FAINT, _GRID = "#1b2430", "#5d6b7d", "#e3e8ef"
_COLOURS = {"strong": "#0f766e", "weak": "#b45309"}
_FAILED = {"strong": "x", "weak": "+"}  # one does not hide the other
_KNEE_OFFSETS = {"strong": 8, "weak": 20}
_WIDE = 8
"""From this ratio of the largest to the smallest size on, the axes are logarithmic."""
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _FAINT,
    "axes.titlecolor": _INK,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "axes.grid": True,
    "grid.color": _GRID,
    "axes.axisbelow": True,
    "text.color": _INK,
    "legend.frameon": False,
}


def draw(scale: Mapping[str, Any], path: Path) -> None:
    """Draw throughput against the ideal, and efficiency."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 4.6), dpi=_DOTS_PER_INCH, layout="constrained")
        rates, efficiency = figure.subplots(1, 2)
        measured = [row for table in scale["tables"] for row in table["rows"] if row["efficiency"]]
        for table in scale["tables"]:
            _draw_rates(rates, table)
            _draw_efficiency(efficiency, table)
            _draw_failed((rates, efficiency), table)
        rates.set_title("Throughput")
        rates.set_ylabel("tokens per second")
        sizes = sorted({row["size"] for table in scale["tables"] for row in table["rows"]})
        if sizes[-1] / sizes[0] >= _WIDE:
            rates.set_yscale("log")
            # Powers of ten alone may all lie outside.
            rates.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
            for axes in (rates, efficiency):
                axes.set_xscale("log", base=2)
        else:
            rates.set_ylim(bottom=0)
        rates.yaxis.set_major_formatter("{x:,.0f}")
        efficiency.set_title("Efficiency")
        efficiency.set_ylabel("of the smallest size's rate per device")
        efficiency.axhline(1, color=_FAINT, linewidth=1, linestyle=":")
        efficiency.axhline(scale["knee"], color=_FAINT, linewidth=1, linestyle="--")
        efficiency.set_ylim(0, max([1.15, *(row["efficiency"]["high"] * 1.08 for row in measured)]))
        for axes in (rates, efficiency):
            axes.set_xlabel(scale["axis"])
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.margins(x=0.08)
        _explain(rates)
        figure.suptitle(f"{scale['name']} · {scale['kind']}", x=0.01, ha="left", fontweight="bold")
        write_atomically(path, lambda partial: figure.savefig(partial, format="png", facecolor="#ffffff"))


def _draw_rates(axes: Any, table: Mapping[str, Any]) -> None:
    rows = [row for row in table["rows"] if row["tokens_per_second"]]
    if not rows:
        return
    _draw_line(axes, rows, "tokens_per_second", table["mode"])
    first = rows[0]
    ideal = [first["tokens_per_second"]["median"] * row["devices"] / first["devices"] for row in rows]
    axes.plot(
        [row["size"] for row in rows],
        ideal,
        color=_COLOURS[table["mode"]],
        linewidth=1,
        linestyle=":",
        label=f"{table['mode']}, ideal",
    )


def _draw_efficiency(axes: Any, table: Mapping[str, Any]) -> None:
    rows = [row for row in table["rows"] if row["efficiency"]]
    _draw_line(axes, rows, "efficiency", table["mode"])
    knee = next((row for row in rows if row["size"] == table["knee"]), None)
    if knee and knee is not rows[-1]:
        place = (knee["size"], knee["efficiency"]["median"])
        axes.annotate(
            f"knee ({table['mode']})",
            place,
            xytext=(6, _KNEE_OFFSETS[table["mode"]]),
            textcoords="offset points",
            color=_COLOURS[table["mode"]],
            fontsize=9,
        )


def _draw_line(axes: Any, rows: list[dict[str, Any]], key: str, mode: str) -> None:
    values = [row[key] for row in rows]
    middle = [value["median"] for value in values]
    axes.errorbar(
        [row["size"] for row in rows],
        middle,
        yerr=[
            [value["median"] - value["low"] for value in values],
            [value["high"] - value["median"] for value in values],
        ],
        color=_COLOURS[mode],
        linewidth=1.8,
        marker="o",
        markersize=5,
        capsize=3,
        label=mode,
    )


def _draw_failed(panels: tuple[Any, ...], table: Mapping[str, Any]) -> None:
    failed = [row["size"] for row in table["rows"] if row["state"] == "failed"]
    for axes in panels if failed else ():
        # At the foot of the panel, whatever its scale: (data, fraction of the axes).
        axes.plot(
            failed,
            [0.03] * len(failed),
            transform=axes.get_xaxis_transform(),
            linestyle="none",
            marker=_FAILED[table["mode"]],
            markersize=9,
            markeredgewidth=2.2,
            color=_COLOURS[table["mode"]],
            clip_on=False,
            label=f"{table['mode']}, failed",
        )


def _explain(axes: Any) -> None:
    """Put each mode's line before its ideal and its failed sizes."""
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=labels.__getitem__)
    axes.legend([handles[at] for at in order], [labels[at] for at in order], loc="upper left")


def main(words: list[str]) -> int:
    """Draw one experiment."""
    draw(json.loads(Path(words[0]).read_text(encoding="utf-8")), Path(words[1]))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
