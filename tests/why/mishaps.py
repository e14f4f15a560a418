"""More faults that people meet, provoked for real: what the catalogue was first asked blind."""

import contextlib
import gzip
import json
import os
import shutil
import signal
import sys
import sysconfig
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.why.commands import CHAT, CHATS
from tests.why.means import NOBODY, TORCHRUN, listening_port, put_back, save_run, small_disk
from tests.why.work import LONG, TINY, TWO, Work, wait_for

_READER = (*NOBODY, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""Another user who may look into every folder, and write into none of ours."""

_MEMORY = Path("/sys/fs/cgroup/memory")
_HOSTS = (
    *TINY,
    "cluster=torchrun",
    "cluster.nodes=2",
    "cluster.gpus_per_node=0",
    "cluster.head_address=127.0.0.1",
)


def shard_cut_short(work: Work) -> None:
    for path in work.folder.glob("data/*/shards/*.arrow"):
        path.chmod(0o644)
        os.truncate(path, path.stat().st_size // 2)
    work.metier("train", *TWO)


def shard_gone(work: Work) -> None:
    for path in work.folder.glob("data/*/shards/*.arrow"):
        path.unlink()
    work.metier("train", *TWO)


def disk_filled_by_another(work: Work) -> None:
    with small_disk(work.folder / "runs", "size=60M"):
        with work.started("train", *LONG, "loop.max_steps=200"):
            work.wait_for_step(25)
            with contextlib.suppress(OSError), (work.folder / "runs" / "another").open("wb") as file:
                while True:
                    file.write(bytes(4096))
        save_run(work)
    put_back(work)


def no_name_left(work: Work) -> None:
    with small_disk(work.folder / "runs", "size=60M,nr_inodes=30"):
        work.metier("train", *TWO, "loop.max_steps=400", "loop.checkpoint_every_steps=4")
        save_run(work)
    put_back(work)


def right_taken_away(work: Work) -> None:
    (work.folder / "runs").mkdir()
    os.chown(work.folder / "runs", 65534, 65534)
    with work.started("train", *LONG, "loop.max_steps=60", before=_READER):
        work.wait_for_step(25)
        os.chown(work.run / "checkpoints", 0, 0)
        (work.run / "checkpoints").chmod(0o755)


def rank_aborted(work: Work) -> None:
    with work.started("train", *LONG):
        work.wait_for_step(4)
        os.kill(work.rank(0), signal.SIGABRT)


def torchrun_killed(work: Work) -> None:
    with work.started("train", *LONG) as command:
        work.wait_for_step(4)
        os.kill(torchrun_of(command.pid), signal.SIGKILL)


def model_not_finite(work: Work) -> None:
    for path in work.folder.glob("models/*/*.safetensors"):
        weights = load_file(path)
        name = next(name for name in sorted(weights) if "mlp" in name)
        weights[name] = torch.full_like(weights[name], float("nan"))
        save_file(weights, path, metadata={"format": "pt"})
    work.metier("train", *TWO)


def address_space(work: Work) -> None:
    work.metier("train", *TWO, before=("prlimit", f"--as={3 << 29}"))


def cgroup_memory(work: Work) -> None:
    group = _MEMORY / f"metier-why-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(700 << 20))
    try:
        work.metier("train", *LONG, before=("sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"))
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the end of the group")
        group.rmdir()


def processor_time(work: Work) -> None:
    work.metier("train", *LONG, before=("prlimit", "--cpu=15:30"))


def file_size(work: Work) -> None:
    work.metier("train", *TWO, before=("prlimit", f"--fsize={60 << 10}"))


def disk_broken(work: Work) -> None:
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fsync,fdatasync")
    inject = ("-e", "inject=fsync,fdatasync:error=EIO:when=12+")
    work.metier("train", *TWO, "loop.max_steps=40", before=(*strace, *inject))


def library_gone(work: Work) -> None:
    masked(work, "torch/lib")


def package_gone(work: Work) -> None:
    masked(work, "deepspeed")


def tokenizer_gone(work: Work) -> None:
    work.take_run()
    for path in work.folder.glob("models/*/tokenizer*"):
        path.unlink()
    work.metier("evaluate", "name=mine")


def port_of_head_in_use(work: Work) -> None:
    with listening_port() as port:
        work.metier("train", *_HOSTS, f"cluster.head_port={port}", "--node-rank=0")


def other_host_never_comes(work: Work) -> None:
    with listening_port() as port:
        pass
    work.metier("train", *_HOSTS, f"cluster.head_port={port}", "cluster.timeout_seconds=15", "--node-rank=0")


def first_rank_stopped(work: Work) -> None:
    with work.started("train", *LONG, "cluster.watch.step_seconds=8") as command:
        work.wait_for_step(30)
        os.kill(work.rank(0), signal.SIGSTOP)
        command.wait(110)


def terminal_closed(work: Work) -> None:
    with work.started("train", *LONG) as command:
        work.wait_for_step(4)
        command.send_signal(signal.SIGHUP)
    wait_for(lambda: not work.ranks(), "the end of the ranks")


def run_removed(work: Work) -> None:
    """What is left behind is what lets the fault be recorded: the logs."""
    with work.started("train", *LONG):
        work.wait_for_step(10)
        for path in (work.run / "checkpoints", work.run / "incarnations"):
            shutil.rmtree(path, ignore_errors=True)


def config_of_fewer_tokens(work: Work) -> None:
    configure(work, vocab_size=64)
    work.metier("train", *TWO)


def config_of_another_size(work: Work) -> None:
    configure(work, intermediate_size=200)
    work.metier("train", *TWO)


def configure(work: Work, **changed: int) -> None:
    """Mix the model's weights with the config.json of another."""
    for path in work.folder.glob("models/*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def run_json_cut_short(work: Work) -> None:
    work.take_run()
    frozen = work.run / "run.json"
    os.truncate(frozen, frozen.stat().st_size // 2)
    work.do(*TORCHRUN, "--standalone", "--nproc-per-node=1", "-m", "training.worker", str(work.run))


def source_cut_short(work: Work) -> None:
    """A download of the data that ended early."""
    content = gzip.compress("".join(json.dumps(CHAT) + f"{n}\n" for n in range(3000)).encode())
    (work.folder / "chats.jsonl.gz").write_bytes(content[: len(content) // 2])
    words = [word.replace("chats.jsonl", "chats.jsonl.gz") for word in CHATS]
    work.metier("prepare", *words, "data.path=data/mine")


def masked(work: Work, folder: str) -> None:
    """A node on which a folder of the environment is empty: a rank sees it so, and nobody else."""
    work.take_run()
    rank = (sys.executable, "-m", "training.worker", str(work.run))
    shell = f'mount -t tmpfs none {sysconfig.get_path("purelib")}/{folder}; exec "$@"'
    work.do("unshare", "-m", "sh", "-c", shell, "sh", *rank)


def torchrun_of(parent: int) -> int:
    (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return int(child)


CASES = {
    "checkpoints_without_run.cut": run_json_cut_short,
    "shard_damaged.cut": shard_cut_short,
    "shard_missing": shard_gone,
    "disk_full.another": disk_filled_by_another,
    "disk_full.names": no_name_left,
    "permission_denied.later": right_taken_away,
    "rank_crashed.abort": rank_aborted,
    "killed_without_word.torchrun": torchrun_killed,
    "model_not_finite": model_not_finite,
    "memory_exhausted.start": address_space,
    "rank_killed.cgroup": cgroup_memory,
    "processor_time": processor_time,
    "file_too_large": file_size,
    "disk_broken": disk_broken,
    "library_missing": library_gone,
    "package_missing.folder": package_gone,
    "tokenizer_missing": tokenizer_gone,
    "port_in_use.hosts": port_of_head_in_use,
    "host_missing": other_host_never_comes,
    "hang.first": first_rank_stopped,
    "stopped_by_notice.terminal": terminal_closed,
    "run_removed": run_removed,
    "config_mismatch": config_of_another_size,
    "config_mismatch.tokens": config_of_fewer_tokens,
    "source_damaged": source_cut_short,
}
