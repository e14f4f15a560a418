"""A run's checkpoint becomes a folder that plain transformers and peft read as what was trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.compose import compose_run
from launcher.tree import ConfigTree
from tests.checkpoint_case import write_weights
from training.config.freeze import write_frozen
from training.config.schema import RunConfig
from training.data.corpus.manifest import SourceRecord
from training.export.card import tell_provenance
from training.export.export import export
from training.files import write_json
from training.layout import RunLayout
from training.model.adapter import forbid_repacking
from training.model.folder import find_weight_files
from training.model.load import four_bit_config
from training.model.source import prepare_model
from training.model.tokenizer import load_tokenizer
from training.model.trained import load_trained_model

CPU = torch.device("cpu")
IDS = torch.arange(40)[None]
# More than the tiny model has rows to spare, so that its embeddings grow.
TOKENS = f"[{','.join(f'word{number}' for number in range(70))}]"
FORMS = {
    "full": ["adapter=none", "export.form=merged"],
    "lora merged": ["adapter=lora", "export.form=merged"],
    "qlora merged": ["adapter=qlora", "export.form=merged"],
    "lora adapter": ["adapter=lora", "export.form=adapter"],
    "qlora adapter": ["adapter=qlora", "export.form=adapter"],
    "rslora merged": [
        "adapter=lora",
        "adapter.rank_stabilized=true",
        "adapter.alpha=8",
        "export.form=merged",
    ],
    "dora merged": ["adapter=dora", "export.form=merged"],
    "qdora merged": ["adapter=dora", "adapter.base_bits=4", "export.form=merged"],
    "dora adapter": ["adapter=dora", "export.form=adapter"],
    "tokens merged": [
        "adapter=qlora",
        "adapter.trained_modules=[embed_tokens]",
        f"model.extra_tokens={TOKENS}",
        "export.form=merged",
    ],
    "tokens adapter": [
        "adapter=lora",
        "adapter.trained_modules=[embed_tokens]",
        f"model.extra_tokens={TOKENS}",
        "export.form=adapter",
    ],
    "frozen": ["adapter=none", "adapter.frozen=[*.layers.0.*,*embed*]", "export.form=merged"],
}


def make_run(tmp_path: Path, overrides: list[str]) -> tuple[RunLayout, RunConfig, nn.Module]:
    """Make a run directory as a training would leave it; gives the trained model as well."""
    config = compose_run(
        [
            "experiment=tiny_smoke",
            f"run_root={tmp_path / 'runs'}",
            f"model.folder={tmp_path / 'tiny'}",
            f"data.path={tmp_path / 'corpus'}",
            *overrides,
        ],
        ConfigTree.open(None),
    ).config
    prepare_model(config.model, config.seed)
    layout = RunLayout(Path(config.run_root) / config.name)
    write_frozen(layout.config, config, {})
    model = load_trained_model(config, None, CPU)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    write_weights(layout, model, step=8)
    return layout, config, model


def read_again(layout: RunLayout, config: RunConfig, form: str) -> nn.Module:
    """Load as a stranger would."""
    if "adapter" not in form:
        return AutoModelForCausalLM.from_pretrained(layout.model, dtype=torch.float32)
    four_bits = config.adapter.base_bits == 4
    options = {"quantization_config": four_bit_config(torch.float32)} if four_bits else {}
    base = AutoModelForCausalLM.from_pretrained(config.model.folder, dtype=torch.float32, **options)
    if config.model.extra_tokens:
        base.resize_token_embeddings(len(load_tokenizer(config.model)), pad_to_multiple_of=64)
    return PeftModel.from_pretrained(base, layout.adapter)


@pytest.mark.parametrize("form", FORMS)
def test_the_export_computes_what_was_trained(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, config, trained = make_run(tmp_path, FORMS[form])
    verified = export(config)
    exported = read_again(layout, config, form)
    forbid_repacking(exported)  # upstream's packing on some CPUs cannot take so narrow a model
    with torch.no_grad():
        wanted, found = (model(input_ids=IDS).logits for model in (trained, exported))
        before = load_trained_model(config, None, CPU)(input_ids=IDS).logits
    difference = float((found - wanted).norm() / wanted.norm())
    # Merged weights are rounded to bf16 (2^-9 each); an adapter is kept as it is.
    assert difference < (1e-6 if "adapter" in form else 0.01)
    # Training moved the model much further than that, so that the test can tell.
    assert float((before - wanted).norm() / wanted.norm()) > 0.05
    assert verified.agreement.argmax_agreement > 0.9
    merges_four_bits = config.adapter.base_bits == 4 and config.export.form == "merged"
    assert (verified.into_original is not None) == merges_four_bits
    if verified.into_original is not None:
        # Rounding to 4 bits is no bf16 rounding: the report must tell the two merges apart.
        assert verified.into_original.relative_difference > 5 * verified.agreement.relative_difference
    said = capsys.readouterr().out
    assert "Exported step 8" in said
    assert "Verified over 128 tokens" in said


@pytest.mark.parametrize("form", ["full", "qlora adapter", "tokens adapter"])
def test_what_the_card_says_gives_the_model_that_was_trained(form: str, tmp_path: Path) -> None:
    layout, config, trained = make_run(tmp_path, FORMS[form])
    export(config)
    folder = layout.adapter if "adapter" in form else layout.model
    card = (folder / "README.md").read_text(encoding="utf-8")
    recipe = card.split("```python\n")[1].split("```")[0].replace("THIS_FOLDER", str(folder))
    names: dict[str, Any] = {}
    exec(recipe.replace('"tiny"', repr(config.model.folder)), names)  # noqa: S102 - what a reader would type
    forbid_repacking(names["model"])  # upstream's packing on some CPUs cannot take so narrow a model
    with torch.no_grad():
        wanted, found = (model(input_ids=IDS).logits.float() for model in (trained, names["model"]))
    # The base in 4 bits instead of 16 would be off by 20 %.
    assert float((found - wanted).norm() / wanted.norm()) < 0.03
    assert len(names["tokenizer"]) > 0


def test_exports_of_both_forms_stand_side_by_side(tmp_path: Path) -> None:
    layout, config, _ = make_run(tmp_path, FORMS["lora merged"])
    export(config)
    export(config.model_copy(update={"export": config.export.model_copy(update={"form": "adapter"})}))
    assert (layout.model / "model.safetensors").is_file()
    assert (layout.adapter / "adapter_model.safetensors").is_file()
    assert {path.stat().st_mode & 0o777 for path in layout.adapter.iterdir()} == {0o644}


def test_a_merged_folder_is_whole_and_names_no_path_of_this_machine(tmp_path: Path) -> None:
    layout, config, _ = make_run(tmp_path, FORMS["qlora merged"])
    export(config)
    names = {path.name for path in layout.model.iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "chat_template.jinja",
        "generation_config.json",
        "metier.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in layout.model.iterdir():
        if path.suffix != ".safetensors":
            assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name
    with safe_open(layout.model / "model.safetensors", framework="pt") as stream:
        held = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    with safe_open(find_weight_files(Path(config.model.folder or ""))[0], framework="pt") as stream:
        assert set(held) == set(stream.keys())
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in held
    model = AutoModelForCausalLM.from_pretrained(layout.model)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.generation_config.eos_token_id == [258, 256]


def test_an_exported_model_answers_a_chat_through_plain_transformers(tmp_path: Path) -> None:
    layout, config, _ = make_run(tmp_path, FORMS["full"])
    export(config)
    tokenizer = AutoTokenizer.from_pretrained(layout.model)
    model = AutoModelForCausalLM.from_pretrained(layout.model)
    chat = [{"role": "user", "content": "Hi"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**inputs, max_new_tokens=5)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_an_adapter_folder_holds_the_adapter_alone(tmp_path: Path) -> None:
    layout, config, trained = make_run(tmp_path, FORMS["lora adapter"])
    export(config)
    assert isinstance(trained, PeftModel)
    with safe_open(layout.adapter / "adapter_model.safetensors", framework="pt") as stream:
        held = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    wanted = get_peft_model_state_dict(trained)
    assert set(held) == set(wanted)
    assert all(torch.equal(held[name], wanted[name]) for name in held)
    settings = json.loads((layout.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert settings["base_model_name_or_path"] == "tiny"


def test_the_card_tells_of_settings_and_scores(tmp_path: Path) -> None:
    layout, config, _ = make_run(tmp_path, FORMS["lora merged"])
    estimate = {"value": 2.5, "low": 2.25, "high": 2.75}
    row = {"label": "held-out loss", "documents": 8, "before": estimate, "after": estimate}
    report = {"checkpoint_step": 8, "confidence": 0.95, "scores": {"domain": row, "exact": None}}
    write_json(layout.report / "report.json", report)
    export(config)
    card = (layout.model / "README.md").read_text(encoding="utf-8")
    assert "| held-out loss | 8 | 2.500 [2.250, 2.750] |" in card
    assert "| adapter.rank | 16 |" in card
    assert "95 % bootstrap" in card


def test_the_card_names_where_the_data_came_from_and_no_file(tmp_path: Path) -> None:
    provenance = {
        "/home/me/secret.jsonl": {"bytes": 7},
        "dataset": "/home/me/folder",
        "python": "3.11",
        "collected": "by hand | in 2025",
    }
    assert tell_provenance(describe(provenance)) == "python 3.11, collected by hand | in 2025"


def describe(provenance: dict[str, Any]) -> SourceRecord:
    zeros = dict.fromkeys(set(SourceRecord.model_fields) - {"provenance", "licence"}, 0)
    empty: dict[str, Any] = {"skipped": {}, "personal_data": {}}
    return SourceRecord(provenance=provenance, licence="MIT", **{**zeros, **empty})


def test_a_second_export_replaces_the_first_and_a_failed_one_does_not(tmp_path: Path) -> None:
    layout, config, model = make_run(tmp_path, FORMS["full"])
    export(config)
    first = (layout.model / "model.safetensors").read_bytes()
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    write_weights(layout, model, step=9)
    export(config)
    second = (layout.model / "model.safetensors").read_bytes()
    assert first != second
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    write_weights(layout, model, step=10)
    command = [sys.executable, "-m", "training.export", str(layout.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "model.embed_tokens.weight holds NaN or infinity" in done.stderr.strip().splitlines()[-1]
    assert (layout.model / "model.safetensors").read_bytes() == second
    assert [path.name for path in layout.root.iterdir() if path.name.startswith(".")] == []
