"""What a run would refuse is refused before it starts: by a dry run, and by the launcher before any rank."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.compose import compose_run
from launcher.run_directory import freeze_run
from launcher.tree import ConfigTree
from tests.end_to_end.runs import environment, link_prepared
from training import ahead
from training.fence import claim_incarnation

EVALUATED = "loop.evaluate_every_steps=2"
REFUSED = {
    "a frozen pattern that matches nothing": (
        ["adapter.frozen=[model.layer.*]"],
        "adapter.frozen: model.layer.* matches no parameter",
    ),
    "all frozen": (["adapter.frozen=['*']"], "adapter.frozen covers every parameter"),
    "a trained module that is none": (
        ["adapter=lora", "adapter.trained_modules=[embed]"],
        "adapter.trained_modules names embed, which is no module with weights of its own; the model has "
        "down_proj, embed_tokens,",
    ),
    "a trained module of four bits": (
        ["adapter=qlora", "adapter.trained_modules=[q_proj]"],
        "adapter.trained_modules names q_proj, which has 4 bits",
    ),
    "a target that is no linear layer": (
        ["adapter=lora", "adapter.targets=[q_prj]"],
        "adapter.targets names q_prj, which is no linear layer of the model's body",
    ),
    "a rate for nothing": (
        ["+optimizer.rate_factors={lora_B: 3}"],
        "optimizer.rate_factors.lora_B matches no trained parameter",
    ),
    "a rate for what is frozen": (
        ["adapter.frozen=[*norm*]", "+optimizer.rate_factors={*norm*: 3}"],
        "optimizer.rate_factors.*norm* matches no trained parameter",
    ),
    "a model that is not there": (
        ["model.source=huggingface", "model.path=./nowhere"],
        "model.path=./nowhere does not exist",
    ),
    "more samples than documents": (
        [EVALUATED, "loop.held_out_documents=3", "loop.sample_documents=4"],
        "loop.sample_documents=4 are taken from loop.held_out_documents=3",
    ),
    "too few held-out documents": (
        [EVALUATED, "evaluation.held_out_documents=5000"],
        "`metier evaluate` takes the first 5000 of them; lower evaluation.held_out_documents",
    ),
    "a corpus beyond a threshold of its manifest": (
        ["audit.min_target_share=1"],
        "tokens (99.98%) are targets, less than audit.min_target_share=1.0",
    ),
    "a corpus beyond a threshold of its rows": (
        ["data.long_documents=truncate"],
        "are longer than batch.sequence_length and were cut or dropped, more than audit.max_cut=0.05",
    ),
    "a document that fits no row": (["data.long_documents=refuse"], "set data.long_documents to split"),
    "a corpus of other settings": (
        ["data.held_out_fraction=0.3"],
        "data.held_out_fraction: the corpus in data/python_topics was prepared with 0.1, this run says 0.3",
    ),
}


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = link_prepared(prepared, tmp_path / "work")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return work


def check_refused(words: list[str], wanted: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=tiny_smoke", *words]) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""
    assert not (folder / "runs").exists(), "no rank has started"


@pytest.mark.parametrize(("words", "wanted"), REFUSED.values(), ids=REFUSED.keys())
def test_a_dry_run_refuses_what_the_run_would(
    words: list[str], wanted: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused([*words, "dry_run=true"], wanted, folder, capsys)


@pytest.mark.parametrize("case", ["too few held-out documents", "a corpus beyond a threshold of its rows"])
def test_a_start_is_refused_before_any_rank(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(*REFUSED[case], folder, capsys)


@pytest.mark.parametrize("verb", ["train", "evaluate", "export"])
def test_a_dry_run_refuses_settings_that_the_run_of_this_name_does_not_have(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = freeze_run(compose_run(["experiment=tiny_smoke"], ConfigTree(None)).config)
    claim_incarnation(layout.incarnations)
    words = ["experiment=tiny_smoke", "optimizer.learning_rate=0.5", "dry_run=true"]

    assert main([verb, *words]) == 2
    assert "is a run with other settings (optimizer.learning_rate: 0.003 -> 0.5)" in capsys.readouterr().err


def test_a_dry_run_of_what_will_run_passes_writes_nothing_and_imports_nothing_heavy(folder: Path) -> None:
    before = sorted(folder.glob("data/python_topics/plans/*"))
    words = ["experiment=tiny_smoke", "dry_run=true", "batch.sequence_length=300", EVALUATED]
    names = ["evaluation.held_out_documents=2", "adapter.frozen=[*.layers.0.*]"]
    code = f"""
