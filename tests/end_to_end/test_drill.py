"""`metier drill` on this machine: it says safe where it is, and not where a continuation is damaged."""

import json
import subprocess
from pathlib import Path

import pytest

from launcher.drill.cases import Reference, run_case, say_verdict
from launcher.drill.local import LocalStage
from launcher.drill.plan import Kind, Plan, plan_drill
from launcher.drill.stage import Left
from launcher.drill.trace import read_trace
from launcher.tree import ConfigTree
from tests.end_to_end.runs import environment, metier

TREE = ConfigTree(None)
SETTINGS = ("cluster.threads_per_process=1",)


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Drill as a user would; give the working folder and what was printed."""
    folder = tmp_path_factory.mktemp("drill")
    return folder, metier(folder, "drill", "kinds=kill", *SETTINGS)


def test_a_killed_rank_is_survived_and_the_last_line_says_safe(
    drilled: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = drilled
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == (
        "safe: interrupted (kill) and continued, the run is bit for bit the undisturbed one"
    )
    told = json.loads((folder / "runs/drill/drill.json").read_text())
    [case] = told["cases"]
    assert told["safe"]
    assert case["starts"] == 2
    assert case["redone"] > 0
    assert case["step"] > 0
    assert case["left"] == []


class DamagingStage:
    """This machine, where somebody sets a checkpoint's position back while nothing runs."""

    def __init__(self) -> None:
        self._stage = LocalStage(TREE)
        self.damaged: list[Path] = []

    def start(self, plan: Plan, name: str) -> None:
        saved = sorted(plan.layout(name).checkpoints.glob("step_*/manifest.json"))
        for path in saved[-1:]:
            values = json.loads(path.read_text())
            values["samples_seen"] -= 4
            path.write_text(json.dumps(values))
            self.damaged.append(path)
        self._stage.start(plan, name)

    def is_over(self, plan: Plan, name: str) -> bool:
        return self._stage.is_over(plan, name)

    def strike(self, plan: Plan, name: str, kind: Kind) -> str:
        return self._stage.strike(plan, name, kind)

    def find_left(self, plan: Plan, name: str) -> Left:
        return self._stage.find_left(plan, name)

    def say_why(self, plan: Plan, name: str) -> str:
        return self._stage.say_why(plan, name)

    def end(self, plan: Plan, name: str) -> None:
        self._stage.end(plan, name)


def test_a_continuation_that_sees_other_samples_is_not_safe(
    drilled: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = drilled
    monkeypatch.chdir(folder)
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, environment()[name])
    plan = plan_drill(["kinds=notice", *SETTINGS], TREE)
    expected = Reference(trace=read_trace(plan.layout("undisturbed"), environment()), left=())
    stage = DamagingStage()
    try:
        case = run_case(plan, stage, "notice", expected, environment())
    finally:
        stage.end(plan, "notice")

    assert stage.damaged
    assert case.starts == 2
    assert case.comparison.state is not None
    line = say_verdict([case])
    assert line.startswith(
        "NOT safe: after notice the run is not proven to be the same, because samples_seen of"
    )
    assert case.left == ()
