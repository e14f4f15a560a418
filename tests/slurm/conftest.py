"""Clusters for tests: one that many share, and others to order."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.jobs import clear
from tests.slurm.lifetime import new_root, started
from tests.slurm.linux import FaultyClusterError, how_to_install, missing_packages
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
