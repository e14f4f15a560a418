"""What other loaders do with the corpus of ``tests.benchmarks.loader``; started by it.

    python loader_peers.py make|read KIND FOLDER SECONDS [SKIP]

It stands alone, for an environment without Métier: some peers need one of their own. All read documents in a
shuffled order and count tokens; none packs, so that none pays for what it does not do. ``make`` writes the
corpus in the peer's own format; ``read`` prints one line of JSON.
"""

import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

FIRST_TOKENS = 8 * 512
SHUFFLE_BUFFER = 10_000
CHUNK_BYTES = 12_000_000
TOKENISED_AT_ONCE = 1000
STUBS = {
    "torchvision": (),
    "torchvision.datasets": ("VisionDataset", "CIFAR10"),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": ("to_tensor",),
}


def memory() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: 1024 * int(value.split()[0]) for name, value in fields.items()}


class Meter:
    """Counts tokens, and what they cost, from its making on."""

    def __init__(self) -> None:
        self.before = memory()
        self.added = dict.fromkeys(self.before, 0)
        self.tokens = 0
        self.first_seconds = 0.0
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def add(self, tokens: int) -> None:
        self.tokens += tokens
        if not self.first_seconds and self.tokens >= FIRST_TOKENS:
            self.first_seconds = time.perf_counter() - self.wall

    def look(self) -> float:
        """Note the memory; give the seconds so far."""
        for name, value in memory().items():
            self.added[name] = max(self.added[name], value - self.before[name])
        return time.perf_counter() - self.wall

    def tell(self) -> str:
        cpu, wall = time.process_time() - self.cpu, self.look()
        return json.dumps(
            {
                "tokens": self.tokens,
                "per_cpu_second": self.tokens / cpu,
                "per_second": self.tokens / wall,
                "first_seconds": self.first_seconds,
                "anonymous_bytes": self.added["RssAnon"],
                "file_bytes": self.added["RssFile"],
            }
        )


def documents(folder: Path) -> Iterator[Any]:
    """Every document's token ids, uint16."""
    tokens, ends = np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "ends.npy")
    for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        yield np.array(tokens[begin:end])


def make_litdata(folder: Path, out: Path) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(out), chunk_bytes=CHUNK_BYTES)
    for number, ids in enumerate(documents(folder)):
        cache[number] = ids
    cache.done()
    cache.merge()


def read_litdata(out: Path, skip: int) -> Iterator[int]:
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(out), shuffle=True)
    if skip:
        dataset.load_state_dict(
            {
                **dataset.state_dict(num_samples_yielded=skip, num_workers=0, batch_size=1),
                "seed": dataset.seed,
            }
        )
    yield from map(len, dataset)


def import_streaming() -> Any:
    try:
        import streaming
    except (ImportError, RuntimeError):
        # Its vision datasets, which are not measured, want a torchvision that fits the torch here.
        import transformers.feature_extraction_utils  # noqa: F401 - it looks for torchvision itself, once

        for name in [name for name in sys.modules if name.partition(".")[0] in {"streaming", "torchvision"}]:
            del sys.modules[name]
        for name, things in STUBS.items():
            module = types.ModuleType(name)
            for thing in things:
                setattr(module, thing, type(thing, (), {}))
            sys.modules[name] = module
        import streaming
    return streaming


def make_streaming(folder: Path, out: Path) -> None:
    columns = {"ids": "ndarray:uint16"}
    with import_streaming().MDSWriter(out=str(out), columns=columns, size_limit=CHUNK_BYTES) as writer:
        for ids in documents(folder):
            writer.write({"ids": ids})


def read_streaming(out: Path, skip: int) -> Iterator[int]:
    dataset = import_streaming().StreamingDataset(local=str(out), shuffle=True, batch_size=8)
    if skip:
        dataset.load_state_dict(
            {"epoch": 0, "sample_in_epoch": skip, "num_canonical_nodes": 1, "shuffle_seed": 9176,
             "initial_physical_nodes": 1}
        )  # fmt: skip
    for sample in dataset:
        yield len(sample["ids"])


def make_datasets(folder: Path, out: Path) -> None:
    """Write the words that the tokens stand for, and train a tokenizer on them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    letters = np.array(list("etaoinshrdlu"))
    rng = np.random.default_rng(1)
    words = ["".join(letters[rng.integers(0, 12, rng.integers(2, 8))]) for _ in range(1 << 16)]
    out.mkdir(parents=True)
    with (out / "text.jsonl").open("w", encoding="utf-8") as lines:
        for ids in documents(folder):
            # Few words are common and many rare, as in a language.
            text = " ".join(words[int(place)] for place in (ids.astype(np.float64) ** 2 / 8000).astype(int))
            lines.write(json.dumps({"text": text}) + "\n")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    with (out / "text.jsonl").open(encoding="utf-8") as lines:
        sample = [json.loads(line)["text"] for _, line in zip(range(20_000), lines, strict=False)]
    tokenizer.train_from_iterator(sample, trainer)
    tokenizer.save(str(out / "tokenizer.json"))


def read_datasets(out: Path, skip: int) -> Iterator[int]:
    import datasets
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"ids": [encoding.ids for encoding in tokenizer.encode_batch(batch["text"])]}

    stream = datasets.load_dataset("json", data_files=str(out / "text.jsonl"), split="train", streaming=True)
    shuffled = stream.shuffle(seed=1, buffer_size=SHUFFLE_BUFFER)
    if skip:
        shuffled = shuffled.skip(skip)
    for document in shuffled.map(encode, batched=True, batch_size=TOKENISED_AT_ONCE, remove_columns=["text"]):
        yield len(document["ids"])


KINDS: dict[
    str, tuple[Callable[[Path, Path], None], Callable[[Path, int], Iterator[int]], Callable[[], Any]]
] = {
    "litdata": (make_litdata, read_litdata, lambda: __import__("litdata")),
    "mosaicml-streaming": (make_streaming, read_streaming, import_streaming),
    "datasets": (make_datasets, read_datasets, lambda: __import__("datasets")),
}


def main() -> None:
    action, kind, place, seconds, *rest = sys.argv[1:]
    make, read, load = KINDS[kind]
    load()
    out = Path(place) / kind
    if action == "make":
        if not out.exists():
            make(Path(place), out)
        return
    meter = Meter()
    for number, tokens in enumerate(read(out, int(rest[0]) if rest else 0)):
        meter.add(tokens)
        if (number % 500 == 499 or rest) and meter.look() > float(seconds):
            break
        if rest and meter.first_seconds:
            break
    print(meter.tell())


if __name__ == "__main__":
    main()
