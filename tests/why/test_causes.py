"""`metier why` against recorded faults: each folder holds what a real fault of this project has left behind.

The folder's name is the cause that has to be found; what follows a dot tells two of the same cause apart.
``python -m tests.why.record`` makes them.
"""

import re
from pathlib import Path

from launcher.why.catalogue import read_catalogue
from launcher.why.evidence import gather
from launcher.why.match import Fact, rank_causes
from launcher.why.why import find_candidates
from training.layout import RunLayout

CASES = sorted(path for path in (Path(__file__).parent / "cases").iterdir() if path.is_dir())
WANTED = 19 / 20


def find_cause(case: Path) -> str | None:
    candidates = find_candidates(gather(RunLayout(case)))
    return candidates[0].cause.id if candidates else None


def wanted_cause(case: Path) -> str:
    return case.name.split(".")[0]


def test_the_right_cause_is_found_in_nineteen_of_twenty_recorded_faults() -> None:
    wrong = {case.name: found for case in CASES if (found := find_cause(case)) != wanted_cause(case)}
    right = len(CASES) - len(wrong)
    print(f"{right} of {len(CASES)} recorded faults: {right / len(CASES):.1%}; wrong: {wrong or 'none'}")
    assert right >= WANTED * len(CASES), wrong


def test_every_cause_that_counts_as_recorded_has_a_case_and_every_case_a_cause() -> None:
    recorded = {cause.id for cause in read_catalogue() if cause.recorded}
    assert recorded == {wanted_cause(case) for case in CASES}


def test_the_line_that_the_page_shows_of_a_cause_is_known_as_that_cause() -> None:
    for cause in read_catalogue():
        line = Fact(source=cause.seen_in, text=cause.seen)
        assert [each.cause.id for each in rank_causes(read_catalogue(), [line])][:1] == [cause.id]


def test_no_cause_is_seen_where_nothing_went_wrong() -> None:
    """A cause is told apart from all others: no sign of the program's own words fits another fault."""
    exact = {cause.id for cause in read_catalogue() if cause.weight == 100}
    for case in CASES:
        seen = {each.cause.id for each in find_candidates(gather(RunLayout(case)))}
        assert seen & exact <= {wanted_cause(case)}, case.name


def test_recordings_hold_no_folder_of_the_machine_and_no_secret() -> None:
    for path in (path for case in CASES for path in case.rglob("*") if path.is_file()):
        content = path.read_text()
        folders = set(re.findall(r"(?<![\w.\]])/(?:work|tmp|root)/[\w./-]*", content))
        assert not folders, path
        assert not re.search(r"\b[0-9a-f]{40}\b|\bhf_\w{8}", content), path
