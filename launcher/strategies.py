"""Writes docs/strategies.md from the rules: ``python -m launcher.strategies FILE [--check]``."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.generated import write_or_check
from training.rules.strategies import Combination, Method, judge

METHODS: dict[Method, str] = {
    "none": "`adapter=none`",
    "lora": "`adapter=lora`",
    "dora": "`adapter=dora`",
    "qlora": "`adapter=qlora`",
    "qdora": "`adapter=dora adapter.base_bits=4`",
}
OPTIMIZERS = ("adamw", "adamw_cpu", "adamw_8bit", "adamw_paged", "lion", "muon", "adafactor")
PRECISIONS = ("fp32", "bf16")

_PLAIN: dict[str, Any] = {
    "offload_optimizer": "none",
    "offload_parameters": "none",
    "secondary_ranks": 1,
    "quantized_weights": False,
    "quantized_gradients": False,
    "sequence_parallel_size": 1,
    "tensor_parallel_size": 1,
}
_BOTH_ON = {"offload_optimizer": "cpu", "offload_parameters": "cpu"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2},
    "3": {"zero_stage": 3},
    "0, optimizer on CPU": {"zero_stage": 0, "offload_optimizer": "cpu"},
    "1, optimizer on CPU": {"zero_stage": 1, "offload_optimizer": "cpu"},
    "2, optimizer on CPU": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "2, parameters on CPU": {"zero_stage": 2, **_BOTH_ON},
    "3, optimizer on CPU": {"zero_stage": 3, "offload_optimizer": "cpu"},
    "3, both on CPU": {"zero_stage": 3, **_BOTH_ON},
    "2, optimizer on NVMe": {"zero_stage": 2, "offload_optimizer": "nvme"},
    "3, optimizer on NVMe": {"zero_stage": 3, "offload_optimizer": "nvme"},
    "3, parameters on CPU, optimizer on NVMe": {
        "zero_stage": 3,
        "offload_optimizer": "nvme",
        "offload_parameters": "cpu",
    },
    "3, both on NVMe": {"zero_stage": 3, "offload_optimizer": "nvme", "offload_parameters": "nvme"},
    "2, Ulysses": {"zero_stage": 2, "sequence_parallel_size": 2},
    "3, Ulysses": {"zero_stage": 3, "sequence_parallel_size": 2},
    "1, AutoTP": {"zero_stage": 1, "tensor_parallel_size": 2},
    "2, AutoTP": {"zero_stage": 2, "tensor_parallel_size": 2},
    "2, AutoTP, optimizer on CPU": {
        "zero_stage": 2,
        "tensor_parallel_size": 2,
        "offload_optimizer": "cpu",
    },
    "3, AutoTP": {"zero_stage": 3, "tensor_parallel_size": 2},
    "3, hpZ": {"zero_stage": 3, "secondary_ranks": 2},
    "3, quantized weights": {"zero_stage": 3, "quantized_weights": True},
    "3, quantized gradients": {"zero_stage": 3, "quantized_gradients": True},
    "3, ZeRO++": {
        "zero_stage": 3,
        "secondary_ranks": 2,
        "quantized_weights": True,
        "quantized_gradients": True,
    },
}


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Combinations that a test runs. The test takes them from here, so that the page cannot promise more."""

    methods: tuple[Method, ...]
    strategies: tuple[str, ...]
    optimizers: tuple[str, ...]
    precisions: tuple[str, ...]

    def __contains__(self, cell: tuple[str, str, str, str]) -> bool:
        """Whether (method, strategy, optimizer, precision) is among them."""
        parts = (self.methods, self.strategies, self.optimizers, self.precisions)
        return all(each in known for each, known in zip(cell, parts, strict=True))


