"""A model built parameter by parameter is the one that transformers loads; what is lost is told."""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.model_folders import compare_models, write_llama
from training.config.schema import RunConfig
from training.errors import ModelError
from training.model import four_bit
from training.model.load import build_model
from training.model.partitioned import build_partitioned_model

CPU = torch.device("cpu")


class AllIsMine:
    """One rank that keeps everything."""

    device = CPU

    def __init__(self) -> None:
        self.cut_elements = 0

    def stretches(self, elements: int) -> list[tuple[int, int]]:
        return [(0, elements // 2), (elements // 2, elements)]

    def cut(self, parameter: nn.Parameter) -> None:
        self.cut_elements += parameter.numel()

    def greatest(self, values: Tensor) -> Tensor:
        return values

    def gathering(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture(autouse=True)
def _one_thread_and_small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(four_bit, "AT_ONCE", 1 << 11)  # several for each 4-bit tensor
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "tied": write_llama(root / "tied"),
        "untied": write_llama(root / "untied", tie_word_embeddings=False, shard_bytes=60_000),
        "with biases": write_llama(root / "biases", attention_bias=True, mlp_bias=True),
    }


@cache
def compose(*changes: str) -> RunConfig:
    given = ["model.source=huggingface", "model.path=elsewhere", "model.tokenizer=null", *changes]
    # A group's choice would overwrite single settings that come before it.
    given.sort(key=lambda change: "." in change.split("=")[0])
    return compose_run(["experiment=tiny_smoke", *given], ConfigTree.open(None)).config


def configure(
    folder: Path, *changes: str, precision: str = "fp32", extra_tokens: Sequence[str] = ()
) -> RunConfig:
    config = compose(*(changes or METHODS["full"]))
    model = config.model.model_copy(update={"path": str(folder), "extra_tokens": list(extra_tokens)})
    return config.model_copy(update={"model": model, "precision": precision})


def build_shared(config: RunConfig, partition: AllIsMine | None = None) -> tuple[Any, str | None]:
    return build_partitioned_model(
        config.model,
        config.adapter,
        share_out=lambda _: partition or AllIsMine(),
        precision=config.precision,
        seed=1,
        activation_checkpointing="full",
    )


def build_whole(config: RunConfig) -> Any:
    return build_model(
        config.model,
        config.adapter,
        device=CPU,
        precision=config.precision,
        seed=1,
        activation_checkpointing="full",
    )


def build_both(config: RunConfig, partition: AllIsMine | None = None) -> tuple[Any, str | None, Any]:
    return *build_shared(config, partition), build_whole(config)


METHODS = {
    "full": ("adapter=none",),
    "frozen": ("adapter=none", "adapter.frozen=[*.layers.0.mlp.*]"),
    "lora": ("adapter=lora",),
    "lora, trained": ("adapter=lora", "adapter.trained_modules=[embed_tokens,lm_head]"),
    "qlora": ("adapter=qlora",),
    "dora": ("adapter=dora",),
}


@pytest.mark.parametrize("name", ["tied", "untied", "with biases"])
@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_bit_by_bit_the_one_that_transformers_loads(
    name: str, method: str, folders: dict[str, Path]
) -> None:
    for precision, tokens in itertools.product(("bf16", "fp32"), ([], ["lisinopril", "metoprolol"])):
        if tokens and method in {"lora", "qlora", "dora"}:
            continue  # refused: new rows would not be trained
        partition = AllIsMine()
        config = configure(folders[name], *METHODS[method], precision=precision, extra_tokens=tokens)

        shared, reason, whole = build_both(config, partition)

        assert reason is None
        assert compare_models(shared, whole, lambda parameter: parameter.data) == []
        assert shared.config.vocab_size == whole.config.vocab_size
        assert (shared.config.vocab_size == 320) == bool(tokens)
        assert shared.is_gradient_checkpointing == whole.is_gradient_checkpointing
        assert partition.cut_elements > 0


def test_new_rows_that_would_not_be_trained_are_refused_here_too(folders: dict[str, Path]) -> None:
    changes = ("adapter=lora", "adapter.trained_modules=[embed_tokens]")
    config = configure(folders["untied"], *changes, extra_tokens=["lisinopril"])
    with pytest.raises(ModelError, match="lm_head had no row for some tokens"):
        build_shared(config)


def break_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(63, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


SINGLE = {
    break_shape: r"tensor model\.norm\.weight has shape \[63\], config\.json wants \[64\]; use the config",
    lose_tensor: r"the tensor model\.layers\.1\.mlp\.up_proj\.weight is missing \(1 such\); copy the model",
    cut_short: r"cut short|cannot be loaded",
}


@pytest.mark.parametrize("harm", SINGLE, ids=lambda harm: harm.__name__)
def test_harm_to_a_single_file_is_one_line_that_names_file_and_tensor(harm: Any, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    harm(folder)
    config = configure(folder, precision="bf16")

    with pytest.raises(ModelError, match=SINGLE[harm]) as shared:
        build_shared(config)
    with pytest.raises(ModelError, match=SINGLE[harm]) as whole:
        build_whole(config)

    assert str(folder / "model.safetensors") in str(shared.value)
    assert str(folder) in str(whole.value)
    assert "\n" not in str(shared.value) + str(whole.value)


def test_a_4_bit_weight_of_another_shape_is_refused_in_both_ways(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = torch.ones(32, 128, dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = configure(folder, *METHODS["qlora"])
    words = rf"tensor {name} has shape \[32, 128\], config\.json wants \[64, 64\]"

    for build in (build_shared, build_whole):
        with pytest.raises(ModelError, match=words):
            build(config)


def remove_file(folder: Path, file: str) -> None:
    (folder / file).unlink()


def empty_file(folder: Path, file: str) -> None:
    save_file({"other": torch.ones(2)}, folder / file)


def spoil_index(folder: Path, _: str) -> None:
    (folder / "model.safetensors.index.json").write_text("{", encoding="utf-8")


SHARDED = {
    remove_file: r"model-00002-of-\d+\.safetensors: is missing; copy the model there again",
    empty_file: r"model-00002-of-\d+\.safetensors: the tensor model\S+ is missing, which model\.",
    spoil_index: r"model\.safetensors\.index\.json: is no index",
}


@pytest.mark.parametrize("harm", SHARDED, ids=lambda harm: harm.__name__)
def test_harm_to_one_of_several_files_names_it(harm: Any, tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model", shard_bytes=60_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    harm(folder, sorted(set(index["weight_map"].values()))[1])

    with pytest.raises(ModelError, match=SHARDED[harm]) as caught:
        build_shared(configure(folder, precision="bf16"))

    assert "\n" not in str(caught.value)


def test_experts_that_transformers_merges_are_loaded_whole_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(tmp_path)

    shared, reason, whole = build_both(configure(tmp_path))

    assert reason is not None
    assert reason.startswith("transformers converts some weights while it loads them, model.layers.0.")
    assert compare_models(shared, whole, lambda parameter: parameter.data) == []


def test_files_of_another_form_are_loaded_whole_with_the_reason(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    shared, reason, whole = build_both(configure(folder))

    assert reason == "its weights are no safetensors files"
    assert compare_models(shared, whole, lambda parameter: parameter.data) == []


def test_files_that_name_the_weights_otherwise_are_loaded_whole_with_the_reason(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})

    shared, reason, whole = build_both(configure(folder))

    assert reason == "its files name the weights otherwise, model.embed_tokens.weight for one"
    assert compare_models(shared, whole, lambda parameter: parameter.data) == []


@pytest.mark.parametrize("shard_bytes", [None, 60_000], ids=["one file", "several files"])
def test_a_model_of_the_hub_is_read_in_the_hubs_cache(
    shard_bytes: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "models--someone--small"
    write_llama(kept / "snapshots" / "abc", shard_bytes=shard_bytes)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc", encoding="ascii")
    config = configure(kept / "snapshots" / "abc")
    of_hub = config.model_copy(update={"model": config.model.model_copy(update={"path": "someone/small"})})

    shared, reason = build_shared(of_hub)

    assert reason is None
    assert compare_models(shared, build_whole(config), lambda parameter: parameter.data) == []
