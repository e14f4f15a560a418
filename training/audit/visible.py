"""Text that cannot act on the screen: characters that move, hide or turn it are written out."""

import unicodedata

_KEPT = "\n\t"
_ACTING = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
"""Unicode's categories of control and format characters, private use, surrogates, separators of lines."""


def show_text(text: str) -> str:
    r"""Write out what does not print: an escape character as ``\x1b``, for instance."""
    if text.isprintable():
        return text
    return "".join(_show(character) for character in text)


def _show(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _ACTING:
        return character
    return character.encode("unicode_escape").decode("ascii")
