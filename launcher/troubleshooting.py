"""Writes docs/troubleshooting.md: every known cause of an end, how it is seen, and what to do.

It comes from launcher/why/causes.yaml, which `metier why` uses: ``python -m launcher.troubleshooting FILE
[--check]`` writes it, or says whether it is current.
"""

import sys
from collections.abc import Iterator

from launcher.generated import write_or_check
from launcher.why.catalogue import Cause, Sign, read_catalogue

_HEAD = """\
# Troubleshooting

<!-- Written by `python -m launcher.troubleshooting docs/troubleshooting.md` from causes.yaml. -->

When a run has ended and you want to know why:

    metier status                  # what every run is at
    metier why RUN                 # the cause, what to do, the rank that failed first, what Slurm says
    metier why RUN --job ID        # of one job of it
    metier logs RUN --rank R       # what one rank has said
    metier why --log FILE          # of a text alone: what a command printed, a job's log

`metier why` holds the run's files, and sacct, against the causes below. Of each you find here how it looks,
what it means, what to do, and the expressions by which it is known. Where several are seen, what causes the
others comes first: a peer that was lost follows from a rank that was killed, and that from a job's limit.

{recorded} of the {all} causes are tested with the files that a real fault has left behind (`tests/why/cases`,
made by `python -m tests.why.record`); the others' signs are from the documentation that is named.

In nearly every case the same command goes on from the last checkpoint, once the cause is mended.
"""

_PLACES = {
    "outcome": "outcome.json, in the words of `metier why`",
    "rank": "a rank's log",
    "launch": "torchrun's log",
    "job": "the job's log",
    "command": "what the command prints",
    "events": "events.jsonl or jobs.jsonl",
    "sacct": "sacct",
    "preflight": "preflight.json",
    "tracker": "logs/tracker.log",
}
_USUAL = ("outcome", "rank", "launch", "job", "command")


def write_page() -> str:
    """Give the whole page."""
    causes = read_catalogue()
    areas = list(dict.fromkeys(cause.area for cause in causes))
    head = _HEAD.format(recorded=sum(cause.recorded for cause in causes), all=len(causes))
    parts = [head, _contents(causes, areas)]
    for area in areas:
        parts.append(f"## {area[0].upper()}{area[1:]}\n")
        parts += ["\n".join(_say(cause)) + "\n" for cause in causes if cause.area == area]
    return "\n".join(parts)


def _contents(causes: tuple[Cause, ...], areas: list[str]) -> str:
    lines = []
    for area in areas:
        links = ", ".join(f"[{cause.title}](#{cause.id})" for cause in causes if cause.area == area)
        lines.append(f"- {area}: {links}")
    return "\n".join(lines) + "\n"


def _say(cause: Cause) -> Iterator[str]:
    yield f'### <a id="{cause.id}"></a>{cause.title}'
    yield ""
    yield f"**Symptom.** In {_PLACES[cause.seen_in]}: {_quote(cause.seen)}"
    yield ""
    yield f"**Cause.** {cause.explanation}"
    yield ""
    yield f"**To do.** {cause.remedy}"
    yield ""
    yield f"`{cause.id}`, looked for as {'; '.join(_say_sign(sign) for sign in cause.signs)}."
    if not cause.recorded:
        yield ""
        yield f"Not recorded in this project; the signs are from {cause.source}"


def _say_sign(sign: Sign) -> str:
    pattern = _quote(sign.pattern.pattern)
    if sign.sources == _USUAL:
        return pattern
    return f"{pattern} in {', '.join(_PLACES[source] for source in sign.sources)}"


def _quote(words: str) -> str:
    return f"`` {words} ``" if "`" in words else f"`{words}`"


if __name__ == "__main__":
    sys.exit(write_or_check("launcher.troubleshooting", write_page))
