"""`metier checkpoints RUN [ACTION]`: looks after what a run has saved, in a process without torch."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.commands import merge_environment, package_variables
from launcher.processes import run_here
from launcher.tools import Words, refuse_flags
from training.config.names import nearest, show
from training.errors import ConfigError

ACTIONS = ("list", "verify", "prune", "convert")
_RUN_ROOT = "runs"

HELP = """\
metier checkpoints RUN [ACTION] [step=N] [to=FOLDER] [damaged=all]

RUN is a run's folder, or its name in runs/.

Actions
  list      one line per checkpoint: step, samples, loss, score, ranks, ZeRO stage, size, state (the default)
  verify    read every byte of all of them, or of step=N, and compare with the checksums
  prune     drop what loop.keep_checkpoints and loop.keep_every_steps do not keep; the best one stays. Those
            that were set aside as damaged go as well, once a checkpoint of their step or later verifies;
            with damaged=all they go in any case
  convert   write the newest, or step=N, as safetensors: weight.safetensors (fp32 weights under the model's
            names) and one file per moment of the optimizer, into RUN/state_STEP, or to=FOLDER; a whole
            Hugging Face folder is what `metier export` writes. The folder must be new or empty, or hold an
            earlier conversion of this run

A training goes on from its checkpoints on any number of devices and under any ZeRO stage: nothing needs to
be converted for that.

Examples
  metier checkpoints medical_qlora_smol
  metier checkpoints medical_qlora_smol verify
  metier checkpoints medical_qlora_smol convert to=state
"""


def run(words: Words) -> int:
    """Do what the words say; give the exit code.

    Args:
        words: A run's folder, or its name in ``runs``; an action; ``step=N``, ``to=FOLDER`` and
            ``damaged=all`` for some.

    Raises:
        ConfigError: The words name no run or no action.
    """
    refuse_flags(words)
    plain = [word for word in words.plain if "=" not in word]
    settings = _read_settings(words.plain)
    root = _find_run(plain)
    action = plain[1] if plain[1:] else "list"
    if action not in ACTIONS:
        raise ConfigError(f"{show(action)} is no action{nearest(action, ACTIONS)}")
    if plain[2:]:
        raise ConfigError(f"{plain[2]}: one action at a time; a setting is step=N or to=FOLDER")
    wanted = {"verify": {"step"}, "prune": {"damaged"}, "convert": {"step", "to"}}.get(action, set())
    for key in settings:
        if key not in wanted:
            known = ", ".join(sorted(wanted)) or "none"
            raise ConfigError(f"{key} is no setting of {action}; it has {known}")
    step = settings.get("step", "")
    if step and not step.isdecimal():
        raise ConfigError(f"step={step}: wanted a number of steps")
    command = [sys.executable, "-m", "training.upkeep", str(root), action]
    if settings.get("damaged", "all") != "all":
        raise ConfigError(f"damaged={settings['damaged']}: wanted damaged=all, or nothing")
    # An empty step is the newest.
    command += [step, *(settings[key] for key in ("to", "damaged") if settings.get(key))]
    return run_here(command, merge_environment(os.environ, package_variables()))


def _read_settings(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.split("=", 1) for word in words if "=" in word]
    settings: dict[str, str] = {}
    for key, value in pairs:
        if key in settings:
            raise ConfigError(f"{key}={settings[key]} {key}={value}: say {key} once")
        settings[key] = value
    return settings


def _find_run(plain: Sequence[str]) -> Path:
    if not plain:
        raise ConfigError("name a run: metier checkpoints RUN [list|verify|prune|convert]")
    for folder in (Path(plain[0]), Path(_RUN_ROOT) / plain[0]) if plain[0] else ():
        if (folder / "run.json").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in Path(_RUN_ROOT).glob("*/run.json"))
    if not plain[0]:
        raise ConfigError(f"'' is no run's name{nearest('', known)}")
    raise ConfigError(
        f"{plain[0]} is no run, neither {plain[0]}/run.json nor {_RUN_ROOT}/{plain[0]}/run.json exists"
        f"{nearest(plain[0], known)}"
    )
