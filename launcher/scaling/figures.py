"""From the speeds of single runs to the table: efficiency with its spread, a step's parts, the knee. Pure.

A size's number is the median over its repeats. Speed-up S = T_n / T_b, efficiency E = S / (d_n / d_b), where
T are the tokens per second of the whole size, d its devices, b the smallest size that was measured. It serves
strong and weak scaling, because T already counts the larger batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from launcher.scaling.journal import Speed

_BILLION = 1e9
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A number over repeats. With one repeat the three are the same: nothing is known of the spread."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What is known of one size before it is compared."""

    size: int
    devices: int
    global_batch_size: int
    passes: int
    """gradient_accumulation_steps: forward passes of a device per step."""

    speeds: tuple[Speed, ...]
    asked: int
    """Runs that were asked for."""

    waiting: int
    """Runs that have not ended yet."""

    reason: str | None
    """Why a run of it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Where a step's seconds went: compute + communication + data wait + rest = step."""

    step_seconds: float
    compute_seconds: float
    communication_seconds: float | None
    """An estimate: what a step takes longer than the same work at the smallest size. None: unknown, because
    the smallest size has several devices, which talk as well."""

    own_collectives_seconds: float
    """Measured: the part of the communication that is not DeepSpeed's."""

    data_wait_seconds: float
    rest_seconds: float
    checkpoint_stall_seconds: float
    """Beside the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Where ``state`` is not ``measured`` there are no numbers."""

    size: int
    devices: int
    global_batch_size: int
    state: str
    """measured, failed or waiting."""

    reason: str | None
    runs: int
    """Of which the numbers are."""

    runs_asked: int
    tokens_per_second: Spread | None = None
    tokens_per_second_per_device: float | None = None
    speed_up: float | None = None
    efficiency: Spread | None = None
    mfu: float | None = None
    parts: Parts | None = None
    memory_peak_bytes: int | None = None
    device_hours_per_billion_tokens: float | None = None


def build_rows(sizes: Sequence[Size], *, shards_optimizer: bool) -> list[Row]:
    """Compare every size with the smallest that was measured.

    Args:
        sizes: Ascending.
        shards_optimizer: Whether each device updates its own share of the weights alone (ZeRO 1 to 3).
    """
    base = next((size for size in sizes if size.speeds), None)
    return [
        _build_row(size, base, shards_optimizer=shards_optimizer) if base and size.speeds else _empty(size)
        for size in sizes
    ]


def spread(values: Sequence[float]) -> Spread:
    """Give median, least and greatest."""
    return Spread(median=median(values), low=min(values), high=max(values))


def compare(values: Sequence[float], base: Sequence[float], devices: float) -> Spread:
    """Give the efficiency, its range over every pair of a repeat here and a repeat of the smallest size.

    Args:
        values: Tokens per second of this size's repeats.
        base: Those of the smallest size; the same object for that size itself, whose efficiency is 1 and
            whose range is that of its own repeats around their median.
        devices: How many times the devices.
    """
    middle = median(base)
    least, most = (middle, middle) if values is base else (min(base), max(base))
    return Spread(
        median=median(values) / middle / devices,
        low=min(values) / most / devices,
        high=max(values) / least / devices,
    )


def split_step(size: Size, base: Size, *, shards_optimizer: bool) -> Parts:
    """Split a step of ``size``.

    What DeepSpeed sends overlaps with backward and is not measured apart. The same passes would take, without
    anybody to wait for, ``(forward_b + backward_b) x passes_n / passes_b + optimizer_b x share``, where share
    is d_b / d_n when the update is shared out and else 1. What forward, backward and optimizer take beyond it
    counts as communication: whatever else makes them slower in company (memory bandwidth, shared cores, the
    slowest device) is in it as well.
    """
    here, there = _medians(size.speeds), _medians(base.speeds)
    working = here.forward_seconds + here.backward_seconds + here.optimizer_seconds
    share = base.devices / size.devices if shards_optimizer else 1.0
    alone = (
        there.forward_seconds + there.backward_seconds
    ) * size.passes / base.passes + there.optimizer_seconds * share
    if base.devices > 1:
        communication = None
    elif size.devices == 1:
        communication = 0.0
    else:
        communication = max(0.0, working - alone)
    return Parts(
        step_seconds=here.step_seconds,
        compute_seconds=working - (communication or 0.0),
        communication_seconds=communication,
        own_collectives_seconds=here.collectives_seconds,
        data_wait_seconds=here.data_wait_seconds,
        rest_seconds=max(0.0, here.step_seconds - working - here.data_wait_seconds),
        checkpoint_stall_seconds=here.checkpoint_stall_seconds,
    )


def find_knee(rows: Sequence[Row], threshold: float) -> Row | None:
    """Find the largest size up to which every measured size has an efficiency of at least ``threshold``.

    0.8 is where the POP Centre of Excellence draws the line between what is acceptable and what should be
    looked into (co-design.pop-coe.eu/metrics/index.html). Sizes that failed are stepped over.
    """
    knee = None
    for row in rows:
        if row.efficiency is None:
            continue
        if row.efficiency.median < threshold:
            break
        knee = row
    return knee


def _build_row(size: Size, base: Size, *, shards_optimizer: bool) -> Row:
    rates = [speed.tokens_per_second for speed in size.speeds]
    base_rates = rates if size is base else [speed.tokens_per_second for speed in base.speeds]
    rate = spread(rates)
    known = [speed.mfu for speed in size.speeds if speed.mfu is not None]
    return Row(
        size=size.size,
        devices=size.devices,
        global_batch_size=size.global_batch_size,
        state="measured",
        reason=size.reason,
        runs=len(size.speeds),
        runs_asked=size.asked,
        tokens_per_second=rate,
        tokens_per_second_per_device=rate.median / size.devices,
        speed_up=rate.median / median(base_rates),
        efficiency=compare(rates, base_rates, size.devices / base.devices),
        mfu=median(known) if known else None,
        parts=split_step(size, base, shards_optimizer=shards_optimizer),
        memory_peak_bytes=max(speed.memory_peak_bytes for speed in size.speeds),
        device_hours_per_billion_tokens=size.devices * _BILLION / rate.median / _SECONDS_PER_HOUR,
    )


def _empty(size: Size) -> Row:
    return Row(
        size=size.size,
        devices=size.devices,
        global_batch_size=size.global_batch_size,
        state="waiting" if size.waiting else "failed",
        reason=size.reason,
        runs=0,
        runs_asked=size.asked,
    )


def _medians(speeds: Sequence[Speed]) -> Speed:
    """Give the run whose step takes the median time, the quicker of two in the middle: its parts add up."""
    return sorted(speeds, key=lambda speed: speed.step_seconds)[(len(speeds) - 1) // 2]
