"""What the lead does besides: it collects what the others say, with a deadline, and gives the verdict."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from training.layout import RunLayout
from training.preflight.decide import decide
from training.preflight.facts import Facts, NetworkFacts, Pair, RankFacts
from training.preflight.judge import judge, needs_all_pairs
from training.preflight.looks import ARRIVE, LOOK, MEET, PAIR
from training.preflight.member import (
    BYE,
    DONE,
    FACTS,
    HERE,
    LINKS,
    NETWORK,
    PAIRS,
    ROLL,
    START,
    Member,
    read_roll,
)
from training.preflight.network import FIRST_ROUNDS, plan_tournament
from training.preflight.nodes import place_ranks
from training.preflight.table import draw_table
from training.verdict import Report, Verdict, say, write_report

_LATE = 0.03
"""Share of the budget that an answer may take to arrive after its deadline."""

_LAST_SECONDS = 2.0


class Lead:
    """The rank that everybody answers to."""

    def __init__(self, member: Member, environ: Mapping[str, str]) -> None:
        """Know what Slurm says of who is where."""
        self._member, self._board = member, member.board
        world_size = member.ranks.world_size
        self._nodes = [node or f"rank {rank}" for rank, node in enumerate(place_ranks(environ, world_size))]
        self._silent: dict[str, str] = {}
        self._undone: list[str] = []

    def lead(self, layout: RunLayout, screen: TextIO) -> Verdict:
        """Hold the preflight; write preflight.json, a table and one line per finding.

        Raises:
            StorageError: The run directory cannot be written.
        """
        member = self._member
        ranks = self._gather_facts(self._call())
        network = self._gather_network(ranks)
        facts = Facts(
            gpus_wanted=member.subject.cluster.gpus_per_node,
            interface_wanted=member.subject.cluster.network.interface,
            nodes=tuple(dict.fromkeys(self._nodes)),
            silent=self._silent,
            ranks=tuple(ranks),
            network=tuple(network),
        )
        config = member.subject.cluster.preflight
        findings = judge(facts, config)
        verdict = decide(findings, config)
        seconds = member.clock.spent()
        report = Report(
            time=time.time(),
            seconds=seconds,
            nodes=facts.nodes,
            verdict=verdict,
            findings=tuple(findings),
            undone=tuple(dict.fromkeys(self._undone)),
            facts=facts.model_dump(mode="json"),
        )
        screen.write(draw_table(facts, report))
        screen.flush()
        for finding in findings:
            sys.stderr.write(f"metier preflight: {say(finding, verdict)}\n")
        write_report(layout.preflight, report)
        self._board.post(DONE, True)
        # With this process the board is gone.
        self._collect(BYE, [each.rank for each in network if each.rank != member.ranks.rank], _LAST_SECONDS)
        return verdict

    def _call(self) -> list[int]:
        """Wait until all have come, or for as long as there is time; begin with those that have."""
        clock = self._member.clock
        self._member.post(HERE, self._member.node)
        known = self._collect(HERE, range(len(self._nodes)), clock.left(ARRIVE))
        for rank in range(len(self._nodes)):
            if rank in known:
                self._nodes[rank] = str(known[rank])
            else:
                self._note_silence(rank, f"did not come within {clock.spent():.0f} s")
        present = sorted(known)
        self._board.post(START, {"ranks": present, "spent": clock.spent()})
        return present

    def _gather_facts(self, present: list[int]) -> list[RankFacts]:
        self._member.post(FACTS, self._member.look().model_dump(mode="json"))
        answers = self._collect(FACTS, present, self._member.clock.left(LOOK + _LATE))
        for rank in present:
            if rank not in answers:
                self._note_silence(rank, "came, and did not answer any more")
        ranks = [RankFacts.model_validate(answers[rank]) for rank in sorted(answers)]
        self._undone += [f"{rank.node}: {line}" for rank in ranks for line in rank.undone]
        return ranks

    def _gather_network(self, ranks: list[RankFacts]) -> list[NetworkFacts]:
        member, clock = self._member, self._member.clock
        present = [rank.rank for rank in ranks]
        roll = {"ranks": present, "nodes": [rank.node for rank in ranks]}
        self._board.post(ROLL, roll)
        if len(present) == 1:
            return []
        member.post(NETWORK, member.meet(read_roll(roll)).model_dump(mode="json"))
        answers = self._collect(NETWORK, present, clock.left(MEET + _LATE))
        for rank in present:
            if rank not in answers:
                self._note_silence(rank, "hung while the network was measured")
        network = [NetworkFacts.model_validate(answers[rank]) for rank in sorted(answers)]
        self._undone += [f"{facts.node}: {line}" for facts in network for line in facts.undone]
        return self._add_pairs(network, present)

    def _add_pairs(self, network: list[NetworkFacts], present: list[int]) -> list[NetworkFacts]:
        member, config = self._member, self._member.subject.cluster.preflight
        nodes = {facts.node for facts in network}
        whole = len(network) == len(present) and not any(facts.undone for facts in network)
        left = len(plan_tournament(len(nodes))) > FIRST_ROUNDS
        wanted = whole and left and needs_all_pairs(network, config)
        self._board.post(PAIRS, wanted)
        if not wanted:
            return network
        pairs, undone = member.play()
        member.post(LINKS, [pair.model_dump(mode="json") for pair in pairs])
        self._undone += [f"{member.node}: {line}" for line in undone]
        answers = self._collect(LINKS, present, member.clock.left(PAIR + _LATE))
        return [
            facts.model_copy(
                update={
                    "pairs": facts.pairs
                    + tuple(Pair.model_validate(pair) for pair in answers.get(facts.rank, []))
                }
            )
            for facts in network
        ]

    def _collect(self, name: str, ranks: "range | list[int]", seconds: float) -> dict[int, Any]:
        names = {f"{name}/{rank}": rank for rank in ranks}
        return {names[key]: value for key, value in self._board.collect(list(names), seconds).items()}

    def _note_silence(self, rank: int, when: str) -> None:
        self._silent.setdefault(self._nodes[rank], f"rank {rank} {when}")
