"""Trains one case in a process of its own and says what it cost; the parent starts it with its number."""

import importlib.util
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch

from tests.benchmarks.gpu.case import SHAPES, Case, draw_lengths, list_cases

MARK = "@gpu "
ABSENT = "@absent "


def main() -> None:
    """Train case N; with ``tiny`` behind it a small one, which a CPU can as well."""
    case = list_cases()[int(sys.argv[1])]
    on_gpu = torch.cuda.is_available()
    if "tiny" in sys.argv:
        case = replace(case, shape="tiny", sequence_length=256, warm_steps=1, steps=2)
    elif not on_gpu:
        raise SystemExit("needs a CUDA device; tiny tries the benchmark itself on a CPU")
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29571"),
        "DS_ACCELERATOR": "cuda" if on_gpu else "cpu",
    }
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    print(MARK + json.dumps(TRAINERS[case.trainer](case, device)), flush=True)


class Clock:
    """Times the steps after the warm ones."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self._left, self._device = case.warm_steps, device
        self.tokens = self.steps = 0
        self._started = 0.0

    def after_step(self, tokens: int) -> None:
        """Count a step of so many tokens that are no padding."""
        if self._left:
            self._left -= 1
            if not self._left:
                self._wait()
                self._started = time.perf_counter()
            return
        self.tokens += tokens
        self.steps += 1

    def facts(self) -> dict[str, float]:
        """Say what it came to."""
        self._wait()
        seconds = time.perf_counter() - self._started
        peak = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0
        return {
            "tokens_per_second": self.tokens / seconds,
            "step_seconds": seconds / self.steps,
            "peak_gib": peak / 2**30,
        }

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def ours(case: Case, device: torch.device) -> dict[str, float]:
    """Train through the product's engine, on rows packed as its loader packs them."""
    from launcher.compose import compose_run
    from launcher.tree import ConfigTree
    from training.batch import plan_run
    from training.collectives import join
    from training.engine.deepspeed_engine import DeepSpeedEngine, Place
    from training.engine.seeds import make_deterministic
    from training.model.arithmetic import flops_per_token
    from training.ranks import Ranks

    values = {
        "precision": "bf16",
        "cluster.gpus_per_node": int(device.type == "cuda"),
        "cluster.processes_per_node": 1,
        "batch.sequence_length": case.sequence_length,
        "batch.micro_batch_size": case.micro_batch_size,
        "batch.global_batch_size": case.micro_batch_size,
        "schedule.warmup_steps": 0,
    }
    chosen = [each for each in case.overrides if "." not in each.split("=")[0]]
    single = [each for each in case.overrides if each not in chosen]
    words = ["experiment=tiny_smoke", *chosen, *(f"{key}={value}" for key, value in values.items()), *single]
    config = compose_run(words, ConfigTree.open(None)).config
    if config.deterministic:
        make_deterministic()
    join(Ranks(rank=0, local_rank=0, world_size=1), device=device, timeout_seconds=300)
    place = Place(ranks=Ranks(rank=0, local_rank=0, world_size=1), device=device, plan=plan_run(config))
    model = build(case, config, device)
    architecture = model.config.to_dict()
    engine = DeepSpeedEngine(model, config, place)
    clock = Clock(case, device)
    for step, batch in enumerate(make_batches(case, device)):
        engine.train_step([batch], learning_rate=1e-5, samples_seen=step, accept=lambda _: True)
        clock.after_step(batch.tokens)
    lengths = lengths_of(case)
    attended = sum(length**2 for length in lengths) / sum(lengths)
    flops = flops_per_token(architecture, attended, frozen_base=config.adapter.kind != "none")
    return clock.facts() | {"flops_per_token": flops or 0.0}