import sys
from launcher.__main__ import main
code = main(["train", *{words}, *{names}, "+optimizer.rate_factors={{lm_head*: 2}}"])
sys.exit(code or str({{"torch", "transformers", "pyarrow", "fsspec"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )

    assert done.stderr == "set()\n"
    assert done.stdout.count("\n  - ") == 1, "all but what is left to the ranks was looked at"
    assert not (folder / "runs").exists()
    assert sorted(folder.glob("data/python_topics/plans/*")) == before


def test_a_corpus_too_large_to_be_packed_in_passing_is_judged_by_its_manifest_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "MOST_PACKED", 0)
    words = ["train", "experiment=tiny_smoke", "dry_run=true", "batch.sequence_length=300"]

    assert main([*words, "audit.min_density=1"]) == 0
    assert (
        "- audit.max_cut, audit.min_density and data.mixture need the packed rows" in capsys.readouterr().out
    )
    assert main([*words, "audit.min_target_share=1"]) == 2
    assert "are targets, less than audit.min_target_share=1.0" in capsys.readouterr().err


def test_a_dry_run_says_what_it_could_not_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    words = ["experiment=tiny_smoke", "model.source=huggingface", "model.path=some/body", "dry_run=true"]

    assert main(["train", *words, "adapter.frozen=[*.layers.0.*]"]) == 0
    said = capsys.readouterr().out
    assert "adapter.frozen: what the model's parameters are called is known when it is loaded" in said
    assert "the corpus, which `metier prepare` has still to make (data.path=data/python_topics)" in said
    assert "which revision model.path=some/body will be" in said
    assert "this machine's cache has none" in said


def test_a_model_in_the_hubs_cache_is_looked_at_and_its_revision_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "hub" / "hub" / "models--some--body"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0123abc")
    shutil.copytree(folder / "models" / "tiny-llama", cache / "snapshots" / "0123abc")
    words = ["experiment=tiny_smoke", "model.source=huggingface", "model.path=some/body", "dry_run=true"]

    assert main(["train", *words]) == 0
    assert "this machine's cache has 0123abc" in capsys.readouterr().out
    assert main(["train", *words, "adapter.frozen=[*.layer.0.*]"]) == 2
    assert "adapter.frozen: *.layer.0.* matches no parameter" in capsys.readouterr().err


def test_names_that_transformers_may_change_are_not_judged(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "models" / "tiny-llama", other)
    index = {"weight_map": {"model.layers.0.mlp.experts.0.up_proj.weight": "model.safetensors"}}
    content = (other / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b".mlp.up_proj.", b".experts.0.u.")
    (other / "model.safetensors").write_bytes(content[:8] + header + content[8 + size :])
    (other / "model.safetensors.index.json").write_text(json.dumps(index))
    words = ["experiment=tiny_smoke", "model.source=huggingface", f"model.path={other}", "dry_run=true"]

    assert main(["train", *words, "adapter.frozen=[*experts*]"]) == 0
    assert "adapter.frozen: what the model's parameters are called is known when" in capsys.readouterr().out


def test_a_folder_that_was_made_of_another_architecture_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["dry_run=true"]):
        words = ["train", "experiment=tiny_smoke", "model.architecture.num_hidden_layers=8", "name=deeper"]
        assert main([*words, *more]) == 2
        assert (
            "was made with architecture={'num_hidden_layers': 4}, wanted "
            "architecture={'num_hidden_layers': 8}; name another model.folder or remove this one"
        ) in capsys.readouterr().err
    assert not (folder / "runs" / "deeper").exists()


def test_what_deepspeed_would_not_be_told_and_a_missing_disk_leave_no_run_behind(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "experiment=tiny_smoke", "name=refused"]
    assert main([*words, "+strategy.deepspeed_extra.zero_optimization.offload_param.buffer_count=5"]) == 2
    assert "strategy.deepspeed_extra.zero_optimization belongs to" in capsys.readouterr().err
    assert main([*words, "strategy=zero3_nvme", "strategy.nvme_path=/nowhere"]) == 2
    assert "strategy.nvme_path=/nowhere is no folder that can be written to here" in capsys.readouterr().err
    assert not (folder / "runs" / "refused").exists()
