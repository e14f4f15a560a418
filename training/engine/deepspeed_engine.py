"""One optimizer step on DeepSpeed, its loss and gradient independent of how the batch is cut."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import deepspeed
import torch
from torch import Tensor, nn

from training.batch import BatchPlan
from training.collectives import sum_over_ranks
from training.config.schema import RunConfig
from training.deepspeed_config import build_deepspeed_config
from training.engine.compile_clock import CompileClock
from training.engine.disk_io import serve_swappers
from training.engine.gradients import drop_gradients, measure_gradient_norm, step_knowing
from training.engine.layers import prepare_layers
from training.engine.memory import MemoryAccount, MemoryMeter
from training.engine.seeds import seed_pass
from training.engine.shards import Shards
from training.engine.step import Accept, SourceLoss, StepResult, StepSeconds
from training.engine.stopwatch import Stopwatch
from training.engine.swapped import keep_gradients
from training.engine.tensor_parallel import TensorTeam
from training.fragments.fragment import Fragment
from training.fragments.reader import FragmentReader
from training.model.arithmetic import check_heads
from training.model.inputs import Batch, count_targets_by_source
from training.model.kind import AnyModel, base_of
from training.model.loss import Terms
from training.model.packed import PackedLanguageModel
from training.model.sequence_parallel import cut_stretch, found_teams
from training.model.shape import measure_shape
from training.optimizers.build import build_optimizer, set_learning_rate
from training.optimizers.muon import Muon
from training.ranks import Ranks
from training.rules.strategies import effective_stage

# On CPUs DeepSpeed would compile a shared-memory all-reduce at first use, for a minute or two. gloo's own is
# as fast for gradients of this size. DeepSpeed asks this table alone whether that op can be had; left to
# itself it would fill it at each start of each process, by trying compilers on all of its ops.
vars(deepspeed.ops)["__compatible_ops__"] = {"deepspeed_shm_comm": False}
serve_swappers()

_GATHERING_STAGE = 3
"""From it on other ranks take part in a forward pass."""


def _is_true(record: logging.LogRecord) -> bool:
    """Keep back what DeepSpeed says and is not so.

    A step that the loop drops goes its way of overflows; what is tested with ZeRO, docs/strategies.md says.
    """
    return not any(words in record.getMessage() for words in ("OVERFLOW!", "untested optimizer"))


deepspeed.utils.logger.addFilter(_is_true)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this process stands: its rank, its device, its share of the batch."""

    ranks: Ranks
    device: torch.device
    plan: BatchPlan


