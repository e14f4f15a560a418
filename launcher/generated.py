"""The command line of pages that are written from the code: write one, or say whether it is current."""

import sys
from collections.abc import Callable
from pathlib import Path

from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR
from training.files import write_text


def write_or_check(module: str, page: Callable[[], str]) -> int:
    """Write the page to the file that the command line names; with ``--check`` say whether it is current."""
    words = [word for word in sys.argv[1:] if word != "--check"]
    if len(words) != 1:
        sys.stderr.write(f"usage: python -m {module} FILE [--check]\n")
        return EXIT_USER_ERROR
    path, text = Path(words[0]), page()
    if "--check" not in sys.argv:
        write_text(path, text)
        return EXIT_OK
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return EXIT_OK
    sys.stderr.write(f"{path} is not current; run `python -m {module} {path}`\n")
    return EXIT_FAILED
