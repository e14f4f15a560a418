"""Law: licence agreements with their category, from the package licensedcode-data.

The package keeps one ``KEY.LICENSE`` file per licence: YAML between two ``---`` lines, then the agreement.
"""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from training.config.sources import LicencesSource
from training.data.documents import Document, PromptCompletion, Provenance, Text, sample_evenly
from training.data.sources.packages import find_version
from training.errors import DataError

PACKAGE = "licensedcode-data"
LICENCE = "CC-BY-4.0 (ScanCode's data); each agreement belongs to its author"


_HEADER = re.compile(r"---\n(.*?)^---[ ]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Licence:
    key: str
    category: str
    text: str


def read_licences(name: str, source: LicencesSource) -> Iterator[Document]:
    """Yield agreements, or questions about their first clause, in the order of their keys.

    Left out: deprecated entries (repeated under their new key), and entries without a text.

    Raises:
        DataError: The package is not installed, or one of its files is not as described above.
    """
    find_version(name, PACKAGE)
    for licence in sample_evenly(_read_all(_find_folder(name)), source.max_documents):
        match source.form:
            case "texts":
                content: Text | PromptCompletion = Text(licence.text)
                task = "licence_text"
            case "questions":
                content = _ask(licence, source.clause_characters)
                task = "licence_category"
        yield Document(
            id=f"licences/{licence.key}/{task}",
            family=find_family(licence.key),
            source=name,
            task=task,
            content=content,
        )


def measure_licences(name: str, source: LicencesSource) -> int:
    """Say about how many bytes there are to read: the agreements, or so much of each as is quoted."""
    find_version(name, PACKAGE)
    sizes = [path.stat().st_size for path in sorted(_find_folder(name).glob("*.LICENSE"))]
    if source.form == "questions":
        sizes = [min(size, source.clause_characters) for size in sizes]
    return sum(sample_evenly(sizes, source.max_documents))


def trace_licences(name: str) -> Provenance:
    """Name the package's version."""
    return Provenance(content={PACKAGE: find_version(name, PACKAGE)}, licence=LICENCE, notes={})


def find_family(key: str) -> str:
    """Take the first word of a licence's key: whose licence it is, without version and variant.

    ``gpl-2.0``, ``gpl-3.0-plus`` and ``gpl-2.0-libtool`` are all ``gpl``, ``bsd-new`` and
    ``bsd-axis-nomod`` are ``bsd``: variants repeat whole paragraphs, so the cut is a wide one.
    """
    return key.split("-", 1)[0]


def _ask(licence: _Licence, characters: int) -> PromptCompletion:
    clause = licence.text[:characters].strip()
    prompt = f"A licence agreement begins:\n\n{clause}\n\nWhich category of licence is this?\nCategory:\n"
    return PromptCompletion(prompt, licence.category)


def _find_folder(name: str) -> Path:
    # Beside scancode-toolkit, which is a package of the same name, the data lies in the same folder.
    spec = importlib.util.find_spec("licensedcode")
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place) / "data" / "licenses"
        if folder.is_dir():
            return folder
    raise DataError(
        f"data.sources.{name}: the package {PACKAGE} has no folder licensedcode/data/licenses; "
        f"run `pip install --force-reinstall {PACKAGE}`"
    )


@cache
def _read_all(folder: Path) -> list[_Licence]:
    licences = []
    for path in sorted(folder.glob("*.LICENSE")):
        header, text = _split(path)
        if not header.get("is_deprecated") and text:
            licences.append(_Licence(str(header["key"]), str(header["category"]), text))
    if not licences:
        raise DataError(f"{folder}: no *.LICENSE file; run `pip install --force-reinstall {PACKAGE}`")
    return licences


def _split(path: Path) -> tuple[dict[str, Any], str]:
    text = path.read_text(encoding="utf-8")
    found = _HEADER.match(text)
    header = yaml.load(found[1], Loader=_LOADER) if found else None  # noqa: S506 -- a safe loader
    if not isinstance(header, dict) or not {"key", "category"} <= header.keys():
        raise DataError(f"{path}: no YAML header with key and category; reinstall {PACKAGE}")
    return header, text[found.end() :].strip() if found else ""


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it: 2,300 headers in one second instead of ten."""
