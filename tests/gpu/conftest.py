"""Everything in this folder needs one CUDA device; elsewhere it is skipped, and says so."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
REASON = "needs a CUDA device, and torch finds none on this machine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason=REASON))
