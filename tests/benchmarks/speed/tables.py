"""Which variants are compared with which, and the goals of the comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import rich.table

from tests.benchmarks.speed.case import Case
from tests.benchmarks.speed.measure import Contestant


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contestant, and what the one in row ``against`` of the same table is to reach beside it."""

    label: str
    case: Case
    against: int = 0
    goal: str = ""
    """In words, printed beside the figures."""


@dataclass(frozen=True)
class Table:
    """Contestants whose rounds alternate."""

    title: str
    lines: tuple[Row, ...]

    @property
    def rows(self) -> list[Case]:
        """What each line runs."""
        return [line.case for line in self.lines]

    def show(self, contestants: Sequence[Contestant]) -> rich.table.Table:
        """Lay out the figures: each line's own, and what the line it is compared with has of them."""
        shown = rich.table.Table(
            "", "tokens/CPU-s", "ms/step", "peak MiB", "", "rate", "ms", "peak", "goal", title=self.title
        )
        for number, (line, found) in enumerate(zip(self.lines, contestants, strict=True)):
            if not found.rounds:
                shown.add_row(line.label, "not measured", "", "", found.absent)
                continue
            figures = [f"{found.rate:,.0f}", f"{found.milliseconds:.1f}", f"{found.peak_mib:,.0f}"]
            other = contestants[line.against]
            ratios = ["", "", "", ""]
            if number != line.against and other.rounds:
                ratios = [
                    f"{self.lines[line.against].label} / it",
                    f"{other.rate / found.rate:.3f}",
                    f"{other.milliseconds / found.milliseconds:.3f}",
                    f"{other.peak_mib / found.peak_mib:.2f}",
                ]
            shown.add_row(line.label, *figures, *ratios, line.goal)
        return shown


NANO = {"shape": "nano16", "sequence_length": 16, "micro_batch_size": 1, "tokens_per_round": 16 * 40}
LARGE = {"shape": "tiny64k", "tokens_per_round": 6_000}
SLOW = {"precision": "bf16", "tokens_per_round": 6_000}

TABLES = {
    "blocks": Table(
        "7.1 M parameters, 4 x 512 tokens, all real, fp32",
        (
            Row(label="ours", case=Case(variant="loop")),
            Row(label="ours, bare loop", case=Case(variant="bare")),
            Row(label="HF Trainer", case=Case(variant="hf"), goal="rate >= 1.08"),
            Row(label="TRL SFTTrainer", case=Case(variant="trl"), goal="rate >= 1.7"),
            Row(label="torchtune", case=Case(variant="torchtune"), goal="rate >= 1.00"),
        ),
    ),
    "bf16": Table(
        "the same in bf16",
        (
            Row(label="ours", case=Case(variant="loop", **SLOW)),
            Row(label="ours, bare loop", case=Case(variant="bare", **SLOW)),
            Row(label="HF Trainer", case=Case(variant="hf", **SLOW), goal="rate >= 1.25"),
            Row(label="TRL SFTTrainer", case=Case(variant="trl", **SLOW)),
        ),
    ),
    "sft": Table(
        "documents of 155 tokens in the mean, fp32",
        (
            Row(label="ours", case=Case(variant="loop", corpus="sft")),
            Row(label="HF padded, 4", case=Case(variant="hf", corpus="sft"), goal="rate >= 1.6"),
            Row(
                label="HF padded, 13",
                case=Case(variant="hf", corpus="sft", micro_batch_size=13),
                goal="rate >= 1.6",
            ),
            Row(
                label="HF flattened, 13",
                case=Case(variant="hf_flattened", corpus="sft", micro_batch_size=13),
                goal="rate >= 1.6",
            ),
            Row(label="TRL packed", case=Case(variant="trl", corpus="sft"), goal="rate >= 2.2"),
            Row(label="torchtune packed", case=Case(variant="torchtune", corpus="sft"), goal="rate >= 1.15"),
        ),
    ),
    "vocabulary": Table(
        "vocabulary of 65,536, 4 x 512 tokens, fp32",
        (
            Row(label="ours", case=Case(variant="loop", **LARGE)),
            Row(label="ours, bare loop", case=Case(variant="bare", **LARGE)),
            Row(label="HF Trainer", case=Case(variant="hf", **LARGE), goal="rate >= 1.05, peak <= 0.5"),
        ),
    ),
    "engine": Table(
        "our loop beside a bare DeepSpeed loop with the same model and arithmetic, fp32",
        tuple(
            Row(
                label=f"{name}, ZeRO {stage}",
                case=Case(variant=variant, zero_stage=stage),
                against=against,
                goal=goal,
            )
            for stage, against in ((0, 0), (2, 2), (3, 4))
            for name, variant, goal in (("ours", "loop", ""), ("bare", "bare_deepspeed", "ms <= 1.03"))
        ),
    ),
    "zero3": Table(
        "16 tiny layers, 16 tokens, ZeRO-3, fp32: what the host needs for a step",
        (
            Row(label="ours", case=Case(variant="loop", zero_stage=3, **NANO)),
            Row(label="bare DeepSpeed loop", case=Case(variant="bare_deepspeed", zero_stage=3, **NANO)),
            Row(
                label="HF Trainer + ZeRO-3",
                case=Case(variant="hf_zero3", zero_stage=3, **NANO),
                goal="ms <= 0.58",
            ),
        ),
    ),
    "ranks": Table(
        "two processes beside one, 4 x 512 tokens on each, fp32",
        tuple(
            Row(
                label=f"ZeRO {stage}, {ranks}",
                case=Case(variant="loop", zero_stage=stage, world_size=ranks),
                against=against,
                goal=goal if ranks == 1 else "",
            )
            for stage, against, goal in ((2, 0, "rate >= 0.95"), (3, 2, "rate >= 0.90"))
            for ranks in (2, 1)
        ),
    ),
    "attention": Table(
        "attention by document beside a dense block mask over the packed rows, bare loops, fp32",
        (
            Row(label="by document", case=Case(variant="bare", corpus="sft")),
            Row(label="dense mask", case=Case(variant="bare_dense", corpus="sft"), goal="rate >= 1.6"),
        ),
    ),
    "activations": Table(
        "activation checkpointing, 8 x 512 tokens, fp32",
        tuple(
            Row(
                label=choice,
                case=Case(
                    variant="loop",
                    micro_batch_size=8,
                    overrides=(f"strategy.activation_checkpointing={choice}",),
                ),
            )
            for choice in ("none", "2", "full", "offload")
        ),
    ),
    "compile": Table(
        "strategy.compile, fp32",
        tuple(
            Row(
                label=f"{corpus}, {choice}",
                case=Case(variant="loop", corpus=corpus, overrides=(f"strategy.compile={choice}",)),
                against=against,
            )
            for corpus, against in (("blocks", 0), ("sft", 2))
            for choice in ("layers", "none")
        ),
    ),
}
