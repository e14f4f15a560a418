"""What a job's script asks while the job runs: ``python -m launcher.slurm.job ACTION RUN_DIRECTORY ...``.

    begin RUN                  which nodes, which port, who looks after the job, until when; or its end
    chain RUN                  where no job may run again: another one waits for this job's end
    judge RUN CODE             what the preflight's end means
    decide RUN CODE NOTICE     what the training's end means; prints ``again``, or ends the job

The script itself decides nothing. What is decided is told on stderr, the job's log, and in jobs.jsonl.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from launcher.local import was_overtaken
from launcher.slurm.call import is_away, is_busy
from launcher.slurm.decide import TOLD_FACTOR, Decision, Ended, decide
from launcher.slurm.facts import (
    asked_by_user,
    find_end,
    is_cancelled,
    is_out_of_memory,
    is_run_again,
    newest_step,
    own_restart,
    read_outcome,
    read_own_log,
    read_slurm_log,
)
from launcher.slurm.journal import (
    append_line,
    count_idle_starts,
    count_in_vain,
    count_refusals,
    find_bad_nodes,
    find_newer,
    list_excluded,
    read_journal,
)
from launcher.slurm.living import choose_deputies, find_living
from launcher.slurm.request import find_look_seconds, pulls_image
from launcher.slurm.successor import call_off_next, find_successor, hand_over, own_job, submit_next
from training.config.freeze import read_frozen
from training.config.schema import RunConfig
from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError, first_line
from training.fence import find_incarnation
from training.layout import RunLayout
from training.verdict import blame_lead, find_report, read_verdict

AGAIN = "again"
ENOUGH = 3
"""This job has nothing more to do: its script exits well."""

REQUEUED = 4
"""This job was put back into the queue: its script waits until Slurm ends it."""

_FIRST_PORT, _PORTS = 15_000, 10_000
_TIMED_OUT = 124
"""What timeout(1) ends with, in the job's script."""

_AWAY_PAUSE_SECONDS = 10.0
_MOST_IN_VAIN = 30
"""So often Slurm may refuse to begin a start because of the last one's, 10 s apart."""


def main(words: Sequence[str]) -> int:
    """Answer one question; the exit code is the job's own, where it is to end."""
    action, root, *rest = words
    layout = RunLayout(Path(root))
    try:
        return _answer(action, layout, rest)
    except MetierError as error:
        _give_up(layout, error)
        return EXIT_USER_ERROR
    except Exception as error:
        traceback.print_exc()
        _give_up(layout, error)
        return EXIT_FAILED


def _answer(action: str, layout: RunLayout, rest: Sequence[str]) -> int:
    config = read_frozen(layout.config)
    match action:
        case "begin":
            return _begin(layout, config)
        case "chain":
            _chain(layout, config)
            return EXIT_OK
        case "judge":
            return _judge(layout, config, int(rest[0]))
        case _:
            return _decide(layout, config, int(rest[0]), rest[1] if rest[1:] else "")


def _give_up(layout: RunLayout, error: Exception) -> None:
    """End the run with an error of this script's own, as far as that can still be written and called off."""
    kind = type(error).__name__
    decision = Decision(step="failed", reason=f"the job's script failed: {kind}: {first_line(error)}")
    try:
        job = own_job()
        if find_newer(read_journal(layout.jobs), job, own_restart()):
            _say(decision.reason)
        else:
            _end(layout, job, decision, error_class=kind)
    except Exception:
        traceback.print_exc()


def port_of(job: str, starts: int) -> int:
    """Choose a port below the ephemeral range: another one for each job, and for each start within it."""
    number = int(re.sub(r"\D", "", job.partition("_")[0]) or 0) + int(job.partition("_")[2] or 0)
    return _FIRST_PORT + (number * 7 + starts) % _PORTS


