"""The shapes, corpora and variants that are compared; no package but numpy, for peers without Métier."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SEQUENCE_LENGTH = 512
DOCUMENTS = 40_000
MEAN_TOKENS = 155
SPREAD = 0.8

SHAPES: dict[str, dict[str, Any]] = {
    # 7.1 million parameters; tiny64k is the same with the vocabulary of a real model.
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 8192,
    },
    "nano16": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
SHAPES["tiny64k"] = SHAPES["tiny"] | {"vocab_size": 65_536}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What one process trains, and how."""

    variant: str
    """Who trains: a function of ``ours`` or ``peers``."""

    shape: str = "tiny"
    corpus: str = "blocks"
    precision: str = "fp32"
    sequence_length: int = SEQUENCE_LENGTH
    micro_batch_size: int = 4
    world_size: int = 1
    zero_stage: int = 0
    overrides: tuple[str, ...] = ()
    """Further settings of ours."""

    tokens_per_round: int = 8_192
    warm_steps: int = 2
    folder: str = ""
    """Where ours finds its corpus."""

    def to_json(self) -> str:
        """Write it for a command line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Case":
        """Read what ``to_json`` wrote."""
        return cls(**{**(values := json.loads(text)), "overrides": tuple(values["overrides"])})


def draw_lengths(corpus: str, sequence_length: int) -> npt.NDArray[np.int64]:
    """Give the lengths of a corpus's documents: the same for everybody.

    ``blocks``: every document fills a row, so that nobody packs or pads. ``sft``: log-normal, as instruction
    corpora are.
    """
    if corpus == "blocks":
        return np.full(DOCUMENTS // 8, sequence_length, dtype=np.int64)
    drawn = np.random.default_rng(0).lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, DOCUMENTS)
    return np.clip(drawn, 8, sequence_length).astype(np.int64)


def draw_documents(case: Case) -> list[list[int]]:
    """Give made-up token ids of each document."""
    rng = np.random.default_rng(1)
    lengths = draw_lengths(case.corpus, case.sequence_length)
    vocabulary = SHAPES[case.shape]["vocab_size"]
    ids = rng.integers(8, vocabulary, int(lengths.sum()))
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
