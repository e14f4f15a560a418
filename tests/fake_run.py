"""A run whose whole state is one parameter: its checkpoints are quick to write, and to damage."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tests.checkpoint_case import Events
from training.checkpoint.commit import Lineage
from training.checkpoint.retention import Retention
from training.checkpoint.store import CheckpointStore
from training.collectives import from_lead
from training.fence import claim_incarnation
from training.fragments.fragment import Fragment, read_into
from training.fragments.reader import FragmentReader
from training.fragments.runs import Stretch
from training.layout import RunLayout
from training.ranks import Ranks

ELEMENTS = 50_000
ALONE = Ranks(rank=0, local_rank=0, world_size=1)


class FakeEngine:
    """An engine whose whole state is one tensor and its moment; each rank answers for a stretch of them."""

    def __init__(self, value: float = 0.0, ranks: Ranks = ALONE) -> None:
        self.value = torch.full((ELEMENTS,), value)
        self.moment = torch.full((ELEMENTS,), -value)
        self._first = ELEMENTS * ranks.rank // ranks.world_size
        self._last = ELEMENTS * (ranks.rank + 1) // ranks.world_size

    def fragments(self) -> Iterator[Fragment]:
        yield Fragment(
            name="value",
            shape=(500, 100),
            start=self._first,
            tensors={
                "weight": self.value[self._first : self._last],
                "exp_avg": self.moment[self._first : self._last],
            },
            scalars={"step": 1.0},
        )

    def load(self, reader: FragmentReader) -> None:
        for key, tensor in (("weight", self.value), ("exp_avg", self.moment)):
            read_into(tensor, reader, "value", key, Stretch(0, ELEMENTS))


def open_fake_store(  # noqa: PLR0913 - what tests change
    root: Path,
    engine: FakeEngine,
    *,
    corpus: str = "c0ffee",
    base: str = "ba5e",
    run: str = "d0d0",
    optimizer: str = "adamw",
    keep: Retention | None = None,
    events: Events | None = None,
    ranks: Ranks = ALONE,
) -> CheckpointStore:
    layout = RunLayout(root)
    lineage = Lineage(
        layout=layout,
        ranks=ranks,
        zero_stage=2,
        incarnation=from_lead(claim_incarnation(layout.incarnations) if ranks.is_lead else 0),
        run=run,
        optimizer=optimizer,
        corpus=corpus,
        base=base,
        keep=keep or Retention(newest=2, every_steps=None),
        versions={},
    )
    return CheckpointStore(engine, lineage, events or Events())
