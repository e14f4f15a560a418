"""How a rank is started on its node: directly, through Apptainer, or in an image that srun opens."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.commands import package_variables
from training.config.schema import RunConfig
from training.errors import ConfigError
from training.files import is_url

LOCAL_FOLDERS = "METIER_LOCAL_FOLDERS"
"""Variable of the job's script: what each rank's shell evaluates on its node."""

_CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Caches that every rank writes, by default into the home folder: slow and racing on a shared disk."""


def plan_entry(config: RunConfig, arguments: Sequence[str]) -> list[str]:
    """Give the words that srun starts for each rank.

    A shell that sets the node's own folders (``plan_local_folders``) replaces itself by the rank's process
    (exec): nothing stands between Slurm's signals and the rank.

    Args:
        config: The run.
        arguments: Python's.

    Raises:
        ConfigError: No image is given, or a folder cannot be shown inside of it.
    """
    enter = f'eval "${{{LOCAL_FOLDERS}-}}"; exec "$@"'
    return ["bash", "-uc", enter, "rank", *_plan_python(config), *arguments]


def plan_container_srun(config: RunConfig, variables: Sequence[str]) -> list[str]:
    """Give srun's options for pyxis, and nothing for the others.

    Args:
        config: The run.
        variables: What must have the job's value inside, whatever the image says.

    Raises:
        ConfigError: No image is given, or a folder cannot be shown inside of it.
    """
    if config.cluster.container.kind != "pyxis":
        return []
    return [
        f"--container-image={_image(config)}",
        f"--container-mounts={','.join(_mounts(config))}",
        f"--container-workdir={Path.cwd()}",
        f"--container-env={','.join(variables)}",
    ]


def find_python(config: RunConfig) -> str:
    """Name the Python of the nodes."""
    named = config.cluster.environment.python
    if named is not None:
        return named
    return sys.executable if config.cluster.container.kind == "none" else "python"


def _plan_python(config: RunConfig) -> list[str]:
    if config.cluster.container.kind != "apptainer":
        return [find_python(config)]
    shown = [word for mount in _mounts(config) for word in ("--bind", mount)]
    gpus = ["--nv"] if config.cluster.gpus_per_node else []
    return ["apptainer", "exec", *gpus, "--pwd", str(Path.cwd()), *shown, _image(config), find_python(config)]


def plan_local_folders(config: RunConfig) -> str:
    """Give the line of shell that each rank's shell evaluates: the node's own folders for what is temporary.

    What the user named in ``cluster.environment.variables`` stays; where the folder cannot be made, all does.
    """
    local = config.cluster.local_path
    given = config.cluster.environment.variables
    folders = {name: f"$d/{folder}" for name, folder in _CACHES.items() if name not in given}
    if local is not None and "TMPDIR" not in given:
        folders["TMPDIR"] = "$d/tmp"
    exports = " ".join(f'{name}="{folder}"' for name, folder in folders.items())
    make = 'mkdir -p "$d/tmp"'
    if config.cluster.container.kind == "apptainer" and local is not None:
        # The word is the node's, so it cannot be among those that the login node wrote.
        exports += ' APPTAINER_BIND="${APPTAINER_BIND:+$APPTAINER_BIND,}$d"'
    return f'd="{local or "${TMPDIR:-/tmp}"}/metier-$(id -u)"; if {make}; then export {exports}; fi'


def _image(config: RunConfig) -> str:
    container = config.cluster.container
    if container.image is None:
        raise ConfigError(
            f"cluster.container.image is missing; cluster.container.kind={container.kind} needs one"
        )
    return container.image


def _mounts(config: RunConfig) -> list[str]:
    """Give /outside:/inside of everything that the ranks read and write, in one order, none twice.

    Raises:
        ConfigError: A folder's name holds a comma or a colon, by which mounts are told apart.
    """
    found = list(dict.fromkeys(_folders(config)))
    for folder in found:
        if "," in folder or ":" in folder:
            raise ConfigError(
                f"{folder} cannot be shown in a container: mounts are told apart by commas and colons; "
                "rename the folder, or reach it through a link"
            )
    mounts = [mount if ":/" in mount else _doubled(mount) for mount in config.cluster.container.mounts]
    return [f"{folder}:{folder}" for folder in found] + mounts


def _doubled(mount: str) -> str:
    path, _, mode = mount.partition(":")
    return f"{path}:{path}:{mode}" if mode else f"{path}:{path}"


def _folders(config: RunConfig) -> Iterator[str]:
    yield str(Path.cwd())
    yield str(Path(config.run_root).absolute())
    if not is_url(config.data.path):
        yield str(Path(config.data.path).absolute())
    for path in (config.model.folder, config.model.path, config.model.tokenizer):
        # A name on the hub looks like a folder's, and is none here.
        if path is not None and Path(path).is_dir():
            yield str(Path(path).absolute())
    own = package_variables().get("PYTHONPATH")
    if own:
        yield own
    local = config.cluster.local_path
    if config.cluster.container.kind == "pyxis" and local is not None:
        if "$" in local:
            raise ConfigError(
                f"cluster.local_path={local}: pyxis shows folders as the login node names them; "
                "write it without variables"
            )
        yield local
