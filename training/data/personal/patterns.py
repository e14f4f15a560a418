"""What personal data look like: one function per detector, each gives the spans that it found.

A detector looks first for what is cheap to find and rare (an at sign, seven digits in a row, a word such as
"password") and only then for the number itself. Repetitions in the patterns are bounded, so no text takes
longer than in proportion to its length. What the detectors find, and what they cannot: docs/data.md.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

from training.data.personal.check_digits import (
    is_codice_fiscale,
    is_cpf,
    is_dni,
    is_nhs_number,
    is_nir,
    is_resident_id,
    is_social_security,
    is_tax_id,
    passes_luhn,
    passes_verhoeff,
)

Span = tuple[int, int]

_AROUND = 24
"""Characters looked at on either side of a run of digits: a label before it, letters after it."""

_DIGITS = re.compile(r"[0-9](?:[ ()./\u00a0-]{0,3}[0-9]){5,}")
_SEPARATORS = str.maketrans("", "", " ()./+-\u00a0")


def find_windows(text: str) -> list[Span]:
    """Find the surroundings of runs of digits that are long enough to be a number of somebody."""
    windows: list[Span] = []
    for run in _DIGITS.finditer(text):
        begin, end = max(0, run.start() - _AROUND), min(len(text), run.end() + _AROUND)
        if windows and begin <= windows[-1][1]:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((begin, end))
    return windows


def _search(pattern: re.Pattern[str], text: str, windows: Sequence[Span]) -> Iterator[re.Match[str]]:
    return chain.from_iterable(pattern.finditer(text, *window) for window in windows)


# E-mail ----------------------------------------------------------------------------------------------------

_MAIL_LOCAL = re.compile(r"[A-Za-z0-9._%+'-]{1,64}\Z")
_MAIL_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}([A-Za-z]{2,24})(?![A-Za-z0-9@])"
)

_FILE_ENDINGS = {"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js", "json", "html", "py", "txt"}
"""What follows the last dot of logo@2x.png is no top-level domain."""


def find_email(text: str) -> Iterator[Span]:
    """Find addresses, name@domain.tld."""
    at = text.find("@")
    while at >= 0:
        local = _MAIL_LOCAL.search(text, max(0, at - 64), at)
        domain = _MAIL_DOMAIN.match(text, at + 1, at + 256)
        if local and domain and domain[1].lower() not in _FILE_ENDINGS:
            begin = local.end() - len(local[0].lstrip(".'%+-"))
            # git@host:path names a repository and nobody.
            is_repository = text[begin:at] == "git" and text[domain.end() : domain.end() + 1] == ":"
            if begin < at and not is_repository:
                yield begin, domain.end()
        at = text.find("@", at + 1)


# Telephone -------------------------------------------------------------------------------------------------

_INTERNATIONAL = re.compile(
    r"(?<![\w.,+-])(?:\+[1-9]\d{0,2}[ ()./\u00a0-]{0,3}|00[1-9]\d{0,2}[ ()./-]{1,3})"
    r"(?:\d[ ()./\u00a0-]{0,2}){5,12}\d(?!\w)"
)
_NORTH_AMERICA = re.compile(
    r"(?<![\w.+-])(?<!\d[ ,;])(?:\+?1[ .-])?"
    r"(?:\([2-9]\d\d\)[ -]?[2-9]\d\d[ .-]|[2-9]\d\d([ .-])[2-9]\d\d\1)\d{4}(?!\w|[.-]\d|[ ,;]\d)"
)
_FRANCE = re.compile(r"(?<![\w.+-])0[1-9]([ .-])\d\d(?:\1\d\d){3}(?!\w|[ .-]?\d)")
_TRUNK = re.compile(
    r"(?<![\w.,+/-])(?:\(0[1-9]\d{1,4}\)[ /-]?|0[1-9]\d{1,4}[ /-]{1,3})\d{3,8}(?:[ -]\d{2,5}){0,2}"
    r"(?!\w|[./-]\d)"
)
_LABELLED_PHONE = re.compile(
    r"(?<![^\W_])(?i:tel|telephone|telefon|telefono|teléfono|téléphone|phone|mobile|cell|fax|handy)\b"
    r"[.:#]{0,2} {0,2}(\+?(?:\d[ ()./-]{0,2}){6,14}\d)(?!\w)"
)
_POSTAL_CODE = re.compile(r"\d{5}-\d{4}")
"""US ZIP+4, of the north-east: they begin with 0."""

_PHONE_DIGITS = range(9, 16)
"""E.164: at most 15. Fewer than 9 with their area code are taken for something else unless labelled."""


def find_phone(text: str, windows: Sequence[Span]) -> Iterator[Span]:
    """Find international numbers, and national ones by their separators; a plain number only with a label."""
    for match in _search(_LABELLED_PHONE, text, windows):
        yield match.span(1)
    for pattern in (_INTERNATIONAL, _NORTH_AMERICA, _FRANCE, _TRUNK):
        for match in _search(pattern, text, windows):
            digits = match[0].translate(_SEPARATORS)
            # +100 000 000 is an amount.
            is_other = digits.endswith("000000") or _POSTAL_CODE.fullmatch(match[0])
            if len(digits) in _PHONE_DIGITS and not is_other:
                yield match.span()


# National identity numbers ---------------------------------------------------------------------------------

_NATIONAL = (
    # United States; United Kingdom (National Insurance, HMRC NIM39110); Spain; France; Germany
    (re.compile(r"(?<![\w.-])\d{3}-\d{2}-\d{4}(?![\w-])"), is_social_security),
    (
        re.compile(
            r"(?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]"
            r"(?:\d{6}| \d\d \d\d \d\d | \d{6} )[A-D](?!\w)"
        ),
        lambda number: True,  # it has no check digit: prefix and form must do
    ),
    (re.compile(r"(?<!\w)(?:\d{8}|[XYZ]-?\d{7})-?[A-Z](?!\w)"), is_dni),
    (
        re.compile(
            r"(?<![\w.,-])[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d(?![\w-])"
        ),
        is_nir,
    ),
    (re.compile(r"(?<![\w.,-])[1-9](?:\d{10}|\d \d{3} \d{3} \d{3})(?!\w|[.,-]\d)"), is_tax_id),
    # India, Aadhaar; Brazil, CPF; Canada, SIN; China; Sweden
    (re.compile(r"(?<![\w.,-])(?<!\d )[2-9]\d{3}([ -])\d{4}\1\d{4}(?![\w-])(?! \d)"), passes_verhoeff),
    (re.compile(r"(?<![\w.-])\d{3}\.\d{3}\.\d{3}-\d\d(?![\w-])"), is_cpf),
    (re.compile(r"(?<![\w.-])[1-79]\d\d-\d{3}-\d{3}(?![\w-])"), passes_luhn),
    (
        re.compile(
            r"(?<![\w.-])[1-8]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dX](?!\w)"
        ),
        is_resident_id,
    ),
    (
        re.compile(r"(?<![\w.-])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-\d{4}(?![\w-])"),
        passes_luhn,
    ),
)
_LIKE_CODICE = re.compile(r"[A-Z]{6}[0-9L-V]{2}[A-T][0-9L-V]{2}")
_CODICE_FISCALE = re.compile(
    r"(?<![A-Za-z0-9])[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPRST][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z](?![A-Za-z0-9])"
)


def find_national_id(text: str, windows: Sequence[Span]) -> Iterator[Span]:
    """Find numbers with a check digit or a range of eleven countries."""
    for pattern, is_valid in _NATIONAL:
        for match in _search(pattern, text, windows):
            if is_valid(match[0].translate(_SEPARATORS)):
                yield match.span()
    for match in _CODICE_FISCALE.finditer(text) if _LIKE_CODICE.search(text) else ():
        if is_codice_fiscale(match[0]):
            yield match.span()


# Medical records -------------------------------------------------------------------------------------------

_RECORD_WORDS = (
    "mrn",
    "medical record",
    "patient id",
    "patient no",
    "patient number",
    "hospital n",
    "nhs n",
    "chart n",
    "patientennummer",
    "historia clínica",
    "dossier patient",
)
_LABELLED_RECORD = re.compile(
    r"(?<!\w)(?i:(?:mrn|medical record|patientennummer|historia clínica|dossier patient)"
    r"(?:[ -]?(?:id|no|nr|n°|number|num))?|(?:patient|hospital|nhs|chart)[ -]?(?:id|no|nr|n°|number|num))"
    r"[.:#= ]{1,4}((?:[A-Z]{1,3}-?)?\d(?:[ -]?\d){4,11})(?!\w)"
)
_NHS_NUMBER = re.compile(r"(?<![\w.+-])(?<!\d )[4679]\d\d([ -])\d{3}\1\d{4}(?![\w-])(?! \d)")
_LIKE_MEDICARE = re.compile(r"[0-9]-[A-Y][A-Y0-9][0-9]-[A-Y]{2}[0-9]{2}")
_MEDICARE = re.compile(
    r"(?<![A-Za-z0-9-])[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y0-9]\d-"
    r"[AC-HJKMNP-RT-Y]{2}\d\d(?![A-Za-z0-9-])"
)
"""Medicare Beneficiary Identifier, as CMS prints it: 1EG4-TE5-MK73."""


def find_medical_record(text: str, windows: Sequence[Span]) -> Iterator[Span]:
    """Find numbers labelled as a record's or a patient's; NHS and Medicare numbers without a label."""
    lower = text.lower()
    if any(word in lower for word in _RECORD_WORDS):
        for match in _LABELLED_RECORD.finditer(text):
            yield match.span(1)
    for match in _search(_NHS_NUMBER, text, windows):
        if is_nhs_number(match[0].translate(_SEPARATORS)):
            yield match.span()
    for match in _MEDICARE.finditer(text) if _LIKE_MEDICARE.search(text) else ():
        yield match.span()


# Payment cards ---------------------------------------------------------------------------------------------

_CARD = re.compile(
    r"(?<![\w.,-])(?<!\d )"
    r"(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6(?:011|[245]\d\d)|35\d\d)([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?"
    r"|3(?:[47]\d\d)([ -]?)\d{6}\2\d{5}|3(?:0[0-5]|[68]\d)\d([ -]?)\d{6}\3\d{4})(?!\w|[.,-]\d| \d)"
)
"""By the issuer's first digits (ISO/IEC 7812): Visa, Mastercard, UnionPay and Discover, JCB; Amex; Diners."""


