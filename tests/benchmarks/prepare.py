"""How fast `metier prepare` is beside the bare tokenizer, and how much memory a process needs.

    python -m tests.benchmarks.prepare [--mib 128] [--gib 4] [--rounds 3] [--kinds text chat] [--folder F]

Texts and chats of sentences from licences and Python's manual, their words shuffled so that no text repeats
another, with SmolLM2's tokenizer. Bare: the package `tokenizers` alone, encode_batch over the same rendered
texts with its own threads on all cores, reading and rendering not counted. Prepare: the whole call from
listing the sources to the manifest, start of its processes, reading, rendering, targets, shards, duplicates
included; and, beside it, the rate from the first encoded batch to the last. One process has one core and two
have two: on a core more, what the parent does would be done beside the one and be taken from the two.
Medians of interleaved rounds, each in a process of its own. The peak memory of the largest worker is told at
a quarter of the size, at the whole, and at --gib where that is asked for.
Goals: 85 % of bare, two processes 1.8 times one.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.corpus_case import configure, files_source

SOURCES = 8
BATCH = 512
KINDS = ("text", "chat")


def write_sources(folder: Path, kind: str, total_bytes: int) -> dict[str, Any]:
    """Write files of about ``total_bytes`` together, once; each is a source and so a part of its own."""
    from training.config.sources import LicencesSource, PythonTopicsSource
    from training.data.documents import Text
    from training.data.read import read_documents

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}{number}.jsonl" for number in range(SOURCES)]
    sources = {
        f"part{number}": files_source(
            path, documents="messages" if kind == "chat" else "text", family_field=None
        )
        for number, path in enumerate(paths)
    }
    if all(path.exists() for path in paths):
        return sources
    topics = PythonTopicsSource(kind="python_topics", max_documents=None)
    licences = LicencesSource(kind="licences", form="texts", clause_characters=1000, max_documents=400)
    documents = [*read_documents("topics", topics), *read_documents("licences", licences)]
    texts = [document.content.text for document in documents if isinstance(document.content, Text)]
    sentences = [part for text in texts for part in re.split(r"(?<=\.)\s+", text) if 20 < len(part) < 400]
    for number, path in enumerate(paths):
        draw = random.Random(number)
        written = 0
        with path.open("w") as lines:
            while written < total_bytes // SOURCES:
                line = json.dumps(_make_record(kind, sentences, draw)) + "\n"
                lines.write(line)
                written += len(line)
    return sources


def _make_record(kind: str, sentences: list[str], draw: random.Random) -> dict[str, Any]:
    def say(count: int) -> str:
        words = [sentence.split() for sentence in draw.choices(sentences, k=count)]
        return " ".join(" ".join(draw.sample(own, len(own))) for own in words)

    if kind == "text":
        return {"text": say(1 + int(draw.expovariate(1 / 12)))}
    turns = []
    for _ in range(draw.randint(1, 3)):
        turns.append({"role": "user", "content": say(1)})
        turns.append({"role": "assistant", "content": say(3)})
    return {"messages": turns}


def read_rendered(sources: dict[str, Any], tokenizer: Any) -> Iterator[str]:
    """Give each document as the text that is tokenised."""
    for source in sources.values():
        with Path(source["paths"][0]).open() as lines:
            for line in lines:
                record = json.loads(line)
                if "text" in record:
                    yield record["text"]
                else:
                    yield str(tokenizer.apply_chat_template(record["messages"], tokenize=False))


def measure_bare(model: str, sources: dict[str, Any]) -> dict[str, float]:
    """Tokenise all texts with the package alone, on all cores."""
    from training.model.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(model)
    bare = tokenizer.backend_tokenizer
    texts = read_rendered(sources, tokenizer)
    seconds, tokens = 0.0, 0
    while batch := list(islice(texts, BATCH)):
        started = time.perf_counter()
        encodings = bare.encode_batch(batch, add_special_tokens=False)
        seconds += time.perf_counter() - started
        tokens += sum(len(encoding) for encoding in encodings)
    return {"tokens_per_second": tokens / seconds, "tokens": tokens}


class Scale:
    """Watches the peak memory of this process's children (VmHWM, proc(5)) while it is entered.

    Not getrusage: there a child begins with what its parent weighed when it was forked.
    """

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while not self._is_over.wait(0.1):
            peaks = [read_peak_mib(number) for number in children.read_text().split()]
            self.peak_mib = max([self.peak_mib, *peaks])


def read_peak_mib(process: str) -> float:
    """Read a process's peak memory; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


