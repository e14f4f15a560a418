"""The table and its sentences, for the screen and for the page. Pure."""

from collections.abc import Sequence

from launcher.scaling.collect import Table
from launcher.scaling.figures import Row, Spread
from launcher.scaling.record import Experiment
from launcher.tables import lay_out
from training.files import say_bytes

DASH = "-"
_MILLI = 1000
_PERCENT = 100
_DOUBTED_EFFICIENCY = 1.1

NOTES = (
    "efficiency: tokens/s over those of the smallest size, divided by how many times its devices; in "
    "brackets the range over every pair of repeats",
    "communication~ is an estimate: what forward, backward and optimizer take longer than the same work "
    "alone; slower memory or cores in company are in it too",
    "our collectives: measured; those of the stop signal, of counts and norms, which are not DeepSpeed's",
    "checkpoint stall: beside the step, where one was saved between measured steps",
)


def speed_headings(experiment: Experiment) -> list[str]:
    """Name the columns of what a size is worth."""
    return [
        experiment.axis,
        "batch",
        "tokens/s",
        f"per {experiment.device}",
        "speed-up",
        "efficiency",
        "MFU",
        "memory",
        f"{experiment.device}-hours per 1e9 tokens",
    ]


def step_headings(experiment: Experiment) -> list[str]:
    """Name the columns of where a step's time goes."""
    return [
        experiment.axis,
        "step",
        "compute",
        "communication~",
        "our collectives",
        "data wait",
        "rest",
        "checkpoint stall",
    ]


def speed_cells(row: Row) -> list[str]:
    """Write a measured size's cells under ``speed_headings``; none of another."""
    if row.tokens_per_second is None or row.efficiency is None:
        return []
    return [
        str(row.size),
        str(row.global_batch_size),
        _say_rate(row.tokens_per_second),
        f"{row.tokens_per_second_per_device or 0:,.0f}",
        f"{row.speed_up or 0:.2f}",
        _say_efficiency(row.efficiency),
        DASH if row.mfu is None else f"{row.mfu * _PERCENT:.1f}%",
        say_bytes(row.memory_peak_bytes or 0),
        f"{row.device_hours_per_billion_tokens or 0:,.1f}",
    ]


def step_cells(row: Row) -> list[str]:
    """Write a measured size's cells under ``step_headings``; none of another."""
    parts = row.parts
    if parts is None:
        return []
    return [
        str(row.size),
        _say_seconds(parts.step_seconds),
        _say_seconds(parts.compute_seconds),
        _say_seconds(parts.communication_seconds),
        _say_seconds(parts.own_collectives_seconds),
        _say_seconds(parts.data_wait_seconds),
        _say_seconds(parts.rest_seconds),
        _say_seconds(parts.checkpoint_stall_seconds),
    ]


def say_trouble(row: Row) -> str | None:
    """Say in one line what is missing of a size; None when nothing is."""
    if row.state == "waiting":
        return "has not ended yet"
    if row.state == "failed":
        return f"failed: {row.reason}"
    if row.runs < row.runs_asked:
        why = f": {row.reason}" if row.reason else ""
        return f"measured on {row.runs} of {row.runs_asked} runs{why}"
    return None


def say_knee(table: Table, experiment: Experiment) -> str:
    """Say in one sentence up to which size it is worth growing."""
    measured = [row for row in table.rows if row.efficiency is not None]
    if len(measured) < 2:  # noqa: PLR2004 - nothing to compare
        return f"{table.mode}: the knee cannot be told, {len(measured)} of {len(table.rows)} sizes measured."
    knee, limit = table.knee, f"{experiment.knee:.2f}"
    above = next((row for row in measured if knee is not None and row.size > knee.size), None)
    if knee is None or knee.efficiency is None:
        return f"{table.mode}: no size reaches an efficiency of {limit}."
    if above is None or above.efficiency is None:
        return (
            f"{table.mode}: no knee up to {_say_size(knee, experiment)}, the largest measured: efficiency "
            f"{knee.efficiency.median:.2f}, at least {limit}."
        )
    return (
        f"{table.mode}: the knee is at {_say_size(knee, experiment)}, efficiency "
        f"{knee.efficiency.median:.2f}; {_say_size(above, experiment)} have {above.efficiency.median:.2f}, "
        f"below {limit}."
    )


def say_doubt(table: Table) -> str | None:
    """Say where the numbers cannot be right as they are; None: nowhere."""
    most = max((row.efficiency.median for row in table.rows if row.efficiency), default=0.0)
    if most <= _DOUBTED_EFFICIENCY:
        return None
    return (
        f"{table.mode}: an efficiency of {most:.2f} "
        "says that the smallest size was disturbed, or short of memory; measure again with repeats=3"
    )


def say_table(experiment: Experiment, table: Table) -> str:
    """Lay out one way of scaling for the screen: what sizes are worth, what failed, where the time goes."""
    measured = [row for row in table.rows if row.state == "measured"]
    speeds = _align([speed_headings(experiment), *map(speed_cells, measured)]) if measured else []
    steps = ["", *_align([step_headings(experiment), *map(step_cells, measured)])] if measured else []
    troubles = [
        f"{experiment.axis}={row.size}  {trouble}" for row in table.rows if (trouble := say_trouble(row))
    ]
    return "\n".join([say_mode(table), *speeds, *troubles, *steps]) + "\n"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    return lay_out(rows, right=range(len(rows[0])))


def say_mode(table: Table) -> str:
    """Say what is kept the same."""
    kept = "the same global batch" if table.mode == "strong" else "the same batch per device"
    return f"{table.mode} scaling: {kept}"


def say_settings(experiment: Experiment) -> list[tuple[str, str]]:
    """List what all sizes have in common, for the page."""
    return [
        (
            "measured",
            f"{experiment.steps} steps after {experiment.warmup} of warm-up, x {experiment.repeats}",
        ),
        ("started", experiment.began),
        *experiment.settings.items(),
    ]


def _say_size(row: Row, experiment: Experiment) -> str:
    names: Sequence[str] = ("node", "nodes") if experiment.axis == "nodes" else ("process", "processes")
    return f"{row.size} {names[row.size != 1]}"


def _say_rate(value: Spread) -> str:
    if value.low == value.high:
        return f"{value.median:,.0f}"
    return f"{value.median:,.0f} [{value.low:,.0f}-{value.high:,.0f}]"


def _say_efficiency(value: Spread) -> str:
    if value.low == value.high:
        return f"{value.median:.2f}"
    return f"{value.median:.2f} [{value.low:.2f}-{value.high:.2f}]"


def _say_seconds(value: float | None) -> str:
    if value is None:
        return DASH
    return f"{value:.2f} s" if value >= 1 else f"{value * _MILLI:.1f} ms"
