"""Where a rank's words go; opened before anything heavy is imported, whose complaints land there too."""

import contextlib
import os
import sys

from training.layout import RunLayout, start_line
from training.ranks import Ranks


def redirect_to_log(layout: RunLayout, ranks: Ranks) -> None:
    """Send this process's stderr to its log file, and stdout too unless it is the lead's screen."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    log = os.open(layout.rank_log(ranks.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    with contextlib.suppress(OSError):
        os.write(log, start_line().encode())
    os.dup2(log, sys.stderr.fileno())
    if not ranks.is_lead:
        os.dup2(log, sys.stdout.fileno())
    os.close(log)