class Clock:
    """Hears when the first and the last tokens were encoded."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.tokens = self.first_tokens = 0

    def begin(self, **_sizes: int) -> None: ...

    def enter(self, _phase: str) -> None: ...

    def advance(self, _documents: int, tokens: int, _read_bytes: int) -> None:
        self.last = time.perf_counter()
        if not self.first:
            self.first, self.first_tokens = self.last, tokens
        self.tokens += tokens


def measure_prepare(model: str, sources: dict[str, Any], processes: int) -> dict[str, float]:
    """Prepare a corpus; one process encodes in a process of its own, as two do."""
    from launcher.compose import compose_run
    from launcher.tree import ConfigTree
    from training.data.corpus.build import describe_tokenizer, prepare_corpus
    from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
    from training.prepare.pool import encode_in_processes

    words = ["experiment=tiny_smoke", "model.source=huggingface", f"model.path={model}"]
    config = compose_run([*words, "model.tokenizer=null"], ConfigTree(None)).config
    with tempfile.TemporaryDirectory(dir=Path(sources["part0"]["paths"][0]).parent) as folder:
        data = configure(
            Path(folder),
            sources=sources,
            tokens_per_shard=config.data.tokens_per_shard,
            held_out_fraction=0.1,
            duplicates={"near_threshold": 0.8},
        )
        tokenizer = load_tokenizer(config.model)
        facts = describe_tokenizer(tokenizer, tokenizer_fingerprint(tokenizer))
        clock = Clock()
        started = time.perf_counter()
        encode = partial(
            encode_in_processes, processes=processes, tokenizer=tokenizer, data=data, listener=clock
        )
        with Scale() as scale:
            prepare_corpus(data, facts, encode, clock)
        ended = time.perf_counter()
    return {
        "tokens": clock.tokens,
        "tokens_per_second": clock.tokens / (ended - started),
        "encoding_tokens_per_second": (clock.tokens - clock.first_tokens) / (clock.last - clock.first),
        "start_seconds": clock.first - started,
        "end_seconds": ended - clock.last,
        "worker_mib": scale.peak_mib,
        "parent_mib": read_peak_mib("self"),
    }


def measure_apart(model: str, sources: dict[str, Any], processes: int) -> dict[str, float]:
    """Measure in a process of its own; 0 processes: the bare tokenizer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.prepare", "--one", str(processes), "--folder", model],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def prepare_tokenizer(folder: Path) -> Path:
    """Write SmolLM2's folder once, as `metier prepare` does."""
    from launcher.compose import compose_run
    from launcher.tree import ConfigTree
    from training.model.source import prepare_model

    model = folder / "smollm2"
    words = ["experiment=medical_lora_smol", f"model.folder={model}"]
    config = compose_run(words, ConfigTree(None)).config
    return prepare_model(config.model, config.seed)


def compare(folder: Path, model: str, mib: int, rounds: int, kinds: list[str], console: Console) -> Table:
    """Time bare, one and two processes in turn."""
    table = Table(
        *("kind", "what", "tokens/s", "of bare", "x one process"),
        *("while encoding", "of bare", "x one process", "start s", "end s"),
        box=None,
    )
    for kind in kinds:
        sources = write_sources(folder / f"{mib}", kind, mib << 20)
        found: dict[int, list[dict[str, float]]] = {0: [], 1: [], 2: []}
        for _ in track(range(rounds), description=kind, console=console, transient=True):
            for processes, measured in found.items():
                measured.append(measure_apart(model, sources, processes))
        rates = {
            name: [statistics.median(one.get(name, 0.0) for one in measured) for measured in found.values()]
            for name in (
                *("tokens_per_second", "encoding_tokens_per_second"),
                *("start_seconds", "end_seconds"),
            )
        }
        bare = rates["tokens_per_second"][0]
        table.add_row(kind, f"bare, {os.cpu_count()} cores", f"{bare:,.0f}")
        for processes in (1, 2):
            row = [kind, f"{processes} process{'es' if processes > 1 else ''}"]
            for name in ("tokens_per_second", "encoding_tokens_per_second"):
                rate, alone = rates[name][processes], rates[name][1]
                row += [f"{rate:,.0f}", f"{rate / bare:.2f}", f"{rate / alone:.2f}"]
            row += [f"{rates[name][processes]:.1f}" for name in ("start_seconds", "end_seconds")]
            table.add_row(*row)
    return table


def weigh(folder: Path, model: str, sizes: list[int], kinds: list[str]) -> Table:
    """Tell the peak memory at several sizes of the input."""
    table = Table("kind", "input MiB", "million tokens", "largest worker MiB", "parent MiB", box=None)
    for kind in kinds:
        for size in sizes:
            sources = write_sources(folder / f"{size}", kind, size << 20)
            found = measure_apart(model, sources, 2)
            table.add_row(
                kind,
                f"{size:,}",
                f"{found['tokens'] / 1e6:.1f}",
                f"{found['worker_mib']:,.0f}",
                f"{found['parent_mib']:,.0f}",
            )
    return table


def main() -> None:
    """Print two tables, or one measurement as JSON where this process is one of the measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--gib", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "metier-benchmark-prepare"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.one is not None:
        if wanted.one:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: wanted.one])
        sources = json.load(sys.stdin)
        model = str(wanted.folder)
        found = measure_prepare(model, sources, wanted.one) if wanted.one else measure_bare(model, sources)
        sys.stdout.write(json.dumps(found))
        return
    console = Console(width=None if sys.stdout.isatty() else 140)
    model = str(prepare_tokenizer(wanted.folder))
    console.print(compare(wanted.folder, model, wanted.mib, wanted.rounds, wanted.kinds, console))
    sizes = [wanted.mib // 4, wanted.mib, *([wanted.gib << 10] if wanted.gib else [])]
    console.print(weigh(wanted.folder, model, sizes, wanted.kinds))


if __name__ == "__main__":
    main()
