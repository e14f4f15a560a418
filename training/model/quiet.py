"""Keep upstream's progress bars and advice out of the user's terminal."""

import logging as standard_logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_upstream() -> Iterator[None]:
    """Silence transformers and the hub: log lines, progress bars, warnings; errors come as exceptions."""
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    # The hub's client tells of every retry; its last word comes as an exception.
    hub = standard_logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(standard_logging.CRITICAL)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            logging.enable_progress_bar()