def _begin(layout: RunLayout, config: RunConfig) -> int:
    job, lines, step = own_job(), read_journal(layout.jobs), newest_step(layout)
    if newer := find_newer(lines, job, own_restart()):
        return _leave_to_newer(job, newer)
    if asked_by_user(layout):
        return _end(
            layout, job, Decision(step="stopped", reason="somebody asked the run to stop; it stays so")
        )
    limit = config.cluster.slurm.starts_without_progress
    failed, told = count_idle_starts(lines, step)
    if failed >= limit or told >= TOLD_FACTOR * limit:
        reason = f"given up: {told} starts in a row saved nothing beyond step {step}; see `metier why`"
        return _end(layout, job, Decision(step="failed", reason=reason))
    _chain(layout, config)
    living = find_living(job, find_bad_nodes(lines, job))
    nodes = living[: config.cluster.nodes]
    if len(nodes) < config.cluster.nodes:
        return _lack_nodes(layout, config, job, living)
    layout.outcome.unlink(missing_ok=True)
    if not asked_by_user(layout):  # who asks from here on is heard by the ranks, or by ``decide``
        layout.stop_request.unlink(missing_ok=True)
    starts = sum(line["event"] == "started" and line.get("job") == job for line in lines)
    asked, end = time.time(), find_end(job)
    append_line(
        layout.jobs,
        "started",
        job=job,
        restart=own_restart(),
        step=step,
        nodes=nodes,
        asked=asked,
        end=end,
    )
    _say(f"start {starts + 1} of job {job} on {', '.join(nodes)}, from step {step}")
    deputies = choose_deputies(living, os.environ["SLURMD_NODENAME"])
    look_after = (len(deputies), ",".join(deputies) or "-")
    answer = (",".join(nodes), port_of(job, starts), asked, *look_after, end or "")
    sys.stdout.write(" ".join(map(str, answer)) + "\n")
    return EXIT_OK


def _lack_nodes(layout: RunLayout, config: RunConfig, job: str, living: Sequence[str]) -> int:
    append_line(layout.jobs, "too_few", job=job, nodes=living)
    times = count_refusals(read_journal(layout.jobs), "too_few")
    if times >= TOLD_FACTOR * config.cluster.slurm.starts_without_progress:
        reason = f"given up: {times} times in a row fewer nodes lived than the run needs"
        return _end(layout, job, Decision(step="failed", reason=reason))
    _say("fewer nodes live than the run needs")
    return _go_on_later(layout, config, job)


def _chain(layout: RunLayout, config: RunConfig) -> None:
    """Where no job may run again, see to it that another one waits for this job's end, whatever ends it."""
    job, lines = own_job(), read_journal(layout.jobs)
    if config.cluster.slurm.requeue or asked_by_user(layout) or find_newer(lines, job, own_restart()):
        return
    if find_successor(layout, job) is None:
        _say(f"job {submit_next(layout, after=job)} goes on when this one ends")


def _judge(layout: RunLayout, config: RunConfig, code: int) -> int:
    job, preflight = own_job(), config.cluster.preflight
    if code == _TIMED_OUT and read_verdict(layout.preflight).kind == "unknown":
        head = os.environ["MASTER_ADDR"]
        # A lead that never began may have waited for Slurm, or for its image, and not for its node.
        began, log = find_report(layout.preflight) is not None, read_own_log()
        if began or not (is_away(log) or is_busy(log) or pulls_image(config.cluster)):
            _say(blame_lead(layout.preflight, preflight, find_look_seconds(config.cluster), head))
    verdict = read_verdict(layout.preflight)
    if verdict.kind in {"ok", "warn", "unknown"}:
        if verdict.kind == "unknown":
            _say(f"the preflight ended with {code} and told nothing; training starts all the same")
        return EXIT_OK
    append_line(
        layout.jobs, "preflight", job=job, verdict=verdict.kind, bad=verdict.nodes, reason=verdict.reason
    )
    mode, lines = preflight.mode, read_journal(layout.jobs)
    if mode == "stop" or (verdict.kind == "stop" and mode != "warn"):
        return _end(layout, job, Decision(step="failed", reason=f"preflight: {verdict.reason}"))
    if mode == "warn" or _are_enough(config, job, find_bad_nodes(lines, job)):
        how = "all the same (cluster.preflight.mode=warn)" if mode == "warn" else "on the other nodes"
        _say(f"preflight: {verdict.reason}; training starts {how}")
        return EXIT_OK
    tries = count_refusals(lines, "preflight")
    if tries > config.cluster.slurm.starts_without_progress:
        reason = f"given up: {tries} preflights in a row found bad nodes; the last: {verdict.reason}"
        return _end(layout, job, Decision(step="failed", reason=reason))
    _say(f"preflight: {verdict.reason}")
    return _go_on_later(layout, config, job, exclude=list_excluded(lines))


