"""What keys and passwords look like: issuers' prefixes, key blocks, and words such as ``password=``."""

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

_ISSUED = {
    # What every key of the kind contains -> the whole key.
    "AKIA": r"AKIA[A-Z2-7]{16}",
    "ASIA": r"ASIA[A-Z2-7]{16}",
    **{f"gh{kind}_": rf"gh{kind}_[A-Za-z0-9]{{36,255}}" for kind in "pousr"},
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}",
    "glpat-": r"glpat-[A-Za-z0-9_-]{20,64}",
    "xox": r"xox[abeoprs]-[A-Za-z0-9-]{10,255}",
    "_live_": r"[rsp]k_live_[A-Za-z0-9]{16,128}",
    "_test_": r"[rsp]k_test_[A-Za-z0-9]{16,128}",
    "AIza": r"AIza[A-Za-z0-9_-]{35}",
    "hf_": r"hf_[A-Za-z0-9]{30,64}",
    "npm_": r"npm_[A-Za-z0-9]{36}",
    "pypi-": r"pypi-[A-Za-z0-9_-]{50,255}",
    "dop_v1_": r"dop_v1_[a-f0-9]{64}",
    "SG.": r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
}
"""AWS, GitHub, GitLab, Slack, Stripe, Google, Hugging Face, npm, PyPI, DigitalOcean, SendGrid: as they write
in their own documentation."""

_PATTERNS = {
    piece: re.compile(rf"(?<![A-Za-z0-9_-]){pattern}(?![A-Za-z0-9_])") for piece, pattern in _ISSUED.items()
}
_SK = re.compile(r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,255}(?![A-Za-z0-9_-])")
_JWT = re.compile(
    r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,8192}\.[A-Za-z0-9_-]{8,1024}(?![A-Za-z0-9_-])"
)
_BEGIN_BLOCK = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_END_BLOCK = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BLOCK_BODY = re.compile(r"[A-Za-z0-9+/=\s]{64,}")
_BLOCK_CHARACTERS = 16_384
"""The longest private key block looked for; one without an end is taken as far as it is base64."""

_IN_ADDRESS = re.compile(r"://[^\s:/@]{1,64}:([^\s:/@]{3,128})@")
_WORDS = ("passw", "pwd", "secret", "token", "api_key", "apikey", "api-key", "access_key", "credential")
_ASSIGNED = re.compile(
    r"""[A-Za-z_]{0,16}["']?\s{0,3}[:=]\s{0,3}["']?([A-Za-z0-9+/=_!@#$%^&*.~-]{8,128})(?![A-Za-z0-9(\[{<])"""
)
"""What follows one of the words."""

_MIN_ENTROPY = 2.75
"""Bits per character of a password: eight characters of which seven differ."""

_MIN_ASSIGNED = 8


def find_key(text: str) -> Iterator[Span]:
    """Find secrets: keys by their issuer's prefix, private key blocks, JWT, passwords in settings and URLs.

    What follows ``password=`` counts when it looks random: letters and digits, hardly any character twice.
    """
    for piece, pattern in _PATTERNS.items():
        if piece in text:
            for match in pattern.finditer(text):
                yield match.span()
    if "sk-" in text:
        yield from (match.span() for match in _SK.finditer(text) if _looks_random(match[0][3:]))
    if "eyJ" in text:
        yield from (match.span() for match in _JWT.finditer(text))
    if "PRIVATE KEY" in text:
        yield from _find_blocks(text)
    if "://" in text and "@" in text:
        yield from (match.span(1) for match in _IN_ADDRESS.finditer(text) if "$" not in match[1])
    yield from _find_assigned(text)


def _find_assigned(text: str) -> Iterator[Span]:
    lower = text.lower()
    # A few letters have a lower case of two characters: then places would not agree.
    lower = lower if len(lower) == len(text) else text
    for word in _WORDS:
        place = lower.find(word)
        while place >= 0:
            place += len(word)
            if match := _ASSIGNED.match(text, place):
                value = match[1].rstrip(".,;")
                if len(value) >= _MIN_ASSIGNED and _looks_random(value):
                    yield match.start(1), match.start(1) + len(value)
            place = lower.find(word, place)


def _find_blocks(text: str) -> Iterator[Span]:
    for begin in _BEGIN_BLOCK.finditer(text):
        end = _END_BLOCK.search(text, begin.end(), begin.end() + _BLOCK_CHARACTERS)
        if end:
            yield begin.start(), end.end()
        elif key := _BLOCK_BODY.match(text, begin.end(), begin.end() + _BLOCK_CHARACTERS):
            yield begin.start(), key.end()


def _looks_random(value: str) -> bool:
    has_digit = any(character.isdigit() for character in value)
    has_letter = any(character.isalpha() for character in value)
    return has_digit and has_letter and _entropy(value) >= _MIN_ENTROPY


def _entropy(value: str) -> float:
    """Shannon entropy of the characters, bits per character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
