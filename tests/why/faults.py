"""Faults of trainings, provoked for real here; some need root, for a small disk or another user."""

import os
import shutil
import signal
import subprocess
import sys

from tests.why.means import (
    KEEPS_READING,
    NOBODY,
    TORCHRUN,
    half_a_run,
    hit,
    listening_port,
    meet,
    put_back,
    save_run,
    small_disk,
    stop_a_rank,
)
from tests.why.work import FAKE_KEY, LONG, TWO, Work


def settings_changed(work: Work) -> None:
    half_a_run(work)
    work.metier("train", *LONG, "optimizer.learning_rate=1e-4")


def shard_damaged(work: Work) -> None:
    for path in work.folder.glob("data/*/shards/*.arrow"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.chmod(0o644)
        path.write_bytes(content)
    work.metier("train", *TWO)


def loss_not_finite(work: Work) -> None:
    work.metier("train", *TWO, "optimizer.learning_rate=1e30", "loop.max_skipped_in_a_row=2")


def rank_killed(work: Work) -> None:
    hit(work, 1, signal.SIGKILL)


def rank_crashed(work: Work) -> None:
    hit(work, 1, signal.SIGSEGV)


def collective_timeout(work: Work) -> None:
    stop_a_rank(work, "cluster.timeout_seconds=10", "cluster.watch.enabled=false")


def hang(work: Work) -> None:
    stop_a_rank(work, "cluster.timeout_seconds=300", "cluster.watch.step_seconds=8")


def stopped_by_notice(work: Work) -> None:
    with work.started("train", *LONG) as command:
        work.wait_for_step(4)
        command.send_signal(signal.SIGTERM)


def stopped_by_user(work: Work) -> None:
    with work.started("train", *LONG):
        work.wait_for_step(4)
        words = work.command("stop", "mine")
        subprocess.run(words, cwd=work.folder, env=work.environment(), check=True)


def killed_without_word(work: Work) -> None:
    with work.started("train", *LONG) as command:
        work.wait_for_step(4)
        work.rank(1)
        os.killpg(command.pid, signal.SIGKILL)
        for pid in work.ranks().values():
            os.kill(pid, signal.SIGKILL)


def fenced(work: Work) -> None:
    with work.started("train", *LONG) as first:
        work.wait_for_step(25)
        second = subprocess.Popen(
            work.command("train", *LONG),
            cwd=work.folder,
            env=work.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            first.wait(100)
        finally:
            second.send_signal(signal.SIGTERM)
            second.wait(60)


def peer_lost(work: Work) -> None:
    """Two ranks as srun starts them; of the one that dies only the other can tell."""
    half_a_run(work)
    with listening_port() as port:
        pass
    common = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    before = work.steps()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "training.worker", str(work.run)],
            cwd=work.folder,
            env=work.environment(RANK=str(rank), LOCAL_RANK=str(rank), **common),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    work.wait_for_step(before + 5)
    ranks[1].kill()
    for rank in ranks:
        rank.wait(60)
    work.keep("")


def checkpoints_damaged(work: Work) -> None:
    half_a_run(work)
    for path in work.run.glob("checkpoints/step_*/rank_*.bin"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    work.metier("train", *LONG)


def checkpoints_without_run(work: Work) -> None:
    half_a_run(work)
    (work.run / "run.json").unlink()
    work.metier("train", *LONG)


def base_changed(work: Work) -> None:
    half_a_run(work)
    for path in work.folder.glob("models/*/*.safetensors"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    work.metier("train", *LONG)


def model_incomplete(work: Work) -> None:
    for path in work.folder.glob("models/*/*.safetensors"):
        os.truncate(path, path.stat().st_size // 2)
    work.metier("train", *TWO)


def disk_full(work: Work) -> None:
    with small_disk(work.folder / "runs", "size=2M"):
        work.metier("train", *TWO, "loop.max_steps=40", "loop.checkpoint_every_steps=4")
        save_run(work)
    put_back(work)


def read_only(work: Work) -> None:
    with small_disk(work.folder / "runs", "size=8M,ro"):
        work.metier("train", *TWO)


def permission_denied(work: Work) -> None:
    (work.folder / "runs").mkdir(mode=0o755)
    work.metier("train", *TWO, before=NOBODY)


def quota_exceeded(work: Work) -> None:
    # Every sync of a file says what a quota says: the run cannot even be begun.
    strace = ("strace", "-f", "-qq", "-o", "/dev/null", "--seccomp-bpf", "-e", "trace=fsync")
    inject = ("-e", "inject=fsync:error=EDQUOT:when=1+")
    work.metier("train", *TWO, before=(*strace, *inject))


def memory_exhausted(work: Work) -> None:
    limit = ("prlimit", f"--as={6 << 30}")
    work.metier("train", *TWO, "batch.micro_batch_size=4096", "batch.global_batch_size=8192", before=limit)


def open_files(work: Work) -> None:
    work.metier("train", *TWO, before=("prlimit", "--nofile=24"))


def threads_limit(work: Work) -> None:
    # Everything that this user may have running, threads included.
    work.metier("train", *TWO, before=("prlimit", "--nproc=12", *KEEPS_READING))


def world_size_wrong(work: Work) -> None:
    work.take_run()
    work.do(*TORCHRUN, "--standalone", "--nproc-per-node=3", "-m", "training.worker", str(work.run))


def environment_incomplete(work: Work) -> None:
    work.take_run()
    work.do(sys.executable, "-m", "training.worker", str(work.run), RANK="0")


def package_missing(work: Work) -> None:
    work.take_run()
    work.do("/usr/bin/python3", "-m", "training.worker", str(work.run), RANK="0")


def port_in_use(work: Work) -> None:
    work.take_run()
    with listening_port() as port:
        endpoint = ("--nnodes=1", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}")
        work.do(*TORCHRUN, *endpoint, "-m", "training.worker", str(work.run))


def head_unreachable(work: Work) -> None:
    work.take_run()
    work.do(*TORCHRUN, *meet("127.0.0.1:9"), "-m", "training.worker", str(work.run))


def interface_missing(work: Work) -> None:
    work.take_run()
    work.metier("train", *TWO, GLOO_SOCKET_IFNAME="eth9")


def head_unknown(work: Work) -> None:
    """A rank as srun starts it, with a head that no name service knows."""
    work.take_run(timeout_seconds=10)
    here = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "29400"}
    work.do(
        sys.executable, "-m", "training.worker", str(work.run), MASTER_ADDR="no-such-host.invalid", **here
    )


def wandb_no_key(work: Work) -> None:
    work.metier("train", *TWO, "tracker=online")


def wandb_unreachable(work: Work) -> None:
    work.metier("train", *TWO, "tracker=online", WANDB_API_KEY=FAKE_KEY, WANDB_BASE_URL="http://127.0.0.1:9")


def checkpoint_missing(work: Work) -> None:
    work.take_run()
    shutil.rmtree(work.run / "checkpoints", ignore_errors=True)
    work.metier("export", "name=mine")


CASES = [
    settings_changed,
    shard_damaged,
    loss_not_finite,
    rank_killed,
    rank_crashed,
    collective_timeout,
    hang,
    stopped_by_notice,
    stopped_by_user,
    killed_without_word,
    fenced,
    peer_lost,
    checkpoints_damaged,
    checkpoints_without_run,
    base_changed,
    model_incomplete,
    disk_full,
    read_only,
    permission_denied,
    quota_exceeded,
    memory_exhausted,
    open_files,
    threads_limit,
    world_size_wrong,
    environment_incomplete,
    package_missing,
    port_in_use,
    head_unreachable,
    interface_missing,
    head_unknown,
    wandb_no_key,
    wandb_unreachable,
    checkpoint_missing,
]
