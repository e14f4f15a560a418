"""The errors a user can meet. Each message is one line that says what was found, wanted, and to do."""


class MetierError(Exception):
    """Something the user can mend; shown as one line, without a traceback, exit code 2."""


class ConfigError(MetierError):
    """A setting is missing, misspelt, of the wrong type, or does not go with another."""


class DataError(MetierError):
    """A document, a shard or a corpus is not what it should be; the message names file and line."""


class ModelError(MetierError):
    """A model folder, a tokenizer or a chat template is missing or does not fit."""


class CheckpointError(MetierError):
    """A checkpoint is missing, damaged, or belongs to another run or number of ranks."""


class ClusterError(MetierError):
    """A device, a process or a node is missing or did not start."""


class StorageError(MetierError):
    """A disk is full or refuses to be written."""


class NumericError(MetierError):
    """The loss or the gradient is no longer a number."""


def first_line(error: BaseException) -> str:
    """Give the first line of what an upstream error says, short enough to be part of one of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
