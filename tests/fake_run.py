"""A run whose whole state is one parameter: its checkpoints are quick to write, and to damage."""

from collections.abc import Iterator
from pathlib import Path

import torch

from tests.checkpoint_case import Events
from training.checkpoint.commit import Lineage
from training.checkpoint.fence import claim_incarnation
from training.checkpoint.retention import Retention
from training.checkpoint.store import CheckpointStore
from training.fragments.fragment import Fragment
from training.fragments.reader import FragmentReader
from training.layout import RunLayout
from training.ranks import Ranks


class FakeEngine:
    """An engine whose whole state is one tensor and its moment."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = torch.full((50_000,), value)
        self.moment = torch.full((50_000,), -value)

    def fragments(self) -> Iterator[Fragment]:
        yield Fragment(
            name="value",
            shape=(500, 100),
            start=0,
            tensors={"weight": self.value, "exp_avg": self.moment},
            scalars={"step": 1.0},
        )

    def load(self, reader: FragmentReader) -> None:
        for key in ("weight", "exp_avg"):
            for begin, data in reader.read("value", key, 0, 50_000):
                found = torch.frombuffer(data, dtype=torch.float32)
                (self.value if key == "weight" else self.moment)[begin : begin + len(found)] = found


def open_fake_store(
    root: Path,
    engine: FakeEngine,
    *,
    corpus: str = "c0ffee",
    keep: Retention | None = None,
    events: Events | None = None,
) -> CheckpointStore:
    layout = RunLayout(root)
    lineage = Lineage(
        layout=layout,
        ranks=Ranks(rank=0, local_rank=0, world_size=1),
        zero_stage=2,
        incarnation=claim_incarnation(layout.incarnations),
        corpus=corpus,
        keep=keep or Retention(newest=2, every_steps=None),
        versions={},
    )
    return CheckpointStore(engine, lineage, events or Events())
