"""outcome.json: the first cause is the one that counts."""

import json
from pathlib import Path

from training.outcome import Outcome, write_outcome


def failed(rank: int) -> Outcome:
    return Outcome(state="FAILED", step=None, error_class="DataError", message=f"of {rank}", rank=rank)


def test_the_first_rank_to_tell_is_heard_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"

    told = [write_outcome(path, failed(rank)) for rank in (1, 0, 2)]

    assert told == [True, False, False]
    assert json.loads(path.read_text())["message"] == "of 1"
    assert [entry.name for entry in tmp_path.iterdir()] == ["outcome.json"]


def test_a_folder_that_is_gone_is_no_second_failure(tmp_path: Path) -> None:
    assert not write_outcome(tmp_path / "gone" / "outcome.json", failed(0))
