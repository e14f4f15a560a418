"""Words of the verbs that look at runs: names, with whatever a sweep has put into them, and settings."""

from pathlib import Path

import pytest

from launcher.seeing.runs import split_words
from training.errors import ConfigError

SWEPT = "tiny,learning_rate=0.001"
OWN = "x=d"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (SWEPT, OWN):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    return tmp_path / "runs"


def test_a_name_with_an_equals_sign_is_a_run(runs: Path) -> None:
    assert split_words([SWEPT, OWN]) == ([SWEPT, OWN], {})
    assert split_words([f"runs/{SWEPT}"]) == ([f"runs/{SWEPT}"], {})
    assert split_words([OWN, f"run_root={runs}"]) == ([OWN], {"run_root": str(runs)})


def test_a_word_that_is_neither_a_run_nor_a_setting_is_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match="stpe is no setting of this"):
        split_words(["stpe=3"], known=("run_root", "step"))