def build(case: Case, config: Any, device: torch.device) -> Any:
    """Make a model of random weights on the device, of 4 bits one tensor at a time."""
    from transformers import LlamaConfig

    from training.model.attention import choose_attention, register_attention
    from training.model.empty import build_empty
    from training.model.four_bit import is_four_bit, make_four_bit, quantise
    from training.model.load import prepare_forward, train_parts

    register_attention()
    torch.manual_seed(0)
    base = build_empty(LlamaConfig(**SHAPES[case.shape]), case.shape, torch.bfloat16)
    base.set_attn_implementation(choose_attention(config.model.attention, device, torch.bfloat16))
    if config.adapter.base_bits == 4:
        make_four_bit(base, torch.bfloat16)
    prepare_forward(base, config.strategy.activation_checkpointing)
    made: dict[int, torch.nn.Parameter] = {}
    for module in base.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if id(empty) not in made:
                values = torch.empty(empty.shape, dtype=torch.bfloat16, device=device)
                values = values.normal_(std=0.02) if empty.ndim > 1 else values.fill_(1)
                filled = quantise(values, empty, device) if is_four_bit(empty) else torch.nn.Parameter(values)
                made[id(empty)] = filled
            setattr(module, name, made[id(empty)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    return train_parts(base, config.adapter, dtype=torch.bfloat16, seed=0, grown=False)


def lengths_of(case: Case) -> list[int]:
    """Draw the documents of all steps."""
    tokens = case.micro_batch_size * case.sequence_length * (case.warm_steps + case.steps)
    return draw_lengths(case, tokens)


def make_batches(case: Case, device: torch.device) -> list[Any]:
    """Lay the documents into rows, best fit, every token a target."""
    import numpy as np

    from training.model.inputs import lay_documents

    dice = np.random.default_rng(1)
    room = case.micro_batch_size * case.sequence_length
    steps: list[list[int]] = [[] for _ in range(case.warm_steps + case.steps)]
    for length in sorted(lengths_of(case), reverse=True):
        fitting = [step for step in steps if sum(step) + length <= room]
        if fitting:
            max(fitting, key=sum).append(length)
    batches = []
    for step in steps:
        ids = [dice.integers(0, SHAPES[case.shape]["vocab_size"], length) for length in step]
        labels = [np.append(document[1:], -100) for document in ids]
        batches.append(lay_documents(ids, labels))
    return batches


def hf_trainer(case: Case, device: torch.device) -> dict[str, float]:
    """HF Trainer in bf16 with its defaults, every batch padded to its longest document."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer

    clock = Clock(case, device)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[case.shape]))
    trainer = _counting(Trainer, clock)(
        model=model, args=_arguments(case, device), train_dataset=_documents(case), data_collator=_pad
    )
    trainer.train()
    return clock.facts()


def trl(case: Case, device: torch.device) -> dict[str, float]:
    """TRL's SFTTrainer in bf16, packing as it does by default."""
    if importlib.util.find_spec("trl") is None:
        print(ABSENT + "trl is not installed here", flush=True)
        raise SystemExit(0)
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    clock = Clock(case, device)
    settings = _arguments(case, device).to_dict() | {"packing": True, "max_length": case.sequence_length}
    known = {key: value for key, value in settings.items() if key in SFTConfig.__dataclass_fields__}
    trainer = _counting(SFTTrainer, clock)(
        model=LlamaForCausalLM(LlamaConfig(**SHAPES[case.shape])),
        args=SFTConfig(**known),
        train_dataset=datasets.Dataset.from_list(_documents(case)),
    )
    trainer.train()
    return clock.facts()


def _arguments(case: Case, device: torch.device) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=case.micro_batch_size,
        max_steps=case.warm_steps + case.steps,
        bf16=True,
        use_cpu=device.type == "cpu",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=10**9,
        remove_unused_columns=False,
    )


def _documents(case: Case) -> list[dict[str, list[int]]]:
    import numpy as np

    dice = np.random.default_rng(1)
    lengths = draw_lengths(
        case, 4 * case.micro_batch_size * case.sequence_length * (case.warm_steps + case.steps)
    )
    vocabulary = SHAPES[case.shape]["vocab_size"]
    return [{"input_ids": dice.integers(0, vocabulary, length).tolist()} for length in lengths]


def _pad(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        ids[number, :size] = labels[number, :size] = torch.tensor(row["input_ids"])
        mask[number, :size] = 1
    return {"input_ids": ids, "labels": labels} | ({} if bool(mask.all()) else {"attention_mask": mask})


def _counting(trainer: Any, clock: Clock) -> Any:
    class Counting(trainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
            loss = super().training_step(model, inputs, *rest)
            clock.after_step(tokens)
            return loss

    return Counting


TRAINERS = {"ours": ours, "hf_trainer": hf_trainer, "trl": trl}

if __name__ == "__main__":
    main()
