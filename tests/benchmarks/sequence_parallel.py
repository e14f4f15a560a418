"""What a rank needs for one long row when teams share it: memory and arithmetic, on CPUs.

    python -m tests.benchmarks.sequence_parallel [--tokens 8192]

For teams of 1, 2 and 4 ranks: the most memory that a step adds on a rank, above what the process had before
it, and CPU seconds per step, summed over the ranks. The same row, model and documents each time.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.ranks.spawn import on_ranks
from tests.ranks.training_case import make_config
from training.model.attention import DOCUMENTS, register_attention
from training.model.inputs import Batch

VOCABULARY = 8192
DOCUMENTS_PER_ROW = 4
STEPS = 2


def train_row(size: int, tokens: int) -> tuple[int, float, float]:
    """Train some steps on one row; give the bytes that they add, CPU seconds per step, and the loss."""
    from tests.ranks.test_engine import open_place
    from training.engine.deepspeed_engine import DeepSpeedEngine

    config = make_config(
        **{
            "strategy.zero_stage": 2,
            "strategy.sequence_parallel_size": size,
            "cluster.processes_per_node": size,
            "batch.sequence_length": tokens,
            "batch.global_batch_size": 1,
            "batch.micro_batch_size": 1,
        }
    )
    place = open_place(config)
    engine = DeepSpeedEngine(build_model(), config, place)
    batch = make_row(tokens)
    before = _resident()
    used: list[float] = []
    for step in range(STEPS + 1):
        started = time.process_time()
        result = engine.train_step([batch], learning_rate=0.0, samples_seen=step, accept=lambda _: True)
        used.append(time.process_time() - started)
    engine.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak - before, sum(used[1:]) / STEPS, result.loss


def build_model() -> Any:
    """Build a Llama of 7 million parameters; attention is as large a part of it as of a long row's."""
    register_attention()
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            vocab_size=VOCABULARY,
            tie_word_embeddings=True,
            attn_implementation=DOCUMENTS,
        )
    )


def make_row(tokens: int) -> Batch:
    """Make one row of some documents, all of it targets."""
    ids = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(5))
    length = tokens // DOCUMENTS_PER_ROW
    return Batch(
        input_ids=ids,
        labels=ids,
        position_ids=(torch.arange(tokens) % length)[None],
        document_bounds=tuple(range(0, tokens + 1, length)),
        source_ids=(0,) * DOCUMENTS_PER_ROW,
        tokens=tokens,
        targets=tokens,
    )


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    tokens = parser.parse_args().tokens
    print(f"one row of {tokens:,} tokens, {DOCUMENTS_PER_ROW} documents; torch {torch.__version__}, ZeRO-2")
    print(f"{'team':>5}{'MB a rank adds':>16}{'of one':>8}{'CPU s/step, all':>17}{'of one':>8}{'loss':>12}")
    first: tuple[float, float] | None = None
    for size in (1, 2, 4):
        answers = on_ranks(size, train_row, size, tokens, fresh=True, timeout_seconds=600)
        added, seconds = max(answer[0] for answer in answers), sum(answer[1] for answer in answers)
        first = first or (added, seconds)
        print(
            f"{size:>5}{added / 1e6:>16.0f}{added / first[0]:>8.2f}{seconds:>17.2f}"
            f"{seconds / first[1]:>8.2f}{answers[0][2]:>12.6f}"
        )


if __name__ == "__main__":
    main()