MATRIX = Tested(
    methods=("none", "lora", "qlora"),
    strategies=("0", "1", "2", "3", "2, optimizer on CPU", "3, both on CPU"),
    optimizers=("adamw",),
    precisions=PRECISIONS,
)
AUTOTP = Tested(
    methods=("none",),
    strategies=("1, AutoTP", "2, AutoTP", "2, AutoTP, optimizer on CPU"),
    optimizers=("adamw",),
    precisions=PRECISIONS,
)
FURTHER = (
    Tested(
        methods=("dora",),
        strategies=("0", "2", "3"),
        optimizers=("adamw",),
        precisions=("fp32",),
    ),
    Tested(methods=("qdora",), strategies=("0", "2"), optimizers=("adamw",), precisions=("fp32",)),
    Tested(
        methods=("none", "qlora"),
        strategies=("0", "2", "3", "3, both on CPU"),
        optimizers=("lion",),
        precisions=("fp32",),
    ),
    Tested(
        methods=("none", "lora", "qlora"),
        strategies=("0", "1", "2", "3", "2, optimizer on CPU", "3, both on CPU", "2, Ulysses"),
        optimizers=("muon",),
        precisions=("fp32",),
    ),
    Tested(methods=("none",), strategies=("0", "2", "3"), optimizers=("muon",), precisions=("bf16",)),
    Tested(
        methods=("none", "lora"), strategies=("3, both on NVMe",), optimizers=("muon",), precisions=("fp32",)
    ),
    Tested(methods=("none", "lora"), strategies=("0",), optimizers=("adafactor",), precisions=("fp32",)),
    Tested(
        methods=("none", "lora", "qlora"),
        strategies=("1, optimizer on CPU", "3, optimizer on CPU", "3, hpZ"),
        optimizers=("adamw",),
        precisions=("fp32",),
    ),
    Tested(
        methods=("none", "lora", "qlora"),
        strategies=("3, optimizer on NVMe", "3, parameters on CPU, optimizer on NVMe", "3, both on NVMe"),
        optimizers=("adamw",),
        precisions=PRECISIONS,
    ),
    Tested(
        methods=("none", "lora", "qlora"),
        strategies=("2, Ulysses", "3, Ulysses"),
        optimizers=("adamw",),
        precisions=PRECISIONS,
    ),
    AUTOTP,
)

_HEAD = """\
# Strategies

<!-- Written by `python -m launcher.strategies docs/strategies.md` from training/rules/strategies.py. -->

Which method goes with which ZeRO stage, offload, optimizer and precision. Every cell is decided by the rules
that `metier train` asks before anything starts, and that every rank asks again.

| a cell says | which means |
|---|---|
| **tested** | `tests/ranks/test_matrix.py` runs it, on CPUs, and compares it with a plain loop |
| works | the rules let it through; no test runs it |
| GPU | it needs a GPU; no test runs it |
| no (N) | refused in one line, the N-th below |

Where fp32 and bf16 differ, a cell says both, in this order. With bf16, stage 0 is carried out as stage 1:
DeepSpeed's stage 0 would sum gradients in bf16, and the loss would depend on how a batch is cut.

"Tested" means the losses and gradient norms of five steps. In fp32 they are equal to 1e-5 of their size: with
adamw and `adapter=none`, `lora` or `qlora` in six strategies for one and two processes, one and four passes a
step, packed and unpacked rows, and AutoTP in all of these on two processes; for all else, as for bf16, where
they are equal but for its rounding, on two processes with four passes, and on one too where parameters lie on
the disk. No cell was run on a GPU.
"""