def find_credit_card(text: str, windows: Sequence[Span]) -> Iterator[Span]:
    """Find payment cards: an issuer's first digits, its length, and the check digit."""
    for match in _search(_CARD, text, windows):
        if passes_luhn(match[0].translate(_SEPARATORS)):
            yield match.span()


# Addresses of machines -------------------------------------------------------------------------------------

_LIKE_IPV4 = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?!\w|\.\w|-\w)")
_LIKE_IPV6 = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{1,4}:[0-9A-Fa-f:]{2,34}(?![\w:])")
_IS_NUMBERED = re.compile(r"(?i:versions?|ver|v|release|sections?|clause|chapter|article|§)[.: ]{0,2}\Z")
_OUTLINE_PARTS = 3
_MIN_GROUPS = 3


def find_ip_address(text: str) -> Iterator[Span]:
    """Find IPv4 and IPv6 addresses; not the machine's own (loopback), not numbers of versions or sections."""
    for match in _IPV4.finditer(text) if _LIKE_IPV4.search(text) else ():
        is_labelled = _IS_NUMBERED.search(text, max(0, match.start() - _AROUND), match.start())
        if not is_labelled and not _is_outline(match[0]) and _is_somewhere(match[0]):
            yield match.span()
    for match in _IPV6.finditer(text) if _LIKE_IPV6.search(text) else ():
        groups = [group for group in match[0].split(":") if group]
        has_digit = any(character.isdigit() for character in match[0])
        if len(groups) >= _MIN_GROUPS and has_digit and _is_somewhere(match[0]):
            yield match.span()


def _is_outline(address: str) -> bool:
    # 3.1.12.1 is a section or a version far oftener than an address; 10.0.0.1 goes with it, and is nobody's.
    lengths = [len(part) for part in address.split(".")]
    return lengths.count(1) >= _OUTLINE_PARTS and max(lengths) <= 2  # noqa: PLR2004


def _is_somewhere(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return not (found.is_loopback or found.is_unspecified or address.startswith(("0.", "255.")))


Detect = Callable[[str, Sequence[Span]], Iterator[Span]]


def whole_text(find: Callable[[str], Iterator[Span]]) -> Detect:
    """Make a detector of one that has no use for the windows."""
    return partial(_without_windows, find)


def _without_windows(
    find: Callable[[str], Iterator[Span]], text: str, windows: Sequence[Span]
) -> Iterator[Span]:
    del windows
    return find(text)
