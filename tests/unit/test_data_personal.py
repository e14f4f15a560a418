"""Personal data in text: what is found, what must not be, and what is left after it is replaced."""

import random
import string
from collections import Counter
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.config.sources import Detector
from training.data.documents import Document, Message, Messages, PromptCompletion, Text
from training.data.personal.find import find_personal, redact, redact_document

ALL: tuple[Detector, ...] = get_args(Detector)

FOUND: dict[Detector, list[str]] = {
    "email": [
        "alice.b+lists@mail.example.co.uk",
        "O'Neil_9@clinic-nord.org",
        "x@y.io",
        "info@xn--mnchen-3ya.de",
    ],
    "phone": [
        "+44 20 7946 0958",
        "+1 (212) 555-0123",
        "+49-30-12345678",
        "+4930123456789",
        "0033 1 23 45 67 89",
        "(212) 555-0123",
        "212-555-0123",
        "212.555.0123",
        "1-800-555-0199",
        "020 7946 0958",
        "07700 900123",
        "01 23 45 67 89",
        "01.23.45.67.89",
        "030/12345678",
        "(030) 1234567",
        "0171-1234567",
    ],
    "national_id": [
        "536-90-4399",
        "AB123456C",
        "AB 12 34 56 C",
        "12345678Z",
        "X5253868R",
        "X-2482300-W",
        "2 95 10 99 126 111 93",
        "295109912611193",
        "RCCMNL83S18D969H",
        "86095742719",
        "47 036 892 816",
        "2341 2341 2346",
        "390.533.447-05",
        "123-456-782",
        "11010519491231002X",
        "880320-0016",
    ],
    "medical_record": ["943 476 5919", "943-476-5919", "1EG4-TE5-MK73"],
    "key": [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1B2c3D4e5F6g7H8i9J0" * 2,
        "github_pat_11ABCDEFG0aBcDeFgHiJkL_mNoPqRsTuV",
        "xoxb-123456789012-abcdefABCDEF",
        "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
        "sk-proj-Ab3dEf6hIj9kLm2nOp5qRs8t",
        "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
        "hf_" + "AbCdEfGhIj" * 3 + "KlMn",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + "IBAAKCAQEA" * 9 + "\n-----END RSA PRIVATE KEY-----",
    ],
    "credit_card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "3782 822463 10005",
        "6011111111111117",
        "30569309025904",
        "3530111333300000",
        "2223003122003222",
    ],
    "ip_address": [
        "203.0.113.77",
        "10.20.30.40",
        "2001:db8::8a2e:370:7334",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    ],
}

LABELLED: list[tuple[Detector, str, str]] = [
    ("phone", "Tel.: 5550123", "5550123"),
    ("phone", "my mobile 9876543210 is off", "9876543210"),
    ("medical_record", "MRN: 00123456", "00123456"),
    ("medical_record", "Medical record no. A-1234567 was opened", "A-1234567"),
    ("medical_record", "Patient ID #448812", "448812"),
    ("medical_record", "NHS number: 943 476 5870", "943 476 5870"),
    ("key", 'password = "Tr0ub4dor&3x"', "Tr0ub4dor&3x"),
    ("key", "DB_PASSWORD=s3cR3t-9fQ2", "s3cR3t-9fQ2"),
    ("key", "api_key: 'f3a9c17be2d8'", "f3a9c17be2d8"),
    ("key", "postgres://app:Zx81!qpL@database/main", "Zx81!qpL"),
]

