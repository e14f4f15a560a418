"""Stores over real engines, and what an optimizer holds by DeepSpeed's own account."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.checkpoint.share import HostBuffer, Share
from training.config.schema import RunConfig
from training.layout import RunLayout
from training.progress import Progress

SAMPLES_PER_STEP = 12  # shared out evenly among 1, 2, 3 and 4 ranks


@dataclass
class Events:
    """Remembers what was reported."""

    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def event(self, kind: str, **facts: object) -> None:
        self.told.append((kind, facts))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    @property
    def notes(self) -> list[str]:
        return [str(facts["text"]) for kind, facts in self.told if kind == "note"]


class LateBuffer(HostBuffer):
    """Copies nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def copy(self, share: Share, ready: Any) -> Share:
        assert self.gate.wait(60)
        return super().copy(share, ready)


def at(step: int) -> Progress:
    return Progress(step=step, samples_seen=SAMPLES_PER_STEP * step)


def open_store(root: Path, engine: Any, config: RunConfig, place: Any, events: Events | None = None) -> Any:
    """Open the checkpoints of a run that is this engine's, as the worker does. Collective."""
    from training.checkpoint.commit import Lineage
    from training.checkpoint.retention import Retention
    from training.checkpoint.store import CheckpointStore
    from training.collectives import from_lead
    from training.fence import claim_incarnation

    layout = RunLayout(root)
    lineage = Lineage(
        layout=layout,
        ranks=place.ranks,
        zero_stage=config.strategy.zero_stage,
        incarnation=from_lead(claim_incarnation(layout.incarnations) if place.ranks.is_lead else 0),
        run="d0d0",
        optimizer=config.optimizer.kind,
        corpus="c0ffee",
        base="ba5e",
        keep=Retention(newest=2, every_steps=None),
        versions={},
        tensor_parallel_size=config.strategy.tensor_parallel_size,
    )
    return CheckpointStore(engine, lineage, events or Events())


def full_state(engine: Any) -> dict[str, dict[str, Tensor]]:
    """Gather master weights and moments whole, through DeepSpeed's public functions, not ours. Collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = engine._engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    masters = dict(_masters(optimizer))
    found = {}
    for name, parameter in engine.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
            whole = {"weight": safe_get_full_fp32_param(parameter)}
            is_stepped_whole = hasattr(inner, "orthogonalize") and "_proj" in name  # by Muon
            for key in ("momentum_buffer",) if is_stepped_whole else ("exp_avg", "exp_avg_sq"):
                whole[key] = safe_get_full_optimizer_state(parameter, key)
        else:
            master = masters.get(id(parameter), parameter)
            whole = {"weight": master.detach(), **inner.state[master]}
            whole.pop("step", None)
        found[name] = {key: value.detach().clone().float().flatten() for key, value in whole.items()}
    return found


def link_states(engine: Any) -> None:
    """Let DeepSpeed's public functions see optimizer state that was loaded: they link it at the next step."""
    link = getattr(engine._engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def steps_of(engine: Any) -> set[float]:
    """Name the step counts that the optimizer has."""
    optimizer = engine._engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    return {float(state["step"]) for state in states if "step" in state}


def _masters(optimizer: Any) -> list[tuple[int, Tensor]]:
    if not hasattr(optimizer, "fp32_groups"):
        return []
    return [
        (id(model), master)
        for models, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for model, master in zip(models, masters, strict=True)
    ]


def same_state(one: dict[str, dict[str, Tensor]], other: dict[str, dict[str, Tensor]]) -> list[str]:
    """Name what differs in as much as one bit."""
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [
        f"{name}.{key}"
        for name in one
        for key in one[name]
        if key not in other[name] or not torch.equal(one[name][key], other[name][key])
    ]


def write_weights(layout: RunLayout, model: nn.Module, step: int) -> None:
    """Write a checkpoint of a model that no engine has trained: its trained weights and nothing else."""
    from training.checkpoint.manifest import MANIFEST, Manifest
    from training.checkpoint.share import plan_share, write_durably, write_share
    from training.config.freeze import read_frozen, read_run_id
    from training.fragments.fragment import Fragment
    from training.fragments.index import INDEX, build_index, dump_index
    from training.model.folder import fingerprint_base

    folder = layout.checkpoint(step)
    folder.mkdir(parents=True)
    share = plan_share(
        Fragment(
            name=name,
            shape=tuple(parameter.shape),
            start=0,
            tensors={"weight": parameter.detach().flatten()},
            scalars={},
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    files = [write_share(folder / "rank_00000.bin", share)]
    index = build_index(["rank_00000.bin"], [share.pieces])
    files.append(write_durably(folder / INDEX, [memoryview(dump_index(index))]))
    manifest = Manifest(
        step=step,
        samples_seen=step * 2,
        world_size=1,
        zero_stage=0,
        incarnation=1,
        run=read_run_id(layout.config) if layout.config.exists() else "",
        optimizer="adamw",
        corpus="c0ffee",
        base=fingerprint_base(read_frozen(layout.config).model) if layout.config.exists() else "",
        memory={},
        score=None,
        files=files,
        versions={},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
