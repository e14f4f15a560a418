"""What a login node answers to several requests: ``python -m tests.slurm.asked_on_login < requests.json``.

One process for all of them, because each would spend most of its time importing.
"""

import json
import sys
from pathlib import Path

from launcher.slurm.login import check_script, check_slurm
from launcher.slurm.script import write_script
from tests.cluster_case import slurm_run
from training.errors import MetierError
from training.layout import RunLayout


def answer(changes: dict[str, object]) -> str:
    """Give the refusal, or when the job would start."""
    config = slurm_run(**changes)
    layout = RunLayout.of(config.run_root, config.name)
    try:
        notes = [note for note in check_slurm(config) if "most often each machine's own" not in note]
        script = Path("job.sh")
        script.write_text(write_script(config, layout))
        return "; ".join([*notes, str(check_script(script))])
    except MetierError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    json.dump([answer(changes) for changes in json.load(sys.stdin)], sys.stdout)
