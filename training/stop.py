"""The wish that training end soon: a signal to any rank, agreed by all at the edge of a step."""

import signal
from types import FrameType

import torch

from training.collectives import any_rank

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Remembers that a stop was asked for. The handler does nothing else: it may interrupt anything."""

    def __init__(self, device: torch.device) -> None:
        """Listen to SIGTERM, SIGINT and SIGUSR1 from now on."""
        self._device = device
        self._asked = False
        for number in _SIGNALS:
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def is_set(self) -> bool:
        """Give the same answer on every rank. Collective: every rank must call it once per step."""
        return any_rank(self._asked, self._device)