ORDINARY = [
    # Medicine: codes, doses, values, trials
    "ICD-10-CM E11.9, S72.001A, Z79.899 and O09.513; SNOMED 73211009, LOINC 2345-7, CPT 99213-25.",
    "Take 500 mg 3-4 times a day; BP 120/80 mmHg, Hb 13.5 g/dl, eGFR 60-89, NCT01234567, PMID 31986264.",
    "The patient number 3 of the ward had medical records of the hospital 2019-2020; see chart 4.",
    "doi:10.1056/NEJMoa2001017, ISBN 978-3-16-148410-0, ISBN 0-306-40615-2, ISSN 2049-3630",
    # Law: sections, citations, dates, amounts
    "Section 12.4.1.2, Clause 1.2.3.4 and § 4.3.2.1(b) of 17 U.S.C. 512(c)(3), 42 CFR 482.24, 123 F.3d 1234.",
    "On 2024-01-02, 01/02/2024 12:30:45, 02.01.2024 or 1999-12-31T23:59:59Z; in 1990-1995 and 2001-02-03.",
    "EUR 1,234,567.89, $12 345 678, 100 000 000 persons, +100 000 000, 3.14159265358979, 1e+10, -273.15",
    "Licensed under Apache-2.0; Copyright (c) 1998, 1999, 2000-2007 The Authors; SPDX GPL-2.0-or-later.",
    "Regulation (EU) 2016/679, Directive 95/46/EC, BGBl. I 2017 S. 2097, ECLI:EU:C:2014:317",
    "51 Franklin Street, Boston, MA 02110-1301 USA; see 3.1.12.1 and 6.9.0.31 of the agreement",
    # Code and logs
    "version 10.20.30.40, v2.10.11.12, OID 2.16.840.1.113883.6.90, 127.0.0.1:80, 0.0.0.0, 255.255.255.0",
    "550e8400-e29b-41d4-a716-446655440000 d41d8cd98f00b204e9800998ecf8427e 0x1234567890abcdef",
    "@property std::vector<int> a::b 12:30:45 00:1a:2b:3c:4d:5e git@github.com:owner/name.git logo@2x.png",
    "token = tokenizer.decode(ids); password: str; secret = getpass(); api_key=os.environ['API_KEY_2024']",
    "password=<your password here>, token: ${TOKEN}, password: changeme, the token is never written down",
    "sk-learn-is-another-name-for-scikit-learn, ghp_short, xoxo, AKIA, eyJ.eyJ.x, -----BEGIN PUBLIC KEY-----",
    "user@localhost, @handle, price @ 3.50, npm install pkg@1.2.3",
    # Numbers that are nobody's: a wrong check digit, a range that is not given, digits of something larger
    "4111111111111112 and 0.4111111111111111 and 12345678A and 000-12-3456 and 666-12-3456 and 912-34-5678",
    "2341 2341 2345, 390.533.447-06, 123-456-789, 86095742718, 110105194912310021, 943 476 5918 00",
    "300 400 5000 600 700 8000; 1 2 3 4 5 6 7 8 9; 12345678901234567890; 1234567; 2020 2021 2022 2023",
    "BG123456A is no insurance number, nor is AB123456Z",
]


@pytest.mark.parametrize(("detector", "text"), [(d, text) for d, texts in FOUND.items() for text in texts])
def test_it_is_found_whole_wherever_it_stands(detector: Detector, text: str) -> None:
    for before, after in (("", ""), ("See ", "."), ("(", ")"), ("é: ", ", then"), ("one\n", "\ntwo")):
        findings = find_personal(before + text + after, ALL)
        assert [(f.detector, (before + text + after)[f.start : f.stop]) for f in findings] == [
            (detector, text)
        ]


@pytest.mark.parametrize(("detector", "text", "wanted"), LABELLED)
def test_a_label_makes_a_plain_number_personal(detector: Detector, text: str, wanted: str) -> None:
    assert [(f.detector, text[f.start : f.stop]) for f in find_personal(text, ALL)] == [(detector, wanted)]


@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_nobodys_is_left_alone(text: str) -> None:
    assert [(f.detector, text[f.start : f.stop]) for f in find_personal(text, ALL)] == []


@pytest.mark.parametrize("detector", ALL)
def test_only_the_detectors_that_were_named_look(detector: Detector) -> None:
    text = "\n".join(texts[0] for texts in FOUND.values())
    assert {finding.detector for finding in find_personal(text, [detector])} == {detector}


@pytest.mark.parametrize("kind", ["national", "card", "nhs"])
def test_one_wrong_digit_is_no_number_of_anybodys(kind: str) -> None:
    text = {"national": "12345678Z", "card": "4111 1111 1111 1111", "nhs": "943 476 5919"}[kind]
    detector: Detector = {"national": "national_id", "card": "credit_card", "nhs": "medical_record"}[kind]
    for place, digit in enumerate(text):
        for other in set(string.digits) - {digit} if digit.isdigit() else set():
            changed = text[:place] + other + text[place + 1 :]
            assert find_personal(changed, [detector]) == [], changed


