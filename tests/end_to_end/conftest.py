"""What all commands need once: the tiny model and its corpus."""

from pathlib import Path

import pytest

from tests.end_to_end.runs import succeed


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare the smallest experiment, as a user would."""
    folder = tmp_path_factory.mktemp("prepared")
    succeed(folder, "prepare", "experiment=tiny_smoke")
    return folder
