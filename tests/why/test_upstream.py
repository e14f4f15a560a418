"""The causes that nobody here can provoke: their signs against what upstream.yaml quotes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.why.catalogue import Cause, read_catalogue
from launcher.why.evidence import gather_text
from launcher.why.match import Fact, rank_causes

QUOTED: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "upstream.yaml").read_text())
LINES = [
    (entry["cause"], Fact(source=entry.get("in", "command"), text=line))
    for entry in QUOTED
    for line in entry["says"]
]


def not_recorded() -> list[Cause]:
    return [cause for cause in read_catalogue() if not cause.recorded]


@pytest.mark.parametrize(("cause", "fact"), LINES)
def test_what_upstream_prints_is_seen_as_its_cause_before_any_other(cause: str, fact: Fact) -> None:
    found = [each.cause.id for each in rank_causes(read_catalogue(), [fact])]
    assert found[:1] == [cause]


def test_every_cause_that_is_not_recorded_names_the_address_of_what_is_quoted() -> None:
    addresses = {(entry["cause"], entry["address"]) for entry in QUOTED}
    for cause in not_recorded():
        assert (cause.id, cause.source) in addresses, cause.id
        assert (cause.source or "").startswith(("https://", "launcher/")), cause.id


def test_what_is_quoted_of_ourselves_stands_in_the_file_that_is_named() -> None:
    for entry in QUOTED:
        if not entry["address"].startswith("https://"):
            content = (Path(__file__).parents[2] / entry["address"]).read_text()
            assert all(words in content for words in entry["words"]), entry["cause"]


def test_a_rank_that_was_killed_outweighs_what_nccl_says_on_the_others() -> None:
    remote = [fact.text for cause, fact in LINES if cause == "peer_lost"]
    killed = "srun: error: node2: task 9: Killed"
    found = rank_causes(read_catalogue(), gather_text(Path("log"), [*remote, killed]))
    assert [each.cause.id for each in found] == ["rank_killed", "peer_lost"]
