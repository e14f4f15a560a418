"""Faults that a command refuses before anything starts, or while it prepares."""

import json

from tests.why.work import TINY, TWO, Work

CHAT = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
CHATS = (
    "experiment=tiny_smoke",
    "data=files_chat",
    "name=mine",
    "data.sources.files.paths=[chats.jsonl]",
)


def setting_unknown(work: Work) -> None:
    work.metier("train", *TINY, "optimizer.learning_rat=1")


def choice_unknown(work: Work) -> None:
    work.metier("train", *TINY, "strategy=zero4")


def setting_value(work: Work) -> None:
    work.metier("train", *TINY, "loop.max_steps=ten")


def batch_indivisible(work: Work) -> None:
    work.metier("train", *TWO, "batch.global_batch_size=3")


def combination_refused(work: Work) -> None:
    work.metier("train", *TINY, "adapter.base_bits=4")


def corpus_missing(work: Work) -> None:
    work.metier("train", *TINY, "data.path=data/nowhere")


def model_missing(work: Work) -> None:
    work.metier("train", *TINY, "model.folder=models/nowhere")


def gpus_missing(work: Work) -> None:
    work.metier("train", *TINY, "cluster.gpus_per_node=2")


def run_missing(work: Work) -> None:
    work.metier("evaluate", "name=nowhere")


def source_missing(work: Work) -> None:
    work.metier("prepare", *CHATS, "data.path=data/mine")


def record_broken(work: Work) -> None:
    (work.folder / "chats.jsonl").write_text(json.dumps(CHAT) + "\n{broken\n")
    work.metier("prepare", *CHATS, "data.path=data/mine")


def document_too_long(work: Work) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "b" * n}]}
        for n in range(200, 300)
    ]
    (work.folder / "chats.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    work.metier("prepare", *CHATS, "data.path=data/mine")


def chat_template_missing(work: Work) -> None:
    (work.folder / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    plain = work.folder / "plain"
    plain.mkdir()
    for path in (work.folder / "models" / "tiny-llama").iterdir():
        if path.name != "chat_template.jinja":
            (plain / path.name).write_bytes(path.read_bytes())
    own = ("model.source=huggingface", "model.path=plain", "model.tokenizer=null")
    work.metier("prepare", *CHATS, "data.path=data/mine", *own)


def model_path_missing(work: Work) -> None:
    own = ("model.source=huggingface", "model.path=models/of/nobody", "model.tokenizer=null")
    work.metier("prepare", *TINY, "data.path=data/mine", *own)


def hub_unreachable(work: Work) -> None:
    own = ("model.source=huggingface", "model.path=somebody/some-model", "model.tokenizer=null")
    # Nothing listens on the discard port: as on a compute node without a way out.
    work.metier("prepare", *TINY, "data.path=data/mine", *own, HF_ENDPOINT="http://127.0.0.1:9")


def tokenizer_changed(work: Work) -> None:
    (work.folder / "other.jinja").write_text(
        "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    work.metier("train", *TINY, "model.chat_template=other.jinja")


def corpus_of_other_settings(work: Work) -> None:
    work.metier("train", *TINY, "data.held_out_fraction=0.4")


def audit_refused(work: Work) -> None:
    work.metier("train", *TINY, "audit.min_density=1.0")


def corpus_damaged(work: Work) -> None:
    (manifest,) = work.folder.glob("data/*/manifest.json")
    manifest.write_text(manifest.read_text()[:500])
    work.metier("train", *TINY)


CASES = [
    setting_unknown,
    choice_unknown,
    setting_value,
    batch_indivisible,
    combination_refused,
    corpus_missing,
    model_missing,
    gpus_missing,
    run_missing,
    source_missing,
    record_broken,
    document_too_long,
    chat_template_missing,
    model_path_missing,
    hub_unreachable,
    tokenizer_changed,
    corpus_of_other_settings,
    audit_refused,
    corpus_damaged,
]
