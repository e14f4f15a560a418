"""The folder of a cluster, as its daemons find it when they start."""

import os
import shutil
from pathlib import Path

from tests.slurm import settings as texts
from tests.slurm.settings import LOGIN, Settings

_FOLDERS = ("etc", "state", "spool", "log", "run", "dev", "local", "shared")
_NULL_DEVICE = os.makedev(1, 3)
_CHARACTER_DEVICE = 0o020666
_KEY_BYTES = 1024
_NAMES_FROM_FILES = "passwd: files\ngroup: files\nshadow: files\nhosts: files\n"


def write_files(settings: Settings) -> None:
    """Make the folder of a cluster anew."""
    for name in _FOLDERS:
        shutil.rmtree(settings.root / name, ignore_errors=True)
        (settings.root / name).mkdir(parents=True)
    for name in (LOGIN, *settings.node_names):
        (settings.root / "nodes" / name).mkdir(parents=True, exist_ok=True)
        (settings.root / "spool" / name).mkdir()
    etc = settings.root / "etc"
    settings.slurm_conf.write_text(texts.slurm_conf(settings))
    (etc / "gres.conf").write_text(texts.gres_conf(settings, _devices(settings)))
    (etc / "plugstack.conf").touch()
    (etc / "job_submit.lua").write_text(texts.JOB_SUBMIT_LUA)
    # Without DNS every look-up of a peer's name would take 10 s: c10d does one for each connection.
    (etc / "hosts").write_text(texts.hosts_file(settings))
    (etc / "nsswitch.conf").write_text(_NAMES_FROM_FILES)
    (etc / "resolv.conf").touch()
    if settings.tracking == "cgroup":
        # It must be there before slurmd starts: or slurmstepd looks for a folder "freezer(null)".
        (etc / "cgroup.conf").write_text(texts.CGROUP_CONF)
    if settings.accounting:
        _write_secret(etc / "slurmdbd.conf", texts.slurmdbd_conf(settings).encode())
    _write_secret(settings.root / "run/munge.key", os.urandom(_KEY_BYTES))
    texts.save(settings)


def _write_secret(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _devices(settings: Settings) -> list[str]:
    devices = []
    for index in range(settings.gpus):
        device = settings.root / f"dev/nvidia{index}"
        try:
            os.mknod(device, _CHARACTER_DEVICE, _NULL_DEVICE)
            device.chmod(0o666)
        except PermissionError:
            # Whoever may not make devices names some that are there and end with the digit.
            device = Path(f"/dev/tty{index}")
        devices.append(str(device))
    return devices