class DeepSpeedEngine:
    """Forward, backward and optimizer of one rank. Every method is collective."""

    def __init__(self, model: AnyModel, config: RunConfig, place: Place, *, sources: int = 1) -> None:
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
        swap_folder = config.strategy.nvme_path if config.strategy.swaps_to_disk else None
        self._meter = MemoryMeter(place.device, swap_folder)
        self._clock = CompileClock()
        self.model = model

        size = config.strategy.sequence_parallel_size
        check_heads(base_of(model).config.to_dict(), size)
        self._team = found_teams(place.ranks.rank, place.ranks.world_size, size)
        self._tensors = TensorTeam(model, place.ranks.rank, config.strategy.tensor_parallel_size)
        # One rank of a team tells what all of them have seen.
        self._counts = place.ranks.rank % place.plan.team_size == 0
        terms = Terms(label_smoothing=config.loss.label_smoothing, z_loss=config.loss.z_loss)
        packed = PackedLanguageModel(model, sources=sources, terms=terms)
        packed.train()
        stage = effective_stage(config.strategy.zero_stage, config.precision)
        gathers = stage == _GATHERING_STAGE and place.ranks.world_size > 1
        shares = gathers or self._team is not None or self._tensors.size > 1
        self._is_alone = place.device.type == "cuda" and not shares
        self._compiles = config.strategy.compile == "layers"
        prepare_layers(model, zero_stage=stage, compile_layers=self._compiles)
        said = self._tensors.ask(packed)
        optimizer = build_optimizer(model, config.optimizer)
        built = build_deepspeed_config(config, place.plan, measure_shape(model))
        self._engine, *_ = deepspeed.initialize(
            model=packed,
            optimizer=optimizer,
            config=self._tensors.complete(built, "hf_model."),
            dist_init_required=False,
        )
        self._tensors.check(self._engine, packed, said)
        if place.ranks.world_size == 1 and stage == 0:
            # There is nobody to reduce with; DeepSpeed would copy all gradients together and apart again.
            self._engine.enable_backward_allreduce = False
        keep_gradients(self._engine.optimizer)
        self._meter.watch(self._engine)
        self._shards = Shards(model, self._engine.optimizer, place.ranks, stage, self._tensors)
        if isinstance(optimizer, Muon):
            optimizer.orthogonalize = self._shards.find_matrices(place.device) or optimizer.orthogonalize

    def train_step(
        self, micro_batches: Sequence[Batch], *, learning_rate: float, samples_seen: int, accept: Accept
    ) -> StepResult:
        """Do one optimizer step on this rank's micro-batches of the global batch at ``samples_seen``.

        Ranks of one team bring the same ones, and each computes its stretch of their tokens.

        Each target of the global batch weighs the same, in whatever micro-batch and on whatever rank it
        is: nats are summed and divided by the global number of targets.

        ``accept`` is asked once all gradients are there; when it says no they are dropped, and weights and
        optimizer stay as they were.
        """
        place = self._place
        watch = Stopwatch(place.device, lambda: self._clock.seconds)
        targets, tokens = self._count(micro_batches)
        watch.lap("count")
        set_learning_rate(self._engine.optimizer, learning_rate)
        nats = self._accumulate(micro_batches, sum(targets), samples_seen, watch)
        norm = measure_gradient_norm(self._engine)
        # The lead's norm counts: without ZeRO each rank measures its own copy of the same gradient.
        *sums, told = sum_over_ranks([*nats, norm.value if place.ranks.is_lead else 0.0], place.device)
        self._meter.before_update(self._engine)
        result = StepResult(
            loss=sum(sums) / max(sum(targets), 1),
            grad_norm=told,
            samples=place.plan.global_batch_size,
            tokens=tokens,
            targets=sum(targets),
            by_source=tuple(map(SourceLoss, sums, targets)),
        )
        watch.lap("optimizer")
        accepted = accept(result)
        watch.lap(None)  # a save on its way may have kept it waiting
        if accepted:
            step_knowing(self._engine, norm)
            self._meter.after_update(self._engine)
        else:
            drop_gradients(self._engine)
        watch.lap("optimizer")
        seconds = StepSeconds(**watch.seconds())
        return replace(result, seconds=replace(seconds, alone=seconds.forward if self._is_alone else None))

    @property
    def memory(self) -> MemoryAccount | None:
        """What this rank's tensors hold; None before the first step."""
        return self._meter.account

    @torch.no_grad()
    def measure_nats(self, batch: Batch, *, by_document: bool = False) -> list[float]:
        """Sum the nats of each source's targets, or of each document's, without dropout.

        Training goes on unchanged. Collective under ZeRO-3; and in a team that shares matrices, whose ranks
        bring the same batch.
        """
        with self._measuring() as module:
            _, nats = module(batch.to(self._place.device), by_document=by_document)
        return [float(value) for value in nats.tolist()]

    @torch.no_grad()
    def logits(self, batch: Batch, *, alone: bool = False) -> Tensor:
        """Give the logits after every token, [N, V], without dropout; see ``PackedLanguageModel.logits``.

        Collective under ZeRO-3.
        """
        with self._measuring() as module:
            logits: Tensor = module(batch.to(self._place.device), ask="alone" if alone else "logits")
        return logits

    @contextmanager
    def _measuring(self) -> Iterator[nn.Module]:
        """Lend the module without dropout, and as it was afterwards.

        Measured batches are of all lengths, and compiled layers would be compiled anew for each.
        """
        module = self._engine.module
        module.eval()
        try:
            with torch.compiler.set_stance("force_eager") if self._compiles else nullcontext():
                yield module
        finally:
            module.train()

    def _accumulate(
        self, micro_batches: Sequence[Batch], targets: int, samples_seen: int, watch: Stopwatch
    ) -> list[float]:
        """Add up the gradients of this rank's share; give its nats by source."""
        place, plan, team = self._place, self._place.plan, self._team
        # DeepSpeed averages gradients over the ranks that hold the same part of the model; the mean wanted
        # here is over targets.
        scale = place.ranks.world_size / self._tensors.size / max(targets, 1)
        nats = torch.zeros(self._sources, dtype=torch.float64, device=place.device)
        for index, batch in enumerate(micro_batches):
            if index:
                self._engine.step()  # tells DeepSpeed that a pass is over; it updates nothing yet
            # Dropout depends on the samples' position alone: it survives a resume without saved state.
            first = samples_seen + plan.first_sample(place.ranks.rank, index)
            stretch = cut_stretch(batch, team)
            seed_pass(self._seed, first, team.index if team else 0)
            batch_nats, nats_by_source = self._engine(stretch.to(place.device), team=team)
            watch.lap("forward")
            self._engine.backward(batch_nats * scale, scale_wrt_gas=False)
            nats += nats_by_source
            watch.lap("backward")
        if self._tensors.index:
            nats.zero_()  # all ranks of a team that shares the matrices have the loss of all its tokens
        return [float(value) for value in nats.tolist()]

    def _count(self, micro_batches: Sequence[Batch]) -> tuple[list[int], int]:
        """Count the global batch's targets by source, and its tokens."""
        by_batch = [count_targets_by_source(batch, self._sources) for batch in micro_batches]
        mine = [float(sum(counts)) for counts in zip(*by_batch, strict=True)]
        mine.append(float(sum(batch.tokens for batch in micro_batches)))
        if not self._counts:
            mine = [0.0] * len(mine)
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
        self._clock.close()
        self._engine.destroy()
        self._tensors.leave()
