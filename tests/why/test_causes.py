"""`metier why` against recorded faults: each folder holds what a real fault of this project has left behind.

The folder's name is the cause that has to be found; what follows a dot tells two of the same cause apart.
``python -m tests.why.record`` makes them.
"""

from pathlib import Path

from launcher.why.evidence import gather
from launcher.why.why import find_candidates
from training.layout import RunLayout

CASES = sorted(path for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir())
WANTED = 19 / 20


def find_cause(case: Path) -> str | None:
    candidates = find_candidates(gather(RunLayout(case)))
    return candidates[0].cause.id if candidates else None


def test_the_right_cause_is_found_in_nineteen_of_twenty_recorded_faults() -> None:
    wrong = {case.name: found for case in CASES if (found := find_cause(case)) != case.name.split(".")[0]}
    right = len(CASES) - len(wrong)
    print(f"{right} of {len(CASES)} recorded faults: {right / len(CASES):.1%}; wrong: {wrong or 'none'}")
    assert right >= WANTED * len(CASES), wrong
