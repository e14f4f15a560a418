"""What it takes a rank to get its model under ZeRO-3: built in shares, against whole and then cut.

    python -m tests.benchmarks.loading [--parameters MILLIONS] [--ranks 1 2 4] [--folder FOLDER]

A Llama of random weights is written as sharded bf16 safetensors. Then for each cell ranks are started: they
import everything, make an engine of a tiny model, and note where their memory stands (the interpreter's base,
which is not counted). From there on the memory that a process has for itself is watched, until the model is
built, and until the engine stands. Pages of mapped files are the page cache's, which all ranks of a node
share and which the system takes back when it needs them: they are told apart. The bound: a rank's share and
one layer, as the files have it. On a CPU a whole bf16 model is mapped, and read when the engine cuts it.
"""

import argparse
import gc
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.ranks.spawn import on_ranks

MIB = 1 << 20
METHODS = {"none": ("adapter=none",), "qlora": ("adapter=qlora",)}
HIDDEN, INNER = 1024, 2816
LAYER_PARAMETERS = 3 * HIDDEN * INNER + 3 * HIDDEN * HIDDEN
LAYER_BYTES = 2 * LAYER_PARAMETERS
"""As the files have it, in bf16."""


def write_model(folder: Path, millions: int) -> None:
    """Write a Llama of about so many parameters, in layers of 12 million."""
    from tests.model_folders import write_llama

    layers = max(1, round(millions * 1e6 / LAYER_PARAMETERS))
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    write_llama(folder, shard_bytes=128 * MIB, **sizes, **heads)


def configure(folder: Path, method: str, ranks: int) -> Any:
    from launcher.compose import compose_run
    from launcher.tree import ConfigTree

    settings = {
        "model.source": "huggingface",
        "model.path": folder,
        "model.tokenizer": "null",
        "precision": "bf16",
        "strategy.zero_stage": 3,
        "cluster.processes_per_node": ranks,
        "batch.global_batch_size": 4,
        "batch.micro_batch_size": 4 // ranks,
    }
    values = [*METHODS[method], *(f"{key}={value}" for key, value in settings.items())]
    return compose_run(["experiment=tiny_smoke", *values], ConfigTree.open(None)).config


def read_memory() -> dict[str, int]:
    """Give the bytes that this process has for itself, and those of mapped files that it looks at."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return {"own": found["RssAnon"], "mapped": found["RssFile"]}


class Watch:
    """Remembers the highest that was seen while it runs."""

    def __init__(self) -> None:
        gc.collect()
        self.start, self.peak = read_memory(), read_memory()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            self._keep()

    def _keep(self) -> None:
        self.peak = {key: max(value, self.peak[key]) for key, value in read_memory().items()}

    def end(self) -> dict[str, int]:
        """Stop, and give what was taken."""
        self._ended.set()
        self._thread.join()
        return self.taken()

    def taken(self) -> dict[str, int]:
        """Give what was taken at most so far, beyond the start."""
        self._keep()
        return {key: self.peak[key] - self.start[key] for key in self.peak}


def measure(root: Path, method: str, ranks: int) -> dict[str, dict[str, float]]:
    """Build the model on this rank in both ways, and hand it to an engine."""
    from tests.ranks.test_engine import open_place
    from tests.ranks.test_partitioned import build_whole, bytes_of_share
    from training.engine.deepspeed_engine import DeepSpeedEngine
    from training.engine.partition import build_share

    tiny, large = (configure(root / name, method, ranks) for name in ("tiny", "large"))
    place, found = open_place(large), {}
    builders = {"in shares": lambda config: build_share(config, place)[0], "whole": build_whole}
    for way, build in builders.items():
        DeepSpeedEngine(build(tiny), tiny, place).close()
        watch, started, cpu = Watch(), time.perf_counter(), time.process_time()
        model = build(large)
        seconds, cpu, built = time.perf_counter() - started, time.process_time() - cpu, watch.taken()
        engine = DeepSpeedEngine(model, large, place)
        ready = watch.end()
        found[way] = {
            "base": watch.start["own"],
            "built": built["own"],
            "mapped": ready["mapped"],
            "ready": ready["own"],
            "share": sum(bytes_of_share(parameter) for parameter in model.parameters()),
            "seconds": seconds,
            "cpu": cpu,
        }
        engine.close()
        del engine, model
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, default=200, metavar="MILLIONS")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    # What is let go of goes back to the system at once, and is not hidden in the allocator's reserve.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    root = Path(tempfile.mkdtemp(dir=given.folder))
    columns = (
        "adapter",
        "ranks",
        "built",
        "base",
        "share",
        "building",
        "of share + layer [1]",
        "engine stands",
    )
    table = Table(*columns, "mapped", "seconds", "CPU seconds", title="MB of the worst rank, above its base")
    try:
        write_model(root / "large", given.parameters)
        write_model(root / "tiny", 1)
        for method in METHODS:
            for ranks in given.ranks:
                answers = on_ranks(ranks, measure, root, method, ranks, fresh=True)
                for way in ("whole", "in shares"):
                    table.add_row(method, str(ranks), way, *tell([answer[way] for answer in answers]))
    finally:
        shutil.rmtree(root)
    Console(width=150).print(table)


def tell(answers: list[dict[str, float]]) -> list[str]:
    """Write the figures of a row: the worst rank's."""
    worst = {key: max(answer[key] for answer in answers) for key in answers[0]}
    megabytes = {key: f"{value / 1e6:.0f}" for key, value in worst.items()}
    return [
        megabytes["base"],
        megabytes["share"],
        megabytes["built"],
        f"{worst['built'] / (worst['share'] + LAYER_BYTES):.2f}",
        megabytes["ready"],
        megabytes["mapped"],
        f"{worst['seconds']:.1f}",
        f"{worst['cpu']:.1f}",
    ]


if __name__ == "__main__":
    main()
