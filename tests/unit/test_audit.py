"""The audit of stored documents: which are chosen, what is found, and how they are shown."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from tests.unit.test_audit_gate import AUDIT, manifest, packing
from training.audit.body import find_audit_folder
from training.audit.choose import choose_documents
from training.audit.facts import Share, find_facts
from training.audit.gate import find_breaches
from training.audit.lengths import MOST_BINS, Bin, measure_lengths
from training.audit.page import build_page
from training.audit.printed import SHOWN_TOKENS, print_documents
from training.audit.report import AuditReport, to_json
from training.audit.scan import NAMED_DOCUMENTS, Scan, scan_documents
from training.audit.screen import print_report
from training.audit.visible import show_text
from training.audit.words import say_percent
from training.config.sources import Detector
from training.data.corpus.manifest import Counts, FileRecord, ShardRecord, SplitRecord
from training.data.reading.mapped import StoredDocument
from training.model.byte_tokenizer import TURN_END, TURN_START, build_byte_tokenizer

TOKENIZER = build_byte_tokenizer()
ALL: tuple[Detector, ...] = get_args(Detector)
HOSTILE = "\x1b[31m[bold]</span><script>alert(1)</script> \u202eevil\u202c & 'q'"


@dataclass(frozen=True)
class StoredSplit:
    """A split in memory: texts by source, one shard of three documents after another."""

    texts: Sequence[tuple[str, str]]
    removed: frozenset[int] = frozenset()

    @cached_property
    def record(self) -> SplitRecord:
        nothing = Counts(documents=0, tokens=0, targets=0)
        return SplitRecord(
            counts=nothing,
            by_source={},
            by_task={},
            length_percentiles={},
            lengths=FileRecord(file="index/0.npy", checksum="0", bytes=1),
            shards=self._shards(),
        )

    def _shards(self) -> list[ShardRecord]:
        shards: list[ShardRecord] = []
        for place, (source, _) in enumerate(self.texts):
            if place % 3 == 0 or shards[-1].source != source:
                name = f"shards/{place}.arrow"
                shards.append(
                    ShardRecord(
                        file=name, checksum="0", bytes=1, source=source, documents=1, tokens=1, targets=0
                    )
                )
            else:
                shards[-1] = shards[-1].model_copy(update={"documents": shards[-1].documents + 1})
        return shards

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        sizes = [len(self.document(place).input_ids) for place in range(len(self.texts))]
        return np.array(
            [-size if place in self.removed else size for place, size in enumerate(sizes)], dtype=np.int32
        )

    def document(self, index: int) -> StoredDocument:
        source, text = self.texts[index]
        question = f"{TURN_START}user\nq{TURN_END}\n{TURN_START}assistant\n"
        context: list[int] = TOKENIZER(question, add_special_tokens=False)["input_ids"]
        answer: list[int] = TOKENIZER(text + TURN_END, add_special_tokens=False)["input_ids"]
        return StoredDocument(
            id=f"{source}.jsonl:{index}",
            source=source,
            family="f",
            task="t",
            input_ids=np.array(context + answer, dtype=np.int32),
            is_target=np.array([False] * len(context) + [True] * len(answer)),
        )


def corpus(notes: int, good: int, removed: frozenset[int] = frozenset()) -> StoredSplit:
    return StoredSplit(
        [("good", f"good {n}") for n in range(good)] + [("notes", "é" * n) for n in range(notes)], removed
    )


def chosen(splits: Sequence[StoredSplit], source: str, limit: int | None) -> list[list[int]]:
    return [choice.documents.tolist() for choice in choose_documents(splits, source, limit)]


def test_without_a_limit_every_document_of_the_source_is_chosen_but_removed_ones() -> None:
    splits = [corpus(5, 4, removed=frozenset({0, 6})), corpus(2, 1)]
    assert chosen(splits, "good", None) == [[1, 2, 3], [0]]
    assert chosen(splits, "notes", 100) == [[4, 5, 7, 8], [1, 2]]


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_is_kept_and_dealt_over_the_splits_by_their_size(limit: int) -> None:
    train, held_out = chosen([corpus(9, 3), corpus(3, 3)], "notes", limit)
    assert len(train) + len(held_out) == limit
    assert len(held_out) == limit * 3 // 12
    assert len({*train}) == len(train)
    assert all(3 <= number < 12 for number in train)


def test_a_sample_of_a_large_source_touches_few_shards() -> None:
    (numbers,) = chosen([corpus(300, 0)], "notes", 150)
    assert len(numbers) == 150
    assert len({number // 3 for number in numbers}) == 64


def test_personal_data_are_found_in_what_is_stored_and_only_named_by_their_document() -> None:
    texts = [("notes", "nothing"), ("notes", "a@b.org or c@d.org"), ("notes", "call +44 20 7946 0958")]
    done: list[int] = []
    scan = scan_documents(choose_documents([StoredSplit(texts)], "notes", None), TOKENIZER, ALL, done.append)
    assert scan.documents == Share(2, 3)
    assert scan.findings == {"email": 2, "phone": 1}
    assert scan.named == (("notes.jsonl:1", ("email",)), ("notes.jsonl:2", ("phone",)))
    assert sum(done) == 3
    assert "a@b.org" not in repr(scan)


def test_only_the_first_documents_with_findings_are_named() -> None:
    split = StoredSplit([("notes", f"u{n}@b.org") for n in range(NAMED_DOCUMENTS + 5)])
    scan = scan_documents(choose_documents([split], "notes", None), TOKENIZER, ALL, lambda done: None)
    assert scan.documents.part == NAMED_DOCUMENTS + 5
    assert len(scan.named) == NAMED_DOCUMENTS


def test_lengths_are_counted_by_source_without_removed_documents() -> None:
    split = StoredSplit([("a", "x")] * 2 + [("b", "x")] * 4)
    measured = measure_lengths(split.record, np.array([1, 3, 2, -7, 4, 4], dtype=np.int32))
    assert measured["a"].bins == (Bin(1, 1, 1), Bin(2, 2, 0), Bin(3, 3, 1))
    assert measured["b"].bins == (Bin(2, 2, 1), Bin(3, 3, 0), Bin(4, 4, 2))
    assert (measured["b"].median, measured["b"].longest) == (4, 4)


def test_a_source_of_which_everything_was_removed_has_no_lengths() -> None:
    split = StoredSplit([("a", "x")] * 2)
    assert measure_lengths(split.record, np.array([-1, -3], dtype=np.int32))["a"].bins == ()


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (7, 7), (1, 5000), (100, 131), (900, 1_000_000)])
def test_every_length_falls_into_the_bin_that_says_so(shortest: int, longest: int) -> None:
    every = np.unique(np.linspace(shortest, longest, 3000).astype(np.int32))
    split = StoredSplit([("a", "x")] * len(every))
    bins = measure_lengths(split.record, every)["a"].bins
    assert [each.documents for each in bins] == [
        int(((every >= each.first) & (every <= each.last)).sum()) for each in bins
    ]
    assert (bins[0].first, bins[-1].last) == (shortest, longest)
    assert [each.first for each in bins[1:]] == [each.last + 1 for each in bins[:-1]]
    assert len(bins) <= MOST_BINS


def test_printed_documents_are_spread_over_the_sources() -> None:
    printed = print_documents(corpus(50, 2), ["good", "notes"], 7, TOKENIZER)
    assert [document.source for document in printed] == ["good"] * 2 + ["notes"] * 3
    assert printed == print_documents(corpus(50, 2), ["good", "notes"], 7, TOKENIZER)


def test_pieces_give_back_the_text_and_say_what_is_learnt() -> None:
    split = StoredSplit([("notes", "à la carte")])
    (document,) = print_documents(split, ["notes"], 1, TOKENIZER)
    assert "".join(piece.text for piece in document.head) == TOKENIZER.decode(split.document(0).input_ids)
    learnt = [(piece.text, piece.is_control) for piece in document.head if piece.is_target]
    assert learnt == [("à la carte", False), (TURN_END, True)]
    assert document.targets == len("à la carte".encode()) + 1


def test_of_a_long_document_beginning_and_end_are_shown_and_the_rest_is_counted() -> None:
    (document,) = print_documents(StoredSplit([("notes", "x" * 5000)]), ["notes"], 1, TOKENIZER)
    assert document.left_out == document.tokens - 2 * SHOWN_TOKENS
    assert document.tail[-1].text == TURN_END
    assert sum(len(piece.text) for piece in document.tail if not piece.is_control) == SHOWN_TOKENS - 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢字 🙂", "plain é 漢字 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\u202eb\u2066c\u200bd\r", "a\\u202eb\\u2066c\\u200bd\\r"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_characters_that_act_on_the_screen_are_written_out(text: str, shown: str) -> None:
    assert show_text(text) == shown


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 0, "\u2013"),
        (0, 9, "0%"),
        (9, 9, "100%"),
        (1, 3, "33.3%"),
        (1, 10**6, "0.01%"),
        (10**6 - 1, 10**6, "99.99%"),
    ],
)
def test_only_all_is_said_to_be_all_and_only_none_to_be_none(part: int, whole: int, said: str) -> None:
    assert say_percent(Share(part, whole)) == said


def report(text: str = "hello", **changes: Any) -> AuditReport:
    split = StoredSplit([("good", "hello"), ("notes", text)])
    facts = find_facts(manifest(**changes), {"good": packing(), "notes": packing(truncated=7)}, 100)
    nothing = Scan(documents=Share(0, 9), findings={}, named=())
    found = Scan(documents=Share(3, 9), findings={"email": 4}, named=(("notes.jsonl:1", ("email",)),))
    scans = {"good": nothing, "notes": found}
    return AuditReport(
        corpus="data/x",
        fingerprint="f" * 64,
        made="2026-01-02T03:04:05+00:00",
        detectors=ALL,
        action="keep",
        facts=facts,
        lengths=measure_lengths(split.record, split.lengths),
        scans=scans,
        printed=tuple(print_documents(split, ["good", "notes"], 2, TOKENIZER)),
        breaches=tuple(find_breaches(facts, AUDIT, {name: scan.documents for name, scan in scans.items()})),
    )


def screen(report: AuditReport, *, colour: bool) -> str:
    stream = io.StringIO()
    system: Any = "standard" if colour else None
    print_report(report, Console(file=stream, force_terminal=colour, color_system=system, width=80))
    return stream.getvalue()


def test_the_screen_says_what_became_of_everything() -> None:
    said = screen(
        report(
            skipped={"broken JSON": 3}, without_targets=2, removed_exact=4, removed_near=5, turns_ended=1990
        ),
        colour=False,
    )
    assert "broken JSON 3, without targets 2" in said
    assert "4 exact and 5 near copies of held-out documents removed from train" in said
    assert "a target in 1,990 of 2,000 answers (99.5%)" in said
    assert "7 documents truncated" in said
    assert "found in 3 (33.3%): email 4" in said
    assert "less than audit.min_turn_ends=1.0" in said


def test_without_colour_targets_are_in_brackets() -> None:
    assert f"assistant\n⟦hello{TURN_END}⟧" in screen(report(), colour=False)


def test_with_colour_targets_are_green() -> None:
    assert "\x1b[1;32mhello" in screen(report(), colour=True)


def test_a_document_can_neither_colour_nor_command_the_screen() -> None:
    said = screen(report(HOSTILE), colour=False)
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "\\x1b[31m[bold]</span>" in said


class Page(HTMLParser):
    """Collects the tags, the addresses and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str | None] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"href", "src", "srcset"}]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    page = Page()
    page.feed(build_page(report(HOSTILE)))
    return page


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(page: Page) -> None:
    assert page.addresses == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)


def test_the_page_shows_a_hostile_text_as_it_is_written(page: Page) -> None:
    assert show_text(HOSTILE) in page.text
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.text


def test_the_page_says_whether_the_thresholds_are_kept() -> None:
    assert "All thresholds are kept" in build_page(report())
    assert "1 threshold is not kept" in build_page(report(turns_ended=1))


def test_the_json_holds_every_number() -> None:
    values = json.loads(json.dumps(to_json(report(turns_ended=1990))))
    notes = values["sources"]["notes"]
    assert values["passed"] is False
    assert [breach["key"] for breach in values["breaches"]] == ["min_turn_ends"]
    assert notes["turn_ends_share"] == {"part": 1990, "whole": 2000, "value": 0.995}
    assert notes["personal_data_found"]["findings"] == {"email": 4}
    assert notes["packing"]["truncated"] == 7
    assert len(values["printed_documents"]) == 2


@pytest.mark.parametrize(
    ("data_path", "folder"),
    [("data/letters", "data/letters/audit"), ("s3://bucket/corpora/letters/", "audit-letters")],
)
def test_the_report_lies_in_the_corpus_or_here_when_that_is_far_away(data_path: str, folder: str) -> None:
    assert find_audit_folder(data_path) == Path(folder)
