"""`metier cluster init NAME | show`: a cluster's configuration from what its Slurm says."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from launcher.slurm.ask import ask_associations, ask_site
from launcher.slurm.drafts import DRAFTED, choose_partition, describe_site, draft_cluster
from launcher.tools import Words, refuse_flags
from launcher.tree import OWN_FOLDER
from training.config.names import nearest, show
from training.errors import ConfigError, StorageError

ACTIONS = ("init", "show")
_SETTINGS = ("partition", "to")
_DEVICES = Path("/sys/class/infiniband")

HELP = """\
metier cluster init NAME [--partition P] [--to FOLDER]
metier cluster show

On a login node: Slurm is asked what there is, nothing is submitted.

Actions
  init   write FOLDER/cluster/NAME.yaml for one partition: the default, or where that has no GPUs the one with
         most. FOLDER is that of --config-dir, else ./configs. A file that is there is not overwritten. What
         Slurm cannot tell is said, and left to you
  show   the partitions: limits, nodes, GPUs, cores, memory, preemption

Examples
  metier cluster init leonardo --partition boost
  metier train --config-dir configs cluster=leonardo cluster.nodes=2 ...
"""


def run(words: Words) -> int:
    """Do what the words say; give the exit code.

    Raises:
        ConfigError: The words name no action.
        ClusterError: There is no Slurm here, or it does not answer.
        StorageError: The file cannot be written.
    """
    refuse_flags(words, [f"--{name}" for name in _SETTINGS])
    action = words.plain[0] if words.plain else "show"
    if action not in ACTIONS:
        raise ConfigError(f"{show(action)} is no action{nearest(action, ACTIONS)}")
    if action == "show":
        if words.plain[1:] or words.flags:
            word = words.plain[1] if words.plain[1:] else words.flags[0][0]
            raise ConfigError(
                f"{word}: metier cluster show takes no further word; it shows this Slurm's partitions"
            )
        sys.stdout.write(describe_site(ask_site()))
        return 0
    settings = _read_settings(words)
    names = [word for word in words.plain[1:] if "=" not in word]
    if len(names) != 1:
        raise ConfigError("metier cluster init wants one name, for instance metier cluster init leonardo")
    path = _find_place(names[0], settings.get("to"), words)
    sys.stdout.write(_init(names[0], settings.get("partition"), path))
    return 0


def find_hints(devices: Path = _DEVICES) -> Iterator[str]:
    """Say what this machine's network devices suggest of the nodes'."""
    layers = {path.read_text().strip() for path in sorted(devices.glob("*/ports/*/link_layer"))}
    if "InfiniBand" in layers:
        yield "this login node has InfiniBand: network.fabric=infiniband is likely"
    elif "Ethernet" in layers:
        yield "this login node has RDMA over Ethernet: network.fabric=roce is likely"


def _init(name: str, partition: str | None, path: Path) -> str:
    site = ask_site()
    associations = ask_associations() or []
    accounts = list(dict.fromkeys(account for account, _, _ in associations))
    draft = draft_cluster(name, site, choose_partition(site, partition), accounts, list(find_hints()))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(draft.text)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})") from None
    lines = [
        f"written  {path}",
        *(f"found    {each}" for each in draft.found),
        *(f"unknown  {each}" for each in draft.unknown),
        f"next     metier train --config-dir {path.parent.parent} cluster={name} dry_run=true ...",
    ]
    return "\n".join(lines) + "\n"


def _find_place(name: str, to: str | None, words: Words) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"{name}: a cluster's name is made of letters, digits and _ . -")
    folder = Path(to) if to else words.tree.user_folder or Path("configs")
    path, own = folder / "cluster" / f"{name}.yaml", OWN_FOLDER / "cluster" / f"{name}.yaml"
    # Called where this program's own folder is ./configs, an earlier call has written there.
    if own.exists() and DRAFTED not in own.read_text(encoding="utf-8"):
        raise ConfigError(f"{name} is the name of a cluster that comes with this program; choose another")
    if path.exists():
        raise ConfigError(f"{path} exists already; remove it, or choose another name")
    return path


def _read_settings(words: Words) -> dict[str, str]:
    settings = {flag.removeprefix("--"): value for flag, value in words.flags}
    for word in words.plain:
        key, equals, value = word.partition("=")
        if equals:
            if key not in _SETTINGS:
                raise ConfigError(f"{word}: {key} is no setting of this{nearest(key, _SETTINGS)}")
            settings[key] = value
    for key, value in settings.items():
        if not value:
            raise ConfigError(f"--{key} wants a value: --{key} ...")
    return settings