def test_what_is_found_is_replaced_by_its_kind_and_counted() -> None:
    text, counts = redact("Write to a@b.org or c@d.org, call +44 20 7946 0958.", ALL)
    assert text == "Write to [EMAIL] or [EMAIL], call [PHONE]."
    assert counts == {"email": 2, "phone": 1}


def test_two_detectors_on_one_number_count_once() -> None:
    text, counts = redact("NHS number: 943 476 5919", ["phone", "medical_record"])
    assert text == "NHS number: [MEDICAL_RECORD]"
    assert counts == {"medical_record": 1}


def test_nothing_is_left_to_find_in_a_redacted_text() -> None:
    text = "\n".join(each for texts in FOUND.values() for each in texts)
    redacted, counts = redact(text, ALL)
    assert find_personal(redacted, ALL) == []
    assert counts == {detector: len(texts) for detector, texts in FOUND.items()}


CONTENTS = {
    "text": Text("x@y.io"),
    "prompt": PromptCompletion("x@y.io", "none"),
    "completion": PromptCompletion("none", "x@y.io"),
    "message": Messages((Message("user", "hello"), Message("assistant", "x@y.io", weight=0))),
    "tool call": Messages(
        (
            Message(
                "assistant",
                "",
                extra={"tool_calls": [{"function": {"name": "f", "arguments": {"to": ["x@y.io"], "n": 1}}}]},
            ),
        )
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_every_part_of_a_document_is_redacted_and_nothing_else_is_changed(name: str) -> None:
    content = CONTENTS[name]
    document = Document(id="d", family="f", source="s", task="t", content=content, train_on="all")
    redacted, counts = redact_document(document, ALL)
    assert counts == Counter(email=1)
    assert repr(redacted) == repr(document).replace("x@y.io", "[EMAIL]")


@pytest.mark.parametrize("name", CONTENTS)
def test_a_document_without_findings_is_the_same_object(name: str) -> None:
    document = Document(id="d", family="f", source="s", task="t", content=CONTENTS[name])
    assert redact_document(document, ["phone"]) == (document, Counter())
    assert redact_document(document, ["phone"])[0] is document


@given(st.text(alphabet=string.printable + "é\u00a0", max_size=300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_findings_lie_in_the_text_in_order_and_apart(text: str) -> None:
    end = 0
    for finding in find_personal(text, ALL):
        assert end <= finding.start < finding.stop <= len(text)
        end = finding.stop


@pytest.mark.parametrize(
    "unit", ["a", "1", "@", "a@", "1 ", "1.", "12-", "(0", "a.", ":", "a1:", "+1", "token=", "eyJ"]
)
def test_no_text_takes_more_than_in_proportion_to_its_length(unit: str) -> None:
    # A pattern that backtracks without bounds would need days for this, not a moment.
    find_personal(unit * (60_000 // len(unit)), ALL)


def test_random_words_and_numbers_hold_hardly_anything() -> None:
    draw = random.Random(5)
    words = ("".join(draw.choices(string.ascii_lowercase, k=draw.randint(1, 9))) for _ in range(40_000))
    numbers = (str(draw.randrange(10 ** draw.randint(1, 7))) for _ in range(4_000))
    text = " and ".join(f"{word} {number}" for word, number in zip(words, numbers, strict=False))
    assert find_personal(text, ALL) == []


def test_tools_and_the_names_of_their_arguments_are_redacted_as_well() -> None:
    call = {"function": {"name": "f", "arguments": {"ann@example.org": "x"}}}
    tool = {"function": {"description": "Ask bob@example.org"}}
    messages = (Message("user", "Ask."), Message("assistant", "", extra={"tool_calls": [call]}))
    content = Messages(messages, (tool,))
    document = Document(id="a", family="f", source="s", task="t", content=content)

    redacted, counts = redact_document(document, ["email"])

    assert counts == {"email": 2}
    assert "example.org" not in repr(redacted)
