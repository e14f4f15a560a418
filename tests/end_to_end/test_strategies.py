"""Law 1 through the whole house: the same experiment, cut in other ways, has the plain loop's loss curve."""

from functools import partial
from pathlib import Path

import pytest
import torch

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.end_to_end.runs import journal, link_prepared, succeed
from tests.reference_loop import Document, train_plainly
from training.batch import plan_batch
from training.config.schema import RunConfig
from training.data.reading.loader import build_stream
from training.data.reading.reader import open_corpus
from training.model.inputs import IGNORE_INDEX, Batch
from training.model.load import build_model
from training.schedule import learning_rate_at

STEPS = 20
COMMON = ["experiment=tiny_smoke", f"loop.max_steps={STEPS}", "loop.checkpoint_every_steps=100"]
CASES = {
    "full": (
        "none",
        [("zero0", 2), ("zero1", 2), ("zero2", 1), ("zero2", 2), ("zero3", 2), ("zero3_nvme", 2)],
    ),
    "qlora": ("qlora", [("zero2", 2), ("zero3", 2)]),
}


def read_documents(batch: Batch) -> list[Document]:
    """Take a batch apart into its documents, padding left out."""
    ids, labels = batch.input_ids[0].tolist(), batch.labels[0].tolist()
    documents = []
    for start, stop in zip(batch.document_bounds, batch.document_bounds[1:], strict=False):
        wanted = [label != IGNORE_INDEX for label in labels[start:stop]]
        if any(wanted):
            documents.append(Document(ids=ids[start:stop], is_target=[False, *wanted[:-1]]))
    return documents


def plain_losses(config: RunConfig) -> list[float]:
    """Train the run's model on the run's rows, in the plain loop."""
    stream = build_stream(
        open_corpus(config.data.path, "train", config.loader),
        plan_batch(config.batch, 1),
        config,
        rank=0,
        samples_seen=0,
    )
    with stream:
        steps = [[doc for batch in next(stream) for doc in read_documents(batch)] for _ in range(STEPS)]
    model = build_model(
        config.model,
        config.adapter,
        precision=config.precision,
        device=torch.device("cpu"),
        seed=config.seed,
        activation_checkpointing="none",
    )
    return train_plainly(
        model,
        steps,
        learning_rate_at=partial(
            learning_rate_at, optimizer=config.optimizer, schedule=config.schedule, max_steps=STEPS
        ),
        weight_decay=config.optimizer.weight_decay,
        max_grad_norm=config.optimizer.max_grad_norm,
    )


@pytest.mark.parametrize(("adapter", "cuts"), CASES.values(), ids=CASES.keys())
def test_an_experiment_has_the_same_loss_curve_however_it_is_cut(
    adapter: str,
    cuts: list[tuple[str, int]],
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, disk = link_prepared(prepared, tmp_path / "work"), tmp_path / "disk"
    disk.mkdir()
    monkeypatch.chdir(folder)
    expected = plain_losses(compose_run([*COMMON, f"adapter={adapter}"], ConfigTree.open(None)).config)

    for strategy, processes in cuts:
        name = f"{adapter}_{strategy}_{processes}"
        cut = [f"strategy={strategy}", f"cluster.processes_per_node={processes}", f"name={name}"]
        succeed(folder, "train", *COMMON, f"adapter={adapter}", *cut, f"strategy.nvme_path={disk}")
        assert list(disk.iterdir()) == [], "what was swapped out goes with the run"
        lines = journal(folder / "runs" / name)
        assert [lines[step]["loss"] for step in range(1, STEPS + 1)] == pytest.approx(expected, rel=1e-4), (
            name
        )
