"""One interrupted run: started, struck in its middle, continued until it is complete, compared."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.drill.leftovers import find_half_written
from launcher.drill.plan import Kind, Plan
from launcher.drill.stage import Stage
from launcher.drill.trace import Comparison, Trace, compare, is_complete, read_trace
from launcher.scaling.journal import read_journal
from launcher.tables import lay_out
from training.errors import MetierError

_ASK_EVERY_SECONDS = 0.05
_STARTS = 4
"""Times that `metier train` is typed at most for one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The undisturbed run."""

    trace: Trace
    left: tuple[str, ...]
    """What it leaves as well, a library's cache for instance, is no trace of an interruption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What became of one interrupted run."""

    kind: Kind
    struck: str
    """What was done to it."""

    step: int | None
    """After which step; None: it was not struck."""

    starts: int
    redone: int
    seconds: float
    comparison: Comparison
    left: tuple[str, ...]
    unknown: str | None
    """What of ``left`` could not be looked for."""

    @property
    def fault(self) -> str | None:
        """Why the case does not prove that it is safe; None: it does."""
        if self.comparison.differences:
            return self.comparison.differences[0]
        if self.step is None:
            return f"it could not be interrupted: {self.struck}"
        if self.starts == 1:
            return "it was not interrupted: one start did all of it; say steps=N with more steps"
        return f"{', '.join(self.left)} was left behind" if self.left else None


def run_undisturbed(plan: Plan, stage: Stage, name: str, environ: Mapping[str, str]) -> Reference:
    """Train once without interruption."""
    stage.start(plan, name)
    _wait(plan, stage, name)
    left = stage.find_left(plan, name)
    return Reference(trace=read_trace(plan.layout(name), environ), left=left.found)


def run_case(plan: Plan, stage: Stage, kind: Kind, expected: Reference, environ: Mapping[str, str]) -> Case:
    """Train, interrupt, go on to the end, and compare with the undisturbed run.

    Raises:
        MetierError: A start is refused.
    """
    began, layout = time.monotonic(), plan.layout(kind)
    stage.start(plan, kind)
    step, struck = _strike(plan, stage, kind)
    _wait(plan, stage, kind)
    typed = 1
    while not is_complete(layout) and typed < _STARTS:
        stage.start(plan, kind)
        _wait(plan, stage, kind)
        typed += 1
    left = stage.find_left(plan, kind)
    found = read_trace(layout, environ)
    return Case(
        kind=kind,
        struck=struck,
        step=step,
        starts=found.starts,
        redone=found.redone,
        seconds=time.monotonic() - began,
        comparison=compare(expected.trace, found),
        left=(*(each for each in left.found if each not in expected.left), *find_half_written(layout)),
        unknown=left.unknown,
    )


def say_table(cases: Sequence[Case]) -> str:
    """Lay the cases out, one line each."""
    head = ("interruption", "after step", "starts", "done again", "state", "losses", "samples", "left behind")
    return "".join(f"{line}\n" for line in lay_out([head, *(_cells(case) for case in cases)]))


def say_verdict(cases: Sequence[Case]) -> str:
    """Say in one line whether this cluster is safe."""
    bad = next(((case.kind, case.fault) for case in cases if case.fault), None)
    if bad is None:
        names = ", ".join(case.kind for case in cases)
        unseen = any(case.unknown for case in cases)
        doubt = "; what was left behind could not be looked at everywhere" if unseen else ""
        return f"safe: interrupted ({names}) and continued, the run is bit for bit the undisturbed one{doubt}"
    others = sum(case.fault is not None for case in cases) - 1
    more = f" (and {others} more interruptions)" if others else ""
    return f"NOT safe: after {bad[0]}{more} the run is not proven to be the same, because {bad[1]}"


def _cells(case: Case) -> tuple[str, ...]:
    equal = {True: "equal", False: "DIFFER"}
    found = case.comparison
    return (
        case.kind,
        "-" if case.step is None else str(case.step),
        str(case.starts),
        str(case.redone),
        equal[found.state is None],
        equal[found.losses is None],
        equal[found.samples is None],
        ", ".join(case.left) or ("nothing" if case.unknown is None else f"not known: {case.unknown}"),
    )


def _strike(plan: Plan, stage: Stage, kind: Kind) -> tuple[int | None, str]:
    """Interrupt the run once it has come far enough; say after which step, and what was done."""
    layout = plan.layout(kind)
    while not stage.is_over(plan, kind):
        lines = read_journal(layout.metrics)
        if lines and lines[-1]["step"] >= plan.strike_after:
            try:
                return int(lines[-1]["step"]), stage.strike(plan, kind, kind)
            except MetierError as error:
                return None, str(error)
        time.sleep(_ASK_EVERY_SECONDS)
    return None, f"it ended before step {plan.strike_after} was seen; {stage.say_why(plan, kind)}"


def _wait(plan: Plan, stage: Stage, name: str) -> None:
    while not stage.is_over(plan, name):
        time.sleep(_ASK_EVERY_SECONDS)
