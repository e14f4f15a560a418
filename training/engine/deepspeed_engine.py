"""One optimizer step on DeepSpeed, its loss and gradient independent of how the batch is cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import deepspeed
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from training.batch import BatchPlan
from training.collectives import sum_over_ranks
from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.engine.needs import check_needs
from training.engine.seeds import derive_seed
from training.engine.shards import Shards
from training.engine.step import SourceLoss, StepResult
from training.fragments.fragment import Fragment
from training.fragments.reader import FragmentReader
from training.model.inputs import Batch, count_targets_by_source
from training.model.packed import PackedLanguageModel
from training.model.shape import measure_shape
from training.optimizer import build_optimizer, set_learning_rate
from training.ranks import Ranks
from training.rules.strategies import effective_stage

# On CPUs DeepSpeed would compile a shared-memory all-reduce at first use, for a minute or two. gloo's own is
# as fast for gradients of this size; DeepSpeed asks this table whether the op can be had.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this process stands: its rank, its device, its share of the batch."""

    ranks: Ranks
    device: torch.device
    plan: BatchPlan


class DeepSpeedEngine:
    """Forward, backward and optimizer of one rank. Every method is collective."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, config: RunConfig, place: Place, *, sources: int = 1
    ) -> None:
        """Hand ``model``, which lies on ``place.device``, over to DeepSpeed.

        Args:
            model: From ``build_model``.
            config: Strategy, optimizer, batch, precision and seed decide.
            place: Where this process stands.
            sources: How many sources the corpus has; each one's loss is reported.
        """
        self._place = place
        self._seed = config.seed
        self._sources = sources
        self.model = model

        check_needs(config.strategy)
        packed = PackedLanguageModel(model, sources=sources)
        packed.train()
        self._engine, *_ = deepspeed.initialize(
            model=packed,
            optimizer=build_optimizer(model, config.optimizer),
            config=build_deepspeed_config(config, place.plan, measure_shape(model)),
            dist_init_required=False,
        )
        stage = effective_stage(config.strategy.zero_stage, config.precision)
        self._shards = Shards(model, self._engine.optimizer, place.ranks, stage)

    def train_step(
        self, micro_batches: Sequence[Batch], *, learning_rate: float, samples_seen: int
    ) -> StepResult:
        """Do one optimizer step on this rank's micro-batches of the global batch at ``samples_seen``.

        Each target of the global batch weighs the same, in whatever micro-batch and on whatever rank it
        is: nats are summed and divided by the global number of targets.
        """
        place, plan = self._place, self._place.plan
        targets, tokens = self._count(micro_batches)
        # DeepSpeed averages gradients over the ranks; the mean wanted here is over targets.
        scale = place.ranks.world_size / max(sum(targets), 1)
        set_learning_rate(self._engine.optimizer, learning_rate)
        nats = torch.zeros(self._sources, dtype=torch.float64, device=place.device)
        grad_norm = 0.0
        for index, batch in enumerate(micro_batches):
            # Dropout depends on the samples' position alone: it survives a resume without saved state.
            first = samples_seen + plan.first_sample(place.ranks.rank, index)
            torch.manual_seed(derive_seed(self._seed, "dropout", first))
            batch_nats, nats_by_source = self._engine(batch.to(place.device))
            self._engine.backward(batch_nats * scale, scale_wrt_gas=False)
            nats += nats_by_source
            if index == len(micro_batches) - 1:
                grad_norm = self._norm_of_unsharded_gradients()
            self._engine.step()
        sums = sum_over_ranks(nats.tolist(), place.device)
        return StepResult(
            loss=sum(sums) / max(sum(targets), 1),
            grad_norm=grad_norm or float(self._engine.get_global_grad_norm() or 0.0),
            samples=plan.global_batch_size,
            tokens=tokens,
            targets=sum(targets),
            by_source=tuple(map(SourceLoss, sums, targets)),
        )

    def _count(self, micro_batches: Sequence[Batch]) -> tuple[list[int], int]:
        """Count the global batch's targets by source, and its tokens."""
        by_batch = [count_targets_by_source(batch, self._sources) for batch in micro_batches]
        mine = [float(sum(counts)) for counts in zip(*by_batch, strict=True)]
        mine.append(float(sum(batch.tokens for batch in micro_batches)))
        *targets, tokens = map(int, sum_over_ranks(mine, self._place.device))
        return targets, tokens

    def fragments(self) -> Iterator[Fragment]:
        """Yield what this rank has to save, as views of the live tensors."""
        return self._shards.fragments()

    def load(self, reader: FragmentReader) -> None:
        """Take up the state of a checkpoint, however it was cut.

        Raises:
            CheckpointError: It is of another model, or its optimizer state cannot be cut anew.
        """
        self._shards.load(reader)

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self._engine.destroy()

    @property
    def _is_plain(self) -> bool:
        """Whether the optimizer is torch's own, holding no copy of the weights."""
        return isinstance(self._engine.optimizer, torch.optim.Optimizer)

    def _trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter

    def _norm_of_unsharded_gradients(self) -> float:
        """Measure what DeepSpeed clips without telling: only the plain fp32 optimizer of stage 0."""
        if not self._is_plain:
            return 0.0
        gradients = [p.grad for _, p in self._trained_parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
