"""The thresholds of `audit.*`: at each a corpus passes, beyond it fails with a line that says what to do."""

from typing import Any

import pytest

from training.audit.facts import Share, find_facts
from training.audit.gate import check_audit, find_breaches
from training.config.schema import AuditConfig
from training.data.corpus.manifest import FORMAT, Counts, FileRecord, Manifest, SourceRecord, SplitRecord
from training.data.order.packing import PackingCounts
from training.errors import DataError

SEQUENCE_LENGTH = 100
LIMITS: dict[str, Any] = {
    "min_target_share": 0.01,
    "max_without_targets": 0.05,
    "max_skipped": 0.1,
    "max_cut": 0.05,
    "max_removed": 0.2,
    "min_turn_ends": 1.0,
    "min_density": 0.8,
    "max_personal_data": 0.5,
    "scanned_documents": None,
    "printed_documents": 10,
}
AUDIT = AuditConfig.model_validate(LIMITS)


def source_record(**changes: Any) -> SourceRecord:
    values: dict[str, Any] = {
        "provenance": {},
        "licence": "CC0-1.0",
        "documents": 1000,
        "without_targets": 0,
        "skipped": {},
        "personal_data": {},
        "control_tokens": 0,
        "turns": 2000,
        "turns_ended": 2000,
        "removed_exact": 0,
        "removed_near": 0,
        "repeated": 0,
    }
    return SourceRecord.model_validate({**values, **changes})


def split_record(**sources: Counts) -> SplitRecord:
    return SplitRecord(
        counts=Counts(documents=1000, tokens=80_000, targets=40_000),
        by_source=sources,
        by_task={},
        length_percentiles={"100": 99},
        lengths=FileRecord(file="index/0.npy", checksum="0", bytes=1),
        shards=[],
    )


def manifest(train: Counts | None = None, **changes: Any) -> Manifest:
    good = Counts(documents=800, tokens=80_000, targets=40_000)
    return Manifest(
        format=FORMAT,
        fingerprint="f",
        tokenizer="t",
        chat_template=None,
        settings={},
        padding_id=0,
        token_bytes=2,
        sources={"good": source_record(), "notes": source_record(**changes)},
        splits={
            "train": split_record(good=good, notes=train or good),
            "held_out": split_record(good=good),
        },
    )


def packing(**changes: Any) -> PackingCounts:
    values: dict[str, Any] = {
        "documents": 800,
        "rows": 850,
        "tokens": 80_000,
        "split": 0,
        "truncated": 0,
        "dropped": 0,
        "tokens_left_out": 0,
        "sequence_length": SEQUENCE_LENGTH,
    }
    return PackingCounts(**{**values, **changes})


def check(manifest: Manifest, notes: PackingCounts | None = None) -> None:
    check_audit(manifest, {"good": packing(), "notes": notes or packing()}, SEQUENCE_LENGTH, AUDIT)


def counts(documents: int, tokens: int, targets: int) -> Counts:
    return Counts(documents=documents, tokens=tokens, targets=targets)


CASES: dict[str, tuple[tuple[Manifest, PackingCounts | None], tuple[Manifest, PackingCounts | None], str]] = {
    # threshold: at the limit, beyond it, what the line says of it
    "min_target_share": (
        (manifest(counts(800, 80_000, 800)), None),
        (manifest(counts(800, 80_000, 799)), None),
        "data.sources.notes: 799 of 80,000 tokens (0.999%) are targets, "
        "less than audit.min_target_share=0.01; ",
    ),
    "max_without_targets": (
        (manifest(without_targets=50), None),
        (manifest(without_targets=51), None),
        "data.sources.notes: 51 of 1,000 documents (5.1%) hold no target, "
        "more than audit.max_without_targets=0.05; ",
    ),
    "max_skipped": (
        (manifest(documents=900, skipped={"broken JSON": 60, "no text": 40}), None),
        (manifest(documents=900, skipped={"broken JSON": 61, "no text": 40}), None),
        "data.sources.notes: 101 of 1,001 records (10.1%) were left out as bad (broken JSON 61, no text 40), "
        "more than audit.max_skipped=0.1; ",
    ),
    "max_cut": (
        (manifest(), packing(truncated=30, dropped=10)),
        (manifest(), packing(truncated=30, dropped=11)),
        "data.sources.notes: 41 of 800 documents (5.1%) are longer than batch.sequence_length and were cut "
        "or dropped, more than audit.max_cut=0.05; ",
    ),
    "max_removed": (
        (manifest(removed_exact=150, removed_near=50), None),
        (manifest(removed_exact=150, removed_near=51), None),
        "data.sources.notes: 201 of 1,001 train documents (20.1%) are held out as well and were removed, "
        "more than audit.max_removed=0.2; ",
    ),
    "min_turn_ends": (
        (manifest(turns_ended=2000), None),
        (manifest(turns_ended=1999), None),
        "data.sources.notes: the end token is a target of 1,999 of 2,000 answers (99.95%), "
        "less than audit.min_turn_ends=1.0; ",
    ),
    "min_density": (
        (manifest(), packing(rows=1150)),
        (manifest(), packing(rows=1151)),
        "data.path: 79.96% of the slots of 2,001 packed rows hold a token, less than audit.min_density=0.8; ",
    ),
}


def test_all_of_them_are_100_percent() -> None:
    with pytest.raises(DataError, match=r"1,000 of 1,000 documents \(100%\) hold no target"):
        check(manifest(without_targets=1000))


@pytest.mark.parametrize("key", CASES)
def test_at_its_limit_a_corpus_passes(key: str) -> None:
    check(*CASES[key][0])


@pytest.mark.parametrize("key", CASES)
def test_beyond_its_limit_it_is_refused_with_one_line(key: str) -> None:
    with pytest.raises(DataError) as raised:
        check(*CASES[key][1])
    assert str(raised.value).startswith(CASES[key][2])
    assert str(raised.value).endswith("or change the threshold")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "key", [key for key in LIMITS if key not in {"scanned_documents", "printed_documents"}]
)
def test_every_threshold_of_the_configuration_has_a_case(key: str) -> None:
    assert key in CASES or key == "max_personal_data"


def test_personal_data_count_only_where_they_were_looked_for() -> None:
    facts = find_facts(manifest(), {}, SEQUENCE_LENGTH)
    assert list(find_breaches(facts, AUDIT)) == []
    assert list(find_breaches(facts, AUDIT, {"notes": Share(5, 10)})) == []
    (breach,) = find_breaches(facts, AUDIT, {"notes": Share(6, 10)})
    assert (breach.key, breach.source) == ("max_personal_data", "notes")
    assert breach.line.startswith(
        "data.sources.notes: 6 of 10 searched documents (60.0%) hold personal data, "
        "more than audit.max_personal_data=0.5; set data.personal_data.action to redact or drop"
    )


def test_the_line_says_how_many_more_there_are() -> None:
    with pytest.raises(DataError, match=r"hold no target.* \(2 more: `metier audit` shows all\)$"):
        check(manifest(without_targets=500, turns_ended=0, skipped={"broken JSON": 500}))


def test_a_row_that_nothing_is_left_for_is_no_fault() -> None:
    few = packing(documents=1, rows=1, tokens=7)
    check_audit(manifest(), {"good": few, "notes": few}, SEQUENCE_LENGTH, AUDIT)


def test_a_source_of_which_everything_is_held_out_is_not_judged_by_its_train_part() -> None:
    check_audit(manifest(counts(0, 0, 0)), {"good": packing()}, SEQUENCE_LENGTH, AUDIT)