_ABSENT = """\
## Rows too long for one device

`strategy.sequence_parallel_size=8` lets 8 neighbouring ranks, a team, share the tokens of every pass
(Ulysses, arXiv:2309.14509): activations per rank are an eighth, attention works on an eighth of the heads.
Packed documents stay apart, the losses are those of one rank. The size divides the attention heads, and is
a divisor or a multiple of the key-value heads. Best a team is one node: every layer exchanges its activations
four times forward and four times backward.
`experiment=llama3_8b_long_ulysses` has rows of 131,072 tokens.

## On the node's disk

`strategy=zero3_nvme strategy.nvme_path=/scratch` keeps the fp32 weights and moments, and with
`strategy.offload_parameters=nvme` the parameters, in files on the node's own disk (arXiv:2104.07857). In the
host's memory stay: gradients in fp32, 4 bytes for each trained element of the rank; four buffers of at most
100 million elements (1.6 GB), or of the largest parameter's part where that is more; and with parameters on
the disk a buffer for every parameter of a layer, each as long as the largest parameter's part. Parameters are
read when a layer needs them, not ahead. Tensors under 1 MiB stay in memory too: of a tiny model nothing is
swapped.

Every process makes a folder of its own there and removes it at its end; what a killed one leaves, the next
start on that node removes. Checkpoints lie in the run directory as ever, and fit any other strategy. Nothing
is compiled and no library is needed: our own threads read and write the files, past the page cache where the
file system can, and a disk that is full or refuses ends the run in one line. How fast that is on a real NVMe
beside a GPU has not been measured.

## Layers too large for one device

`strategy.tensor_parallel_size=8` lets 8 neighbouring ranks, a team, share the matrices of every layer and
every pass (DeepSpeed's AutoTP; Megatron's cut, arXiv:1909.08053): each has some heads and some inner
features, with their gradients, optimizer state and activations. ZeRO 1 and 2 share these out once more,
over the ranks of other teams that have the same part. The size divides the heads, the key-value heads and
the intermediate size. Which matrices are cut is the model's own plan in transformers; a model without one,
or with a plan that gathers again what it has cut, is refused. Embeddings, norms and the output layer stay
whole on every rank, and each rank of a team computes the loss of all its tokens.

It is for full fine-tuning. Each rank builds the whole model before DeepSpeed cuts it; a model too large for
that, an adapter or a 4-bit base wants `strategy=zero3`. Best a team is one node: every layer sums its
activations over the team twice forward and up to five times backward. The model answers a few tokens before
the cut and after it: where DeepSpeed cuts wrongly the run is refused at its start.

## Not there

- **MiCS**: DeepSpeed has removed it (0.19.8 refuses its keys). Use `strategy.secondary_ranks` (hpZ), which
  also gathers inside a node.
- **AutoTP at ZeRO-3, with adapters, with Ulysses or with `strategy.compile=layers`**: refused. At ZeRO-3
  every rank would gather the whole model again before it is cut.
"""


@dataclass
class Footnotes:
    """Numbers the reasons of refusals in the order in which they come."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, reason: str) -> int:
        """Give a reason its number."""
        return self.numbers.setdefault(reason, len(self.numbers) + 1)

    def lines(self) -> Iterator[str]:
        """List the reasons."""
        for reason, number in self.numbers.items():
            yield f"{number}. {reason}"


def write_page() -> str:
    """Give the whole page."""
    notes = Footnotes()
    parts = [_HEAD]
    for optimizer in OPTIMIZERS:
        lines = [f"## optimizer={optimizer}", "", f"| ZeRO | {' | '.join(METHODS.values())} |"]
        lines.append("|---" * (1 + len(METHODS)) + "|")
        for strategy in STRATEGIES:
            cells = [_cell(method, strategy, optimizer, notes) for method in METHODS]
            lines.append(f"| {strategy} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    parts += [_ABSENT, "## Why not\n\n" + "\n".join(notes.lines()) + "\n"]
    return "\n".join(parts)


def make_combination(method: Method, strategy: str, optimizer: str, precision: str) -> Combination:
    """Name a combination by its row, column and table."""
    settings = _PLAIN | STRATEGIES[strategy]
    return Combination(method=method, optimizer=optimizer, precision=precision, **settings)


def is_tested(method: str, strategy: str, optimizer: str, precision: str) -> bool:
    """Say whether a test runs it."""
    return any((method, strategy, optimizer, precision) in tested for tested in (MATRIX, *FURTHER))


def _cell(method: Method, strategy: str, optimizer: str, notes: Footnotes) -> str:
    words = [_word(method, strategy, optimizer, precision, notes) for precision in PRECISIONS]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def _word(method: Method, strategy: str, optimizer: str, precision: str, notes: Footnotes) -> str:
    verdict = judge(make_combination(method, strategy, optimizer, precision))
    match verdict.kind:
        case "refused":
            return f"no ({notes.number(verdict.reason)})"
        case "needs a GPU":
            return "GPU"
        case "works":
            return "**tested**" if is_tested(method, strategy, optimizer, precision) else "works"


if __name__ == "__main__":
    sys.exit(write_or_check("launcher.strategies", write_page))
