"""The report: numbers that agree, a page that needs nothing else, a folder that is whole or absent."""

import json
import re
import resource
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training.config.schema import EvaluationConfig
from training.config.sources import PythonTopicsSource
from training.errors import StorageError
from training.evaluation.answers import Question
from training.evaluation.bootstrap import Estimate
from training.evaluation.draw import running_mean
from training.evaluation.material import EvaluationDocument, Material
from training.evaluation.measure import Measurement
from training.evaluation.page import build_page
from training.evaluation.publish import publish_files, publish_report
from training.evaluation.report import CorpusFacts, Report, SourceFacts, sum_up_training
from training.evaluation.scores import compare
from training.evaluation.table import print_report
from training.evaluation.words import tell_domain, tell_general, tell_headline
from training.metrics.accounts import find_accounts
from training.metrics.goodput import Goodput

HOSTILE = "<script>alert('x')</script> & \"quotes\""
CONFIG = EvaluationConfig(
    held_out_documents=40,
    answer_documents=12,
    answer_tasks=["naming"],
    max_new_tokens=8,
    general=PythonTopicsSource(kind="python_topics", max_documents=None),
    general_documents=10,
    general_tokens_per_document=9,
    tokens_per_batch=64,
    bootstrap_samples=200,
    confidence=0.95,
)


def make_documents(count: int, task: str) -> list[EvaluationDocument]:
    return [
        EvaluationDocument(
            id=f"{task}/{index}",
            family=str(index // 2),
            task=task,
            input_ids=np.arange(9, dtype=np.int32),
            is_target=np.arange(9) > 2,  # six targets
        )
        for index in range(count)
    ]


def make_report(*, with_answers: bool = True) -> Report:
    generator = np.random.default_rng(0)
    held_out = make_documents(20, "naming") + make_documents(20, "asking")
    general = make_documents(10, "general")
    questions = [
        Question(
            id=str(index),
            family=str(index),
            task="naming",
            prompt_ids=np.arange(3, dtype=np.int32),
            prompt=f"{HOSTILE} {index}",
            expected="right",
        )
        for index in range(12 if with_answers else 0)
    ]
    before = Measurement(
        held_out_nats=30 + generator.normal(0, 2, 40),
        general_nats=18 + generator.normal(0, 1, 10),
        answers=["wrong"] * len(questions),
    )
    after = Measurement(
        held_out_nats=before.held_out_nats / 2,
        general_nats=before.general_nats * 1.05,
        answers=["Right "] * (len(questions) // 2) + [HOSTILE] * (len(questions) - len(questions) // 2),
    )
    material = Material(held_out=held_out, questions=[], general=general, held_out_total=400, cut=0)
    scores = compare(material, questions, before, after, CONFIG, seed=0)
    lines = [
        {"step": step, "loss": 5 / step, "learning_rate": 1e-3, "samples_seen": 2 * step, "tokens": 100,
         "step_seconds": 1.0, "checkpoint_stall_seconds": 1.0}
        for step in range(1, 13)
    ]  # fmt: skip
    return Report(
        name="a_run",
        made="2026-01-01T00:00:00Z",
        checkpoint_step=10,
        headline="headline",
        gained="gained",
        lost=tell_general(scores, 0.95),
        confidence=0.95,
        bootstrap_samples=200,
        scores=scores,
        training=sum_up_training(lines, 20, 10),
        accounts=find_accounts(lines, lines, [], Goodput(useful_seconds=12.0, wall_seconds=40.0)),
        corpus=CorpusFacts(
            fingerprint="f" * 64,
            sources=[SourceFacts(name="source", licence=HOSTILE, provenance="version 1", documents=400)],
            train_documents=4000,
            train_tokens=90000,
            held_out_documents=400,
        ),
        cut_documents=0,
        settings=[("Model", "tiny")],
        versions={"python": "3"},
        seconds=3.0,
    )


def test_scores_say_what_the_measurements_say() -> None:
    scores = make_report().scores
    assert scores.domain.relative_change is not None
    assert scores.domain.relative_change.value == pytest.approx(-0.5)
    assert scores.domain.targets == 40 * 6
    assert scores.domain.before.value == pytest.approx(30 / 6, rel=0.05)
    assert scores.domain.verdict == "better"
    assert scores.domain.intervals_apart
    assert scores.general.verdict == "worse"
    assert scores.exact is not None
    assert (scores.exact.before.value, scores.exact.after.value) == (0, 0.5)
    assert {task.key: task.documents for task in scores.tasks} == {"naming": 20, "asking": 20}
    assert scores.domain_perplexity.after.value == pytest.approx(np.exp(scores.domain.after.value))


def test_a_handful_of_families_gives_no_verdict() -> None:
    domain = make_report().scores.domain
    assert replace(domain, families=4).verdict == "unclear"
    assert replace(domain, families=5).verdict == "better"


def estimate(low: float, high: float) -> Estimate:
    return Estimate(value=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "families", "moved", "why"),
    [
        (-0.5, -0.1, 40, "fell", None),
        (0.1, 0.5, 40, "rose", None),
        (-0.5, 0.1, 40, "went", "the interval holds zero, so this cannot be told from chance"),
        (-0.5, -0.1, 4, "went", "only 4 groups of related documents, too few for this interval to count"),
        (-0.5, 0.1, 1, "went", "only one group of related documents, too few for this interval to count"),
    ],
)
def test_the_sentences_follow_from_the_interval_that_stands_beside_them(
    low: float, high: float, families: int, moved: str, why: str | None
) -> None:
    scores = make_report(with_answers=False).scores
    change = estimate(low, high)
    row = replace(scores.domain, change=change, relative_change=change, families=families)
    scores = replace(scores, domain=row, general=replace(row, key="general_loss"))

    for text in (tell_domain(scores, 0.95), tell_general(scores, 0.95)):
        assert f"the loss {moved} from" in text
        assert ("chance" in text) == (low < 0 < high and families > 4), text
        assert why is None or why in text, text
        assert why is not None or "too few" not in text, text
    headline = tell_headline(scores)
    assert ("chance" in headline) == (low < 0 < high and families > 4)
    assert headline.startswith("Too few") == (families < 5)


def test_only_steps_up_to_the_checkpoint_are_told() -> None:
    training = make_report().training
    assert [point.step for point in training.curve] == list(range(1, 11))
    assert (training.tokens, training.seconds, training.tokens_per_second) == (1000, 20.0, 50.0)


def test_the_page_says_where_the_time_went() -> None:
    page = build_page(make_report())
    assert "Goodput 30.0%: so much of the 40s" in page
    assert re.search(r"Rest of the steps</td><td[^>]*>12\.0</td><td[^>]*>30\.0%", page)


@pytest.mark.parametrize("with_answers", [True, False])
def test_the_page_fetches_nothing_and_escapes_what_it_shows(with_answers: bool) -> None:
    page = build_page(make_report(with_answers=with_answers))
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'\s>]+)""", page)
    assert addresses
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"https?://|url\(|@import|<script", page)
    assert ("Answers to held-out questions" in page) is with_answers
    assert "&lt;script&gt;" in page


