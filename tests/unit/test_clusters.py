"""Clusters as configuration: every choice composes, and `metier cluster` fails in one line."""

import re
import sys
from pathlib import Path

import pytest

from launcher import clusters
from launcher.clusters import find_hints
from launcher.compose import compose_run
from launcher.slurm.drafts import DRAFTED
from launcher.slurm.request import plan_command, plan_directives, plan_setup, plan_srun
from launcher.slurm.script import write_script
from launcher.tools import Words
from launcher.tree import ConfigTree
from tests.cluster_case import slurm_run
from training.errors import ClusterError, ConfigError
from training.interface import find_interface, tell_gloo
from training.layout import RunLayout

TREE = ConfigTree(None)
CLUSTERS = TREE.choices("cluster")


def words(*plain: str, folder: Path | None = None, **flags: str) -> Words:
    pairs = tuple((f"--{name}", value) for name, value in flags.items())
    return Words(plain=plain, flags=pairs, tree=ConfigTree(folder))


@pytest.mark.parametrize("choice", CLUSTERS)
def test_every_cluster_composes_and_says_what_it_is(choice: str) -> None:
    config = compose_run(
        ["experiment=llama3_8b_full_zero3", f"cluster={choice}", "batch.global_batch_size=96"], TREE
    ).config
    assert TREE.summary("cluster", choice)
    if config.cluster.kind == "slurm":
        lines = plan_directives(config, RunLayout.of(config.run_root, config.name))
        assert any(line.startswith("--time=") for line in lines)
        assert plan_setup(config)
        assert plan_srun(config)
        assert plan_command(config, "training.worker", "run")[-1] == "run"


def test_the_name_of_a_cluster_of_ours_or_of_a_file_that_is_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="slurm is the name of a cluster that comes with this program"):
        clusters.run(words("init", "slurm", to=str(tmp_path)))
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"mine\.yaml exists already; remove it, or choose another"):
        clusters.run(words("init", "mine", folder=tmp_path))


def test_what_an_earlier_call_wrote_into_our_own_folder_is_no_cluster_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clusters, "OWN_FOLDER", tmp_path / "configs")
    (tmp_path / "configs" / "cluster").mkdir(parents=True)
    (tmp_path / "configs" / "cluster" / "mine.yaml").write_text(f"# nodes\n{DRAFTED} from what Slurm said\n")
    (tmp_path / "configs" / "cluster" / "ours.yaml").write_text("# nodes\n")
    with pytest.raises(ConfigError, match=r"^configs/cluster/mine\.yaml exists already; remove it, or"):
        clusters.run(words("init", "mine"))
    with pytest.raises(ConfigError, match="ours is the name of a cluster that comes with this program"):
        clusters.run(words("init", "ours"))


@pytest.mark.parametrize(
    ("plain", "flags", "message"),
    [
        (("inti", "x"), {}, "inti is no action; did you mean init?"),
        (("",), {}, "'' is no action; known here: init, show"),
        (("init",), {}, "wants one name"),
        (("init", "a", "b"), {}, "wants one name"),
        (("init", "a/b"), {}, "a cluster's name is made of letters"),
        (("init", "a", "partitoin=x"), {}, "did you mean partition?"),
        (("init", "a"), {"partiton": "x"}, "--partiton is no flag of this; did you mean --partition?"),
        (("init", "a"), {"to": ""}, "--to wants a value"),
    ],
)
def test_words_that_mean_nothing_are_one_line(
    plain: tuple[str, ...], flags: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        clusters.run(words(*plain, **flags))
    assert message in str(raised.value)


def test_a_machine_without_slurm_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for plain in (("show",), ("init", "mine", f"to={tmp_path}")):
        with pytest.raises(ClusterError, match="scontrol is not on this machine") as raised:
            clusters.run(words(*plain))
        assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_commands_without_a_cluster_behind_them_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        "#!/bin/sh\n"
        "echo 'scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host' >&2\nexit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ClusterError, match="no cluster behind them"):
        clusters.run(words("show"))


def test_network_devices_of_this_machine_are_hints(tmp_path: Path) -> None:
    assert list(find_hints(tmp_path)) == []
    layer = tmp_path / "mlx5_0" / "ports" / "1" / "link_layer"
    layer.parent.mkdir(parents=True)
    layer.write_text("InfiniBand\n")
    assert "fabric=infiniband" in next(find_hints(tmp_path))
    layer.write_text("Ethernet\n")
    assert "fabric=roce" in next(find_hints(tmp_path))


def test_no_interface_leads_to_this_very_machine_or_nowhere() -> None:
    assert find_interface("127.0.0.1") is None
    assert find_interface("256.0.0.1") is None


def test_gloo_is_not_told_what_somebody_has_said_or_nobody_knows() -> None:
    said = {"MASTER_ADDR": "10.0.0.1", "GLOO_SOCKET_IFNAME": "mine"}
    tell_gloo(said)
    assert said["GLOO_SOCKET_IFNAME"] == "mine"
    for environ in ({}, {"MASTER_ADDR": "localhost"}):
        before = dict(environ)
        tell_gloo(environ)
        assert environ == before


def test_the_lines_that_the_documentation_explains_stand_in_the_script() -> None:
    config = slurm_run(
        cluster__nodes=2,
        cluster__processes_per_node=2,
        batch__global_batch_size=8,
        cluster__preflight__mode="exclude",
        cluster__environment__modules=["cuda/12.4"],
    )
    written = write_script(config, RunLayout.of("runs", config.name)).replace(sys.executable, "python")
    script = [" ".join(line.split()) for line in written.splitlines()]
    text = Path("docs/slurm.md").read_text(encoding="utf-8")
    section = text.partition("## The job's script\n")[2].partition("\n## ")[0]
    quoted = [
        " ".join(line.split()) for line in section.replace("\\\n", "").splitlines() if line[:4].isspace()
    ]
    # Without those that name a folder or a fabric, or are cut short.
    exact = [line for line in quoted if line and not re.search(r"/shared/|\.\.\.|NCCL", line)]
    missing = [line for line in exact if line not in script]
    assert missing == []
    assert len(exact) > 20
