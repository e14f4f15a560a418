"""One process that encodes parts of the input, one after the other, as its parent says."""

import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any, Literal

from training.config.sources import DataConfig
from training.errors import MetierError
from training.processes import end_with_parent

Report = (
    tuple[Literal["advance"], tuple[int, int, int]]
    | tuple[Literal["done"], None]
    | tuple[Literal["refused"], MetierError]
    | tuple[Literal["failed"], str]
)
"""What a worker says: how much it just encoded, that it waits for a part, or why it ends."""


def serve(connection: Connection, parent: int, data: DataConfig) -> None:
    """Encode the jobs that come over ``connection`` until it is closed.

    Args:
        connection: The tokenizer comes in, then jobs; reports go out.
        parent: The parent's process id: this process ends with it.
        data: How control tokens are treated.
    """
    end_with_parent(parent)
    # The terminal's Ctrl-C reaches the whole group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_core()
    try:
        _encode_jobs(connection, data)
    except MetierError as error:
        connection.send(("refused", error))
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def use_one_core() -> None:
    """Keep the tokenizer from starting threads of its own: there is one process for each core."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}


def _encode_jobs(connection: Connection, data: DataConfig) -> None:
    # Imported here: the packages take seconds, and read the environment that was set above.
    from training.data.corpus.segments import encode_part  # noqa: PLC0415
    from training.data.encoding.encode import Encoder  # noqa: PLC0415

    encoder = Encoder(connection.recv(), control_tokens=data.control_tokens)
    listener = _Teller(connection)
    while True:
        encode_part(connection.recv(), encoder, listener)
        connection.send(("done", None))


class _Teller:
    """Sends what it hears to the parent."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, **_sizes: Any) -> None:
        """Nothing: the parent knows."""

    def advance(self, documents: int, tokens: int, read_bytes: int) -> None:
        self._connection.send(("advance", (documents, tokens, read_bytes)))

    def enter(self, phase: str) -> None:
        """Nothing: the parent knows."""
