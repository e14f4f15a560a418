"""Where a rank's words go; opened before anything heavy is imported, whose complaints land there too."""

import contextlib
import os
import sys
import time

from training.layout import START_MARK, RunLayout
from training.ranks import Ranks


def redirect_to_log(layout: RunLayout, ranks: Ranks) -> None:
    """Send this process's stderr to its log file, and stdout too unless it is the lead's screen."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    log = os.open(layout.rank_log(ranks.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # By this line `metier why` knows what belongs to the last start: the log goes on over restarts.
    with contextlib.suppress(OSError):
        os.write(
            log, f"{START_MARK}{time.strftime('%Y-%m-%dT%H:%M:%S%z')} on {os.uname().nodename}\n".encode()
        )
    os.dup2(log, sys.stderr.fileno())
    if not ranks.is_lead:
        os.dup2(log, sys.stdout.fileno())
    os.close(log)
