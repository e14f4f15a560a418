"""How peers train the same shapes on the same lengths; run by an environment that has them.

    python -m tests.benchmarks.speed.peers CASE

Each with its own defaults, but for what the comparison fixes: model, batch, AdamW, clipping at 1.0, no
logging, no saving. Tokens that are no padding are counted where the trainer hands its inputs to the model.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DataCollatorWithFlattening,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.benchmarks.speed.case import SHAPES, Case, draw_documents
from tests.benchmarks.speed.rounds import Rounds
from tests.benchmarks.speed.side import Variants, train_until_told

STEPS = 1_000_000
ZERO_3 = {
    "zero_optimization": {"stage": 3},
    "bf16": {"enabled": "auto"},
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


class Documents(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Documents, all tokens of them targets."""

    def __init__(self, case: Case) -> None:
        self._documents = draw_documents(case)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        ids = self._documents[index]
        return {"input_ids": ids, "labels": ids}


def pad(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad to the longest of the batch, as transformers' collators do."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    labels = torch.full((len(rows), longest), -100)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[number, :size] = labels[number, :size] = torch.tensor(row["input_ids"])
        mask[number, :size] = 1
    # A tokenizer gives a mask whenever something is padded, and blocks need none.
    batch = {"input_ids": ids, "labels": labels}
    return batch if bool(mask.all()) else batch | {"attention_mask": mask}


def counting(trainer: type[Trainer], rounds: Rounds) -> Any:
    """Make a trainer that counts the real tokens of its steps."""

    class Counting(trainer):  # type: ignore[valid-type, misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            mask = inputs.get("attention_mask")
            self.real_tokens = int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
            return super().training_step(model, inputs, *rest)

    class Counter(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            rounds.after_step(made[-1].real_tokens)

    made: list[Any] = []

    def make(**arguments: Any) -> Trainer:
        made.append(Counting(**arguments, callbacks=[Counter()]))
        return made[-1]

    return make


def settings(case: Case, **more: Any) -> dict[str, Any]:
    """Give the training arguments that the comparison fixes."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.micro_batch_size,
        "max_steps": STEPS,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "bf16": case.precision == "bf16",
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": STEPS,
        **more,
    }


def build(case: Case) -> LlamaForCausalLM:
    """Build the model from random weights, with the attention that transformers takes by default."""
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**SHAPES[case.shape], tie_word_embeddings=False))


def hf_trainer(case: Case, rounds: Rounds, **more: Any) -> None:
    """HF Trainer, every document padded to the longest of its batch."""
    arguments = TrainingArguments(**settings(case, remove_unused_columns=False, **more))
    collate = DataCollatorWithFlattening() if case.variant == "hf_flattened" else pad
    trainer = counting(Trainer, rounds)(
        model=build(case), args=arguments, train_dataset=Documents(case), data_collator=collate
    )
    trainer.train()


def hf_zero3(case: Case, rounds: Rounds) -> None:
    """HF Trainer with DeepSpeed ZeRO-3 and its default settings."""
    hf_trainer(case, rounds, deepspeed=ZERO_3)


def hf_compiled(case: Case, rounds: Rounds) -> None:
    """HF Trainer with torch_compile."""
    hf_trainer(case, rounds, torch_compile=True)


def trl(case: Case, rounds: Rounds) -> None:
    """TRL's SFTTrainer; documents that do not fill a row are packed by its default strategy."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from tests.benchmarks.speed.words import word_tokenizer

    packing = case.corpus != "blocks"
    arguments = SFTConfig(
        **settings(case), max_length=case.sequence_length, packing=packing, dataset_num_proc=None
    )
    tokenizer: PreTrainedTokenizerFast = word_tokenizer(SHAPES[case.shape]["vocab_size"])
    documents = [{"input_ids": ids} for ids in draw_documents(case)[:10_000]]
    trainer = counting(SFTTrainer, rounds)(
        model=build(case),
        args=arguments,
        train_dataset=Dataset.from_list(documents),
        processing_class=tokenizer,
    )
    trainer.train()


def torchtune(case: Case, rounds: Rounds) -> None:
    """Train by the recipe of torchtune for one device."""
    from tests.benchmarks.speed.recipe import run_recipe

    run_recipe(case, rounds)


VARIANTS: Variants = {
    "hf": hf_trainer,
    "hf_flattened": hf_trainer,
    "hf_zero3": hf_zero3,
    "hf_compiled": hf_compiled,
    "trl": trl,
    "torchtune": torchtune,
}


if __name__ == "__main__":
    train_until_told(VARIANTS)
