"""Clusters for tests: one that many share, and others to order."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.runs import link_prepared, succeed
from tests.slurm.cluster import Cluster
from tests.slurm.jobs import clear
from tests.slurm.lifetime import new_root, started
from tests.slurm.linux import FaultyClusterError, how_to_install, missing_packages
from tests.slurm.runs import Training, is_worker
from tests.slurm.settings import Settings

Order = Callable[..., Cluster]
"""Starts a cluster with these settings; it ends with the test."""


def _start(stack: ExitStack, **settings: Any) -> Cluster:
    missing = missing_packages(accounting=settings.get("accounting", False))
    if missing:
        pytest.skip(how_to_install(missing))
    try:
        return stack.enter_context(started(Settings(root=new_root(), **settings)))
    except FaultyClusterError as fault:
        pytest.fail(f"the test cluster does not start: {fault}", pytrace=False)


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield _start(stack, nodes=4, gpus=2, accounting=True)


@pytest.fixture
def cluster(_shared_cluster: Cluster) -> Iterator[Cluster]:
    """Four nodes with sacct, idle when the test begins. What a test kills it brings back."""
    clear(_shared_cluster)
    yield _shared_cluster
    clear(_shared_cluster)


@pytest.fixture
def order() -> Iterator[Order]:
    """Order clusters of another kind: ``order(nodes=3, tracking="cgroup")``."""
    with ExitStack() as stack:
        yield lambda **settings: _start(stack, **settings)


def _once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Make a folder once, whichever of the processes that run tests comes first."""
    base = factory.getbasetemp()
    folder = (base.parent if is_worker() else base) / f"slurm_{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the smallest experiment, as a user would."""
    return _once(
        tmp_path_factory, "prepared", lambda folder: succeed(folder, "prepare", "experiment=tiny_smoke")
    )


@pytest.fixture(scope="session")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on two nodes of a cluster where nothing happens; give the run directory."""

    def train(folder: Path) -> None:
        with ExitStack() as stack:
            training = Training(_start(stack, nodes=2), link_prepared(prepared, folder / "work"))
            training.submit()
            training.finish()

    return _once(tmp_path_factory, "whole", train) / "work/runs/tiny_smoke"


@pytest.fixture
def work(prepared: Path, tmp_path: Path) -> Path:
    """A working folder with the model and the corpus."""
    return link_prepared(prepared, tmp_path / "work")


@pytest.fixture
def training(cluster: Cluster, work: Path) -> Training:
    """A run for the shared cluster, not yet submitted."""
    return Training(cluster, work)
