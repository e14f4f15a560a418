"""The model card and the provenance: what a stranger must know of an exported model."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from training.config.schema import RunConfig
from training.data.corpus.manifest import Manifest, SourceRecord
from training.export.verify import TOLERANCE, Agreement, Verified

_PACKAGES = ("metier", "torch", "transformers", "peft", "bitsandbytes", "deepspeed")


def list_settings(config: RunConfig) -> list[tuple[str, str]]:
    """Name the settings that made the model; none is a path."""
    adapter, optimizer, batch = config.adapter, config.optimizer, config.batch
    rows: list[tuple[str, Any]] = [
        ("adapter.kind", adapter.kind),
        ("optimizer.kind", optimizer.kind),
        ("optimizer.learning_rate", f"{optimizer.learning_rate:g}"),
        ("optimizer.weight_decay", f"{optimizer.weight_decay:g}"),
        ("optimizer.max_grad_norm", f"{optimizer.max_grad_norm:g}"),
        ("schedule.kind", config.schedule.kind),
        ("schedule.warmup_steps", config.schedule.warmup_steps),
        ("batch.sequence_length", batch.sequence_length),
        ("batch.global_batch_size", batch.global_batch_size),
        ("loop.max_steps", config.loop.max_steps),
        ("precision", config.precision),
        ("strategy.zero_stage", config.strategy.zero_stage),
        ("seed", config.seed),
    ]
    if adapter.kind != "none":
        targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
        rows[1:1] = [
            ("adapter.base_bits", adapter.base_bits),
            ("adapter.rank", adapter.rank),
            ("adapter.alpha", f"{adapter.alpha:g}"),
            ("adapter.rank_stabilized", adapter.rank_stabilized),
            ("adapter.dropout", f"{adapter.dropout:g}"),
            ("adapter.targets", targets),
            ("adapter.trained_modules", ", ".join(adapter.trained_modules) or "none"),
        ]
    elif adapter.frozen:
        rows.insert(1, ("adapter.frozen", ", ".join(adapter.frozen)))
    return [(key, str(value)) for key, value in rows]


def read_scores(report: Path) -> dict[str, Any] | None:
    """Read report.json's tables; None where nobody evaluated yet, or the report is of another form."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
        scores = found["scores"]
        named = [scores[key] for key in ("domain", "general", "exact", "word_f1") if scores.get(key)]
        rows = [
            {
                "label": str(row["label"]),
                "before": _interval(row["before"]),
                "after": _interval(row["after"]),
                "documents": int(row["documents"]),
            }
            for row in named
        ]
        return {"step": int(found["checkpoint_step"]), "confidence": float(found["confidence"]), "rows": rows}
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError):
        return None


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def tell_provenance(source: SourceRecord) -> str:
    """Say where a source came from, in its own and its owner's words; files and folders are left out.

    They are named in the corpus' manifest; here they would tell strangers how this machine is laid out.
    """
    told = {key: value for key, value in source.provenance.items() if isinstance(value, str | int | float)}
    return ", ".join(
        f"{key} {value}" for key, value in told.items() if not str(value).startswith(("/", "~", "."))
    )


def write_card(  # noqa: PLR0913 - one value each from the run, the corpus, the report and the check
    staged: Path,
    config: RunConfig,
    *,
    base: str,
    step: int,
    manifest: Manifest | None,
    scores: dict[str, Any] | None,
    verified: Verified,
    rows: int | None,
) -> None:
    """Write README.md; ``rows`` is how many the embeddings have, where tokens were added."""
    environment = Environment(  # noqa: S701 - Markdown is no HTML
        loader=PackageLoader("training.export", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    on_hub = config.model.source == "huggingface" and base == config.model.path
    text = environment.get_template("card.md.j2").render(
        name=config.name,
        form=config.export.form,
        base=base,
        base_on_hub=on_hub,
        base_bits=config.adapter.base_bits,
        adapter=config.adapter.kind,
        rows=rows,
        step=step,
        settings=list_settings(config),
        manifest=manifest,
        tell_provenance=tell_provenance,
        # A report on another checkpoint says nothing of this one.
        scores=scores if scores is not None and scores["step"] == step else None,
        agreement=verified.agreement,
        into_original=verified.into_original,
        tolerance=TOLERANCE,
        versions=find_versions(),
    )
    (staged / "README.md").write_text(text, encoding="utf-8")


def write_provenance(  # noqa: PLR0913 - one value each from the run, the corpus and the check
    path: Path,
    config: RunConfig,
    *,
    base: str,
    step: int,
    manifest: Manifest | None,
    tokenizer: str,
    verified: Verified,
) -> None:
    """Write metier.json: from what, by what and how well the folder was made; no path of this machine."""
    record: dict[str, Any] = {
        "run": config.name,
        "checkpoint_step": step,
        "form": config.export.form,
        "base": base,
        "base_source": config.model.source,
        "corpus": None if manifest is None else manifest.fingerprint,
        "tokenizer": tokenizer,
        "settings": dict(list_settings(config)),
        "versions": find_versions(),
        "verified": {**_measures(verified.agreement), "tolerance": TOLERANCE},
    }
    if verified.into_original is not None:
        record["merge_into_original_weights"] = _measures(verified.into_original)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _measures(agreement: Agreement) -> dict[str, Any]:
    return {
        "tokens": agreement.tokens,
        "largest_logit_difference": agreement.largest_difference,
        "relative_logit_difference": agreement.relative_difference,
        "argmax_agreement": agreement.argmax_agreement,
    }


def find_versions() -> dict[str, str]:
    """Give the versions of the packages that computed the model; those not installed are left out."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
