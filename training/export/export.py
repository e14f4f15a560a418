"""Exports a run: a checkpoint in, a verified Hugging Face folder out."""

import sys
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console

from training.checkpoint.load import check_base, find_checkpoint, read_step
from training.config.schema import RunConfig
from training.data.corpus.manifest import Manifest
from training.data.reading.reader import open_corpus
from training.errors import ConfigError, DataError, StorageError
from training.export.card import read_scores, write_card, write_provenance
from training.export.verify import (
    TOLERANCE,
    Verified,
    check_agreement,
    compare_logits,
    compute_logits,
    read_probe,
)
from training.export.write import merge_into_original, name_base, reload, write_adapter, write_merged
from training.layout import RunLayout
from training.model.attention import generating
from training.model.folder import fingerprint_base, write_folder
from training.model.generation import write_generation_config
from training.model.provenance import PROVENANCE
from training.model.quiet import quiet_upstream
from training.model.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.model.trained import load_trained_model


def export(config: RunConfig) -> Verified:
    """Write ``model/`` or ``adapter/`` from the newest checkpoint, or ``export.step``'s; verified, or not.

    An older export of this form stays until the new one is complete.

    Args:
        config: The run's; how it is exported may differ from what was frozen when it was trained.

    Raises:
        ConfigError: The form does not go with the adapter.
        CheckpointError: There is no such checkpoint.
        ModelError: The base is missing, or the export is not what was trained.
        StorageError: The disk is full or refuses.
    """
    layout = RunLayout.of(config.run_root, config.name)
    if config.export.form == "adapter" and config.adapter.kind == "none":
        raise ConfigError("export.form=adapter needs an adapter; use export.form=merged")
    checkpoint = find_checkpoint(layout, config.export.step)
    check_base(checkpoint, fingerprint_base(config.model))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_trained_model(config, checkpoint, device)
    found: list[tuple[int, Verified]] = []

    def write(staged: Path) -> None:
        found.append(_write(staged, layout, config, model, read_step(checkpoint)))

    folder = layout.adapter if config.export.form == "adapter" else layout.model
    write_folder(folder, write)
    tensors, verified = found[0]
    _summarise(folder, config, read_step(checkpoint), tensors, verified)
    return verified


def _write(
    staged: Path, layout: RunLayout, config: RunConfig, model: PeftModel, step: int
) -> tuple[int, Verified]:
    """Fill ``staged`` and verify it; give the number of tensors and how near the logits are."""
    tokenizer = load_tokenizer(config.model)
    writes = write_adapter if config.export.form == "adapter" else write_merged
    tensors = writes(staged, config, model)
    with quiet_upstream():
        tokenizer.save_pretrained(staged)
    write_generation_config(staged, tokenizer)
    verified = _verify(staged, config, model)
    manifest = _find_manifest(config)
    base = name_base(config)
    write_card(
        staged,
        config,
        base=base,
        step=step,
        manifest=manifest,
        scores=read_scores(layout.report / "report.json"),
        verified=verified,
        rows=model.config.vocab_size if config.model.extra_tokens else None,
    )
    write_provenance(
        staged / PROVENANCE,
        config,
        base=base,
        step=step,
        manifest=manifest,
        tokenizer=tokenizer_fingerprint(tokenizer),
        verified=verified,
    )
    return tensors, verified


def _verify(staged: Path, config: RunConfig, model: PeftModel) -> Verified:
    device = next(model.parameters()).device
    probe = read_probe(config, model.config.vocab_size)
    with generating(model) as lent:
        trained = compute_logits(lent, probe, device)
    exported = compute_logits(reload(staged, config, device), probe, device)
    agreement = compare_logits(trained, exported)
    check_agreement(staged, agreement)
    if config.adapter.base_bits == 16 or config.export.form == "adapter":  # noqa: PLR2004
        return Verified(agreement=agreement, into_original=None)
    other = compute_logits(merge_into_original(config, model), probe, device)
    return Verified(agreement=agreement, into_original=compare_logits(trained, other))


def _find_manifest(config: RunConfig) -> Manifest | None:
    try:
        return open_corpus(config.data.path, "held_out", config.loader).manifest
    except (DataError, StorageError):
        return None


def _summarise(folder: Path, config: RunConfig, step: int, tensors: int, verified: Verified) -> None:
    agreement, other = verified.agreement, verified.into_original
    form = "adapter" if config.export.form == "adapter" else "whole model, bf16"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    console.print(f"Exported step {step} as {form}: {folder} ({tensors} tensors, {size / 1e6:.1f} MB)")
    console.print(
        f"Verified over {agreement.tokens} tokens: logits differ by at most "
        f"{agreement.largest_difference:.3g}, {agreement.relative_difference:.3%} of their size "
        f"(allowed {TOLERANCE:.0%}); same likeliest token after {agreement.argmax_agreement:.1%}"
    )
    if other is not None:
        console.print(
            "Merged into the 4-bit weights that the adapter was trained on. A merge into the original 16-bit "
            f"weights would differ by {other.relative_difference:.3%} of the logits' size; same likeliest "
            f"token after {other.argmax_agreement:.1%}"
        )