def _decide(layout: RunLayout, config: RunConfig, code: int, notice: str) -> int:
    job, log = own_job(), read_own_log()
    lines = read_journal(layout.jobs)
    if newer := find_newer(lines, job, own_restart()):
        return _leave_to_newer(job, newer)
    began = next((float(line["asked"]) for line in reversed(lines) if line["event"] == "started"), 0.0)
    started = find_incarnation(layout.incarnations, began) is not None
    outcome = read_outcome(layout.outcome)
    busy = is_busy(log) and count_in_vain(lines) < _MOST_IN_VAIN
    away = not started and outcome is None and (is_away(log) or busy)
    told = bool(notice) or (outcome or {}).get("state") == "STOPPED"
    line = append_line(
        layout.jobs,
        "ended",
        job=job,
        code=code,
        noticed=told,
        away=away,
        outcome=(outcome or {}).get("state"),
    )
    failed, all_told = count_idle_starts([*lines, line], newest_step(layout))
    ended = Ended(
        code=code,
        outcome=outcome,
        notice=notice,
        stopped_by_user=asked_by_user(layout) or is_cancelled(job, log + read_slurm_log()),
        overtaken=was_overtaken(layout, began),
        out_of_memory=is_out_of_memory(log),
        away=away,
        idle_failed=failed,
        idle_told=all_told,
    )
    decision = decide(ended, starts_without_progress=config.cluster.slurm.starts_without_progress)
    if decision.step in {"again", "return"} and is_run_again(job):
        return _leave_to_newer(job, job)
    if decision.step == "again":
        return _again(layout, config, job, decision, away=away)
    if decision.step == "return":
        _say(decision.reason)
        return _go_on_later(layout, config, job)
    return _end(layout, job, decision)


def _leave_to_newer(job: str, newer: str) -> int:
    """End a script whose job runs elsewhere, or waits to, or whose run another job has: it would hit that."""
    how = f"Slurm runs job {job} anew" if newer == job else f"job {newer} of this run has begun meanwhile"
    _say(f"{how}; this script of job {job} leaves the run to it")
    return ENOUGH


def _again(layout: RunLayout, config: RunConfig, job: str, decision: Decision, *, away: bool) -> int:
    _say(f"{decision.reason}; starting again")
    if away:
        time.sleep(_AWAY_PAUSE_SECONDS)
    elif not _are_enough(config, job, find_bad_nodes(read_journal(layout.jobs), job)):
        return _go_on_later(layout, config, job)
    sys.stdout.write(f"{AGAIN}\n")
    return EXIT_OK


def _go_on_later(layout: RunLayout, config: RunConfig, job: str, exclude: Sequence[str] = ()) -> int:
    by, told = hand_over(layout, job, may_requeue=config.cluster.slurm.requeue, exclude=exclude)
    _say(told)
    return REQUEUED if by == job else ENOUGH


def _end(layout: RunLayout, job: str, decision: Decision, **facts: object) -> int:
    append_line(layout.jobs, "decided", job=job, step=decision.step, reason=decision.reason, **facts)
    if decision.step == "failed":
        append_line(layout.jobs, "given_up", job=job, reason=decision.reason)
    _say(decision.reason)
    if decision.step != "overtaken":
        call_off_next(layout, job)
    return EXIT_FAILED if decision.step == "failed" else ENOUGH


def _are_enough(config: RunConfig, job: str, without: set[str]) -> bool:
    return len(find_living(job, without)) >= config.cluster.nodes


def _say(text: str) -> None:
    sys.stderr.write(f"metier job: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
