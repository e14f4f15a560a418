"""Check digits of the numbers that people and their cards bear: what tells them from any other number.

Pure arithmetic on strings. Each function is given digits alone, without separators, and as many as the number
has: the patterns of :mod:`training.data.personal.patterns` see to that.
"""

_VERHOEFF_TABLE = (
    "0123456789",
    "1234067895",
    "2340178956",
    "3401289567",
    "4012395678",
    "5987604321",
    "6598710432",
    "7659821043",
    "8765932104",
    "9876543210",
)
"""The dihedral group D5 (Verhoeff 1969, Error Detecting Decimal Codes)."""

_VERHOEFF_SHIFTS = (
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
)

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
"""Spain, Real Decreto 1553/2005: the number modulo 23."""

_CODICE_ODD = dict(
    zip(
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        (
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21),
            *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
        ),
        strict=True,
    )
)
"""Italy, Decreto Ministeriale of 12 March 1974: values of the characters in odd places."""

_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
"""China, GB 11643-1999: 2^(17 - place) modulo 11."""


def passes_luhn(digits: str) -> bool:
    """Payment cards (ISO/IEC 7812), the Canadian SIN, the Swedish personal number."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(int(digit) for digit in digits[::-2])) % 10 == 0


def passes_verhoeff(digits: str) -> bool:
    """The Indian Aadhaar number."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_VERHOEFF_TABLE[check][int(_VERHOEFF_SHIFTS[place % 8][int(digit)])])
    return check == 0


def is_social_security(digits: str) -> bool:
    """US social security number: area, group and serial as the SSA gives them (POMS RM 10201.035)."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def is_dni(number: str) -> bool:
    """Spanish DNI (eight digits) or NIE (X, Y or Z and seven digits), each with its letter."""
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return _DNI_LETTERS[int(digits) % 23] == number[-1]


def is_nir(number: str) -> bool:
    """French NIR of 13 characters and its key of two: 97 minus the number modulo 97 (INSEE)."""
    # Corsica's departments are 2A and 2B; they count as 19 and 18.
    digits = number[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(digits) % 97 == int(number[13:])


def is_codice_fiscale(code: str) -> bool:
    """Italian codice fiscale of 16 characters."""
    total = sum(
        _CODICE_ODD[character] if place % 2 == 0 else int(character, 36) - (0 if character < "A" else 10)
        for place, character in enumerate(code[:15])
    )
    return chr(ord("A") + total % 26) == code[15]


def is_tax_id(digits: str) -> bool:
    """German Steuer-ID: ISO 7064 MOD 11,10; of the first ten digits exactly one comes two or three times."""
    repeated = [count for digit in "0123456789" if (count := digits[:10].count(digit)) > 1]
    if len(repeated) != 1 or repeated[0] > 3:  # noqa: PLR2004
        return False
    product = 10
    for digit in digits[:10]:
        product = 2 * ((int(digit) + product) % 10 or 10) % 11
    return (11 - product) % 10 == int(digits[10])


def is_cpf(digits: str) -> bool:
    """Brazilian CPF: two check digits modulo 11."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        total = sum(int(digit) * (length + 1 - place) for place, digit in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def is_resident_id(number: str) -> bool:
    """Chinese resident identity number of 18 characters."""
    total = sum(int(digit) * weight for digit, weight in zip(number, _RESIDENT_WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == number[17]


def is_nhs_number(digits: str) -> bool:
    """NHS number of ten digits: the last is 11 minus the weighted sum modulo 11 (NHS Data Dictionary)."""
    total = sum(int(digit) * (10 - place) for place, digit in enumerate(digits[:9]))
    return (11 - total % 11) % 11 == int(digits[9])
