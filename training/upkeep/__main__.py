"""``python -m training.upkeep RUN_DIR ACTION [STEP [FOLDER]]``, an empty STEP being the newest.

Behind ``prune`` the word ``all`` stands in the folder's place: what was set aside goes as well. ``digest``
prints one JSON object, for `metier drill`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from training.checkpoint.load import find_checkpoint, read_step
from training.errors import EXIT_FAILED, EXIT_OK, EXIT_USER_ERROR, MetierError
from training.layout import RunLayout
from training.upkeep.convert import convert
from training.upkeep.digest import digest
from training.upkeep.listing import prune_run, show_checkpoints, verify_all


def main(words: list[str]) -> int:
    """Do one action; 1 when something does not verify, 2 when the user can mend something."""
    layout = RunLayout(Path(words[0]))
    action, step = words[1], int(words[2]) if any(words[2:3]) else None
    actions: dict[str, Callable[[], bool]] = {
        "list": lambda: show_checkpoints(layout),
        "verify": lambda: verify_all(layout, step),
        "prune": lambda: prune_run(layout, all_damaged=words[3:] == ["all"]),
        "convert": lambda: _convert(layout, step, words[3:]),
        "digest": lambda: _digest(layout, step),
    }
    try:
        return EXIT_OK if actions[action]() else EXIT_FAILED
    except MetierError as error:
        sys.stderr.write(f"metier checkpoints: {error}\n")
        return EXIT_USER_ERROR


def _digest(layout: RunLayout, step: int | None) -> bool:
    sys.stdout.write(json.dumps(digest(find_checkpoint(layout, step))) + "\n")
    return True


def _convert(layout: RunLayout, step: int | None, rest: list[str]) -> bool:
    folder = find_checkpoint(layout, step)
    target = Path(rest[0]) if rest else layout.root / f"state_{read_step(folder):08d}"
    for path, size in convert(folder, target):
        sys.stdout.write(f"{path}  {size / 1e6:,.1f} MB\n")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
