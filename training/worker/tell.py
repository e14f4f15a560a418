"""How a rank tells what ended it: by one outcome of the run, whoever comes first with a cause."""

import os
from typing import Literal

from training.errors import MetierError
from training.layout import RunLayout
from training.outcome import Outcome, find_cause, read_outcome, write_outcome
from training.ranks import Ranks

_SIGNS_OF_LOSS = (
    "closed by peer",
    "Connection reset",
    "Broken pipe",
    "remote process",
    "Connection was likely closed",
    "failed to recv, got 0 bytes",
    "Socket closed",
)
"""What gloo, NCCL and the store of the first contact say when another process is gone."""

_SIGNS_OF_SILENCE = ("Timed out waiting", "timed out", "Timeout at NCCL", "wait timeout")


class PeerLostError(Exception):
    """Another rank went away without a word; this one only heard the connection close, or nothing."""


def tell_failure(layout: RunLayout, ranks: Ranks, error: Exception, incarnation: int | None) -> None:
    """Leave an outcome, unless another rank has told a cause before.

    Args:
        layout: The run.
        ranks: Which rank tells.
        error: What ended it.
        incarnation: The start; None before it claimed the run.
    """
    told = name_lost_peer(error)
    write_outcome(
        layout.outcome,
        Outcome(
            state="FAILED",
            step=None,
            error_class=_name_class(told),
            message=(str(told).splitlines() or [""])[0],
            rank=ranks.rank,
            cause=find_cause(told),
            node=os.uname().nodename,
            incarnation=incarnation,
        ),
    )


def tell_end(
    layout: RunLayout, state: Literal["COMPLETED", "STOPPED"], step: int, incarnation: int, notice: str | None
) -> None:
    """Leave the outcome of an orderly end; the lead rank's task.

    Args:
        layout: The run.
        state: Whether the run is finished.
        step: Optimizer steps that are done and saved.
        incarnation: The start.
        notice: What asked for the stop.
    """
    write_outcome(
        layout.outcome,
        Outcome(
            state=state,
            step=step,
            error_class=None,
            message=None,
            rank=0,
            node=os.uname().nodename,
            incarnation=incarnation,
            notice=notice,
        ),
    )


def clear_outcome(layout: RunLayout, incarnation: int) -> None:
    """Remove the outcome of an earlier start, where whoever began this one has left it.

    Or of an attempt of this one that torchrun has made again by itself. One without a number never came to
    claim the run, and all ranks of this start have.
    """
    told = read_outcome(layout.outcome)
    if told is not None and (told.incarnation is None or told.incarnation < incarnation):
        layout.outcome.unlink(missing_ok=True)


def name_lost_peer(error: Exception) -> Exception:
    """Give the error itself, or what it means where a collective found another rank gone or silent."""
    if isinstance(error, MetierError):
        return error
    text = str(error)
    if any(sign in text for sign in _SIGNS_OF_LOSS):
        return PeerLostError(
            "another rank was killed or lost its connection; the same command goes on from the last "
            "checkpoint"
        )
    if isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS_OF_SILENCE):
        return PeerLostError(
            f"another rank did not answer in time ({text.splitlines()[0][:200]}); the same command goes "
            "on from the last checkpoint"
        )
    return error


def _name_class(error: Exception) -> str:
    """Name the error by the class that the launcher knows: a room's own kinds are its own matter."""
    known = (kind.__name__ for kind in type(error).__mro__ if kind.__module__ == MetierError.__module__)
    return next(known, type(error).__name__)
