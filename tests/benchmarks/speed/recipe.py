"""torchtune's recipe for one device, as it stands, on the same shapes and lengths."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.speed.case import SHAPES, Case, draw_documents
from tests.benchmarks.speed.rounds import Rounds

EPOCHS = 1_000
PACKED_DOCUMENTS = 10_000
HERE = "tests.benchmarks.speed.recipe"


def run_recipe(case: Case, rounds: Rounds) -> None:
    """Train by the recipe; its own packing where documents do not fill a row."""
    import torchtune
    from omegaconf import OmegaConf

    path = Path(torchtune.__file__).parents[1] / "recipes" / "full_finetune_single_device.py"
    found: Any = importlib.util.spec_from_file_location("torchtune_recipe", path)
    recipes: Any = importlib.util.module_from_spec(found)
    sys.modules[found.name] = recipes
    found.loader.exec_module(recipes)

    class Counting(recipes.FullFinetuneRecipeSingleDevice):  # type: ignore[misc]
        def load_checkpoint(self, _: Any) -> dict[str, Any]:
            torch.manual_seed(1)
            from torchtune import config

            return {"model": config.instantiate(settings.model).state_dict()}

        def _loss_step(self, batch: dict[str, Tensor]) -> Tensor:
            self.real_tokens = int((batch["labels"] != -100).sum())
            loss: Tensor = super()._loss_step(batch)
            return loss

    settings = OmegaConf.create(describe(case))
    recipe = Counting(cfg=settings)
    recipe.setup(cfg=settings)
    recipe._metric_logger = Counter(recipe, rounds)
    recipe.train()


class Counter:
    """Stands for the recipe's metric logger, which hears of every step."""

    def __init__(self, recipe: Any, rounds: Rounds) -> None:
        self._recipe = recipe
        self._rounds = rounds

    def log_dict(self, *_: Any, **__: Any) -> None:
        self._rounds.after_step(self._recipe.real_tokens)


def describe(case: Case) -> dict[str, Any]:
    """Write the recipe's configuration."""
    shape = SHAPES[case.shape]
    folder = tempfile.mkdtemp()
    return {
        "output_dir": folder,
        "model": {
            "_component_": "torchtune.models.llama3.llama3",
            "vocab_size": shape["vocab_size"],
            "num_layers": shape["num_hidden_layers"],
            "num_heads": shape["num_attention_heads"],
            "num_kv_heads": shape["num_key_value_heads"],
            "embed_dim": shape["hidden_size"],
            "intermediate_dim": shape["intermediate_size"],
            "max_seq_len": case.sequence_length,
        },
        "tokenizer": {"_component_": f"{HERE}.NoTokenizer"},
        "dataset": {"_component_": f"{HERE}.open_documents", "case": case.to_json(), "packed": packs(case)},
        "checkpointer": {"model_type": "LLAMA3"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4, "fused": True},
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": folder},
        "resume_from_checkpoint": False,
        "shuffle": True,
        "seed": 1,
        "batch_size": case.micro_batch_size,
        "epochs": EPOCHS,
        "max_steps_per_epoch": None,
        "gradient_accumulation_steps": 1,
        "optimizer_in_bwd": False,
        "clip_grad_norm": 1.0,
        "compile": False,
        "device": "cpu",
        "dtype": case.precision,
    }


def packs(case: Case) -> bool:
    """Whether documents share rows."""
    return case.corpus != "blocks"


class NoTokenizer:
    """The recipe asks a tokenizer for its padding alone."""

    pad_id = 0


def open_documents(_: NoTokenizer, *, case: str, packed: bool) -> Any:
    """Make the data set that the configuration names."""
    from torchtune.datasets import PackedDataset

    read = Case.from_json(case)
    rows = [{"tokens": ids, "labels": ids} for ids in draw_documents(read)[:PACKED_DOCUMENTS]]
    return PackedDataset(rows, max_seq_len=read.sequence_length) if packed else rows
