"""What an optimizer keeps by blocks of one cut goes on in that cut, and is refused in any other."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoint_case import Events, at
from training.errors import CheckpointError
from training.ranks import Ranks


class Engine:
    """Two layers and an optimizer that keeps a scale per block beside its moments, as 8-bit ones do."""

    def __init__(self, seed: int, world_size: int = 1) -> None:
        from training.engine.shards import Shards
        from training.engine.tensor_parallel import TensorTeam

        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.model(torch.ones(1, 4)).sum().backward()
        self.optimizer.step()
        for number, state in enumerate(self.optimizer.state.values()):
            state["absmax"] = torch.full((3,), float(seed + number))
        ranks = Ranks(rank=0, local_rank=0, world_size=world_size)
        team = TensorTeam(self.model, rank=0, size=1)  # type: ignore[arg-type]
        self.shards = Shards(self.model, self.optimizer, ranks, 0, team)
        self.fragments = self.shards.fragments
        self.load = self.shards.load

    def everything(self) -> list[Any]:
        return [*self.model.state_dict().values(), *self.optimizer.state_dict()["state"].values()]


def open_it(root: Path, engine: Engine) -> Any:
    from tests.fake_run import open_fake_store

    return open_fake_store(root, engine, events=Events())  # type: ignore[arg-type]


def test_blocks_are_taken_up_in_the_same_cut_and_refused_in_another(tmp_path: Path) -> None:
    saved, other = Engine(1), Engine(2)
    open_it(tmp_path, saved).save(at(1), final=True)
    open_it(tmp_path, other).resume()
    assert str(other.everything()) == str(saved.everything())

    with pytest.raises(
        CheckpointError, match=r"absmax by blocks of one cut, which was 1 processes at ZeRO .* 2"
    ):
        open_it(tmp_path, Engine(3, world_size=2)).resume()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved = Engine(1)
    open_it(tmp_path, saved).save(at(1), final=True)
    other = Engine(2)
    other.shards._shapes["0.weight"] = (4, 5)
    with pytest.raises(CheckpointError, match=r"differ in 0\.weight \(1 such parameters\)"):
        open_it(tmp_path, other).resume()
