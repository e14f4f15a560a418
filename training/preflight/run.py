"""One rank's part in a preflight, from its environment to its exit code."""

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from training.config.freeze import read_frozen
from training.errors import EXIT_OK
from training.layout import RunLayout
from training.preflight.lead import Lead
from training.preflight.member import Member, Subject
from training.ranks import Ranks


def run(layout: RunLayout, environ: Mapping[str, str], screen: TextIO) -> int:
    """Take part; give the exit code, which is the verdict's on the lead unless torchrun started it.

    Args:
        layout: Holds run.json; preflight.json is written there.
        environ: Of the process: rank, node, where to meet.
        screen: For the lead's table.

    Raises:
        MetierError: The configuration cannot be read, the lead cannot be reached, or the verdict not written.
    """
    ranks = Ranks.from_environ(environ)
    member = Member(Subject.of(read_frozen(layout.config), layout), ranks, environ)
    if not ranks.is_lead:
        member.attend()
        return EXIT_OK
    verdict = Lead(member, environ).lead(layout, screen)
    # torchrun takes any other code for a crash, and says so at length; the verdict is in the file.
    return EXIT_OK if "TORCHELASTIC_RUN_ID" in environ else verdict.exit_code


def quieten() -> TextIO:
    """Keep what libraries write on stdout off the screen; give the screen."""
    screen = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return screen