def test_the_folder_holds_three_files_and_the_json_every_number(tmp_path: Path) -> None:
    report = make_report()
    publish_report(report, tmp_path / "report")
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["report.html", "report.json", "report.png"]
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert told["scores"]["domain"]["after"]["value"] == report.scores.domain.after.value
    assert told["scores"]["samples"][0]["expected"] == "right"
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_new_folder_takes_the_former_ones_place_and_leaves_nothing_else(tmp_path: Path) -> None:
    publish_files({"a": b"old", "b": b"old"}, tmp_path / "report")
    publish_files({"a": b"new"}, tmp_path / "report")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "report",
        "report/a",
    ]
    assert (tmp_path / "report" / "a").read_bytes() == b"new"


def test_a_disk_that_refuses_leaves_the_former_report_and_one_line(tmp_path: Path) -> None:
    publish_files({"a": b"old"}, tmp_path / "report")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
        with pytest.raises(StorageError, match=r"report: the report cannot be written .*; free some space"):
            publish_files({"a": b"new", "b": b"x" * 2000}, tmp_path / "report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (tmp_path / "report" / "a").read_bytes() == b"old"


def test_the_printed_table_has_a_row_per_measure_and_the_place(tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=(tmp_path / "out").open("w"))
    print_report(console, make_report(), tmp_path / "report")
    text = console.export_text()
    for words in ("Loss on held-out documents", "Exact answers", "50.0%", "+5.0%", "worse", "report.html"):
        assert words in text
    console.file.close()


def test_a_running_mean_looks_back_and_never_ahead() -> None:
    assert running_mean([4.0, 2.0, 0.0, 6.0], 2) == [4.0, 3.0, 1.0, 3.0]
    assert running_mean([4.0, 2.0], 0) == [4.0, 2.0]
