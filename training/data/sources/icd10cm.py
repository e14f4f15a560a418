"""Medicine: the codes of ICD-10-CM as questions and answers.

Chapters and blocks (``4``, ``E08-E13``) are headings and no codes: nothing is asked of them.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from training.config.sources import Icd10cmSource
from training.data.documents import Document, Message, Messages, Provenance, sample_evenly
from training.data.sources.packages import find_version

PACKAGE = "simple-icd-10-cm"
LICENCE = "MIT (the package); ICD-10-CM itself is a work of the US government (NCHS)"
CATEGORY_CHARACTERS = 3

CODES = 98_000
CHAT_BYTES = 150
"""About, for the progress of preparing; no document depends on them."""


def read_icd10cm(name: str, source: Icd10cmSource) -> Iterator[Document]:
    """Yield chats in the order of the codes; a code's family is its three-character category.

    Raises:
        DataError: The package is not installed.
    """
    find_version(name, PACKAGE)
    import simple_icd_10_cm as icd  # noqa: PLC0415 -- parses 98,000 codes on import: seconds

    codes = [code for code in icd.get_all_codes(True) if icd.is_category(code) or icd.is_subcategory(code)]
    asked = _choose(icd, codes, source)
    for place, question in asked:
        code = codes[place]
        prompt, answer = _ask(icd, code, question)
        turns = [Message("user", prompt), Message("assistant", answer)]
        if source.system_prompt:
            turns.insert(0, Message("system", source.system_prompt))
        yield Document(
            id=f"icd10cm/{code}/{question}",
            family=code[:CATEGORY_CHARACTERS],
            source=name,
            task=question,
            content=Messages(tuple(turns)),
        )


def measure_icd10cm(name: str, source: Icd10cmSource) -> int:
    """Say about how many bytes there are to read, without parsing the classification."""
    find_version(name, PACKAGE)
    questions = CODES * len(source.questions)
    return CHAT_BYTES * min(questions, source.max_documents or questions)


def trace_icd10cm(name: str) -> Provenance:
    """Name the package's version, which fixes the edition of the classification."""
    return Provenance(content={PACKAGE: find_version(name, PACKAGE)}, licence=LICENCE, notes={})


def _choose(icd: Any, codes: list[str], source: Icd10cmSource) -> list[tuple[int, str]]:
    # Sampled question by question, so that the distance between samples never falls into step with
    # the cycle of questions; then back in the order of the codes.
    places: dict[str, list[int]] = {question: list(range(len(codes))) for question in source.questions}
    if "description_to_code" in places:
        # Some codes share their description with their own subdivision: no answer would be the right one.
        descriptions = [icd.get_description(code) for code in codes]
        used = Counter(descriptions)
        places["description_to_code"] = [
            place for place, description in enumerate(descriptions) if used[description] == 1
        ]
    if "exclusions" in places:
        places["exclusions"] = [place for place, code in enumerate(codes) if _exclusions(icd, code)]
    every: list[tuple[int, str]] = [
        (place, question) for question in dict.fromkeys(source.questions) for place in places[question]
    ]
    rank: dict[str, int] = {question: index for index, question in enumerate(source.questions)}
    return sorted(sample_evenly(every, source.max_documents), key=lambda pair: (pair[0], rank[pair[1]]))


def _ask(icd: Any, code: str, question: str) -> tuple[str, str]:
    match question:
        case "code_to_description":
            return f"What does the ICD-10-CM code {code} stand for?", icd.get_description(code)
        case "description_to_code":
            return f"Give the ICD-10-CM code of: {icd.get_description(code)}", code
        case "exclusions":
            asked = f"What is excluded from the ICD-10-CM code {code} ({icd.get_description(code)})?"
            return asked, "\n".join(_exclusions(icd, code))
        case _:
            asked = (
                f"Which chapter of ICD-10-CM does the code {code} ({icd.get_description(code)}) belong to?"
            )
            chapter = icd.get_ancestors(code)[-1]
            return asked, f"Chapter {chapter}: {icd.get_description(chapter)}"


def _exclusions(icd: Any, code: str) -> list[str]:
    return [*icd.get_excludes1(code), *icd.get_excludes2(code)]
