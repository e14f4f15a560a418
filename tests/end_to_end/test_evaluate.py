"""`metier evaluate` as a user types it: a report that opens anywhere, and one line for what is missing."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.runs import link_prepared, metier, succeed

EXPERIMENT = ["experiment=tiny_smoke", "cluster.processes_per_node=1"]
QUESTIONS = [
    "data=files_chat",
    "data.sources.files.documents=prompt_completion",
    "data.sources.files.paths=[pairs.jsonl]",
    "adapter=lora",
    "evaluation.answer_documents=6",
    "evaluation.answer_tasks=[prompt_completion]",
    "evaluation.max_new_tokens=4",
    "loop.max_steps=12",
    "name=pairs",
]


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the smallest run, once."""
    folder = link_prepared(prepared, tmp_path_factory.mktemp("evaluate"))
    succeed(folder, "train", *EXPERIMENT)
    return folder


def test_a_full_fine_tune_is_measured_against_the_model_before_it(trained: Path) -> None:
    said = succeed(trained, "evaluate", *EXPERIMENT)
    report = trained / "runs" / "tiny_smoke" / "report"
    assert f"{Path('runs') / 'tiny_smoke' / 'report' / 'report.html'}" in said
    told = json.loads((report / "report.json").read_text())
    domain = told["scores"]["domain"]
    # 260 tokens, random weights: before training every token is about as likely as any other.
    assert domain["before"]["value"] == pytest.approx(5.7, abs=0.3)
    assert domain["after"]["high"] < domain["before"]["low"]
    assert len(told["training"]["curve"]) == told["checkpoint_step"] == 8
    assert {"report.html", "report.json", "report.png"} == {path.name for path in report.iterdir()}


def test_the_same_evaluation_twice_gives_the_same_numbers(trained: Path) -> None:
    file = trained / "runs" / "tiny_smoke" / "report" / "report.json"
    found = []
    for _ in range(2):
        succeed(trained, "evaluate", *EXPERIMENT)
        found.append(json.loads(file.read_text())["scores"])
    assert found[0] == found[1]


def test_an_adapter_is_switched_off_for_before_and_questions_are_answered(
    prepared: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").symlink_to(prepared / "models")
    pairs = [{"prompt": f"say {index}: ", "completion": "ab"} for index in range(200)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    words = [*EXPERIMENT, *QUESTIONS]
    for verb in ("prepare", "train", "evaluate"):
        succeed(tmp_path, verb, *words)
    told = json.loads((tmp_path / "runs" / "pairs" / "report" / "report.json").read_text())
    scores = told["scores"]
    assert scores["domain"]["after"]["high"] < scores["domain"]["before"]["low"]
    assert scores["exact"]["documents"] == 6
    assert [sample["expected"] for sample in scores["samples"]] == ["ab"] * 6
    assert all(sample["prompt"].startswith("say ") for sample in scores["samples"])


def test_a_run_without_a_checkpoint_is_one_line(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny_smoke"
    run.mkdir(parents=True)
    shutil.copy(trained / "runs" / "tiny_smoke" / "run.json", run)
    link_prepared(trained, tmp_path)
    check_refused(tmp_path, "has no checkpoint yet; run `metier train` first")


def test_a_missing_corpus_is_one_line(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    (tmp_path / "models").symlink_to(trained / "models")
    check_refused(tmp_path, "no prepared corpus; run `metier prepare`")


def test_a_report_that_cannot_be_written_is_one_line_and_leaves_no_half(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    link_prepared(trained, tmp_path)
    run = tmp_path / "runs" / "tiny_smoke"
    shutil.rmtree(run / "report", ignore_errors=True)
    (run / ".report.partial").write_text("in the way")
    check_refused(tmp_path, "the report cannot be written (File exists); free some space")
    assert not (run / "report").exists()


def check_refused(folder: Path, words: str) -> None:
    done = metier(folder, "evaluate", *EXPERIMENT)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
