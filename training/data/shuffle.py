"""Permutations that are the same for the same key on every machine and in every version of numpy.

A checkpoint may outlive a numpy release, and the order of samples must not change with it.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

ROUNDS = 6
"""Of the Feistel network: an even number, each half is changed three times."""


def shuffled(count: int, key: str) -> Integers:
    """Permute 0..count-1, int64 [count].

    Sorts raw Philox words rather than calling Generator.permutation: numpy keeps the raw stream the
    same in every version and Generator's not (NEP 19).
    """
    words = np.random.Philox(key=int.from_bytes(_digest(key), "big")).random_raw(count)
    return np.argsort(words, kind="stable")


def hash_keys(key: str, *columns: Integers) -> npt.NDArray[np.uint64]:
    """Make one 64-bit key of ``key`` and the numbers beside each other in ``columns``, uint64 [n]."""
    mixed = np.full(len(columns[0]), int.from_bytes(_digest(key)[:8], "big"), dtype=np.uint64)
    for column in columns:
        mixed = _scramble(mixed ^ column.astype(np.uint64))
    return mixed


def permute(indices: Integers, counts: Integers, keys: npt.NDArray[np.uint64]) -> Integers:
    """Find where each of ``indices`` goes in the permutation of 0..counts-1 that its key names.

    Computed, not stored: a Feistel network over a rectangle of at least ``counts`` cells, added modulo its
    sides, walked until it lands inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains").

    Args:
        indices: int64 [n], each from 0 to its count - 1.
        counts: int64 [n], how many are permuted.
        keys: uint64 [n], from ``hash_keys``.

    Returns:
        int64 [n]; over all indices of one count and key, each value once.
    """
    width = np.ceil(np.sqrt(counts)).astype(np.int64)
    height = -(-counts // width)
    found = _cross(indices, width, height, keys)
    # The rectangle has fewer than `width` cells too many: hardly any index walks a second time.
    while len(outside := np.flatnonzero(found >= counts)):
        found[outside] = _cross(found[outside], width[outside], height[outside], keys[outside])
    return found


def _cross(
    indices: Integers, width: Integers, height: Integers, keys: npt.NDArray[np.uint64]
) -> Integers:
    row, column = np.divmod(indices, width)
    for number in range(0, ROUNDS, 2):
        row = (row + _draw(column, keys, number)) % height
        column = (column + _draw(row, keys, number + 1)) % width
    return row * width + column


def _draw(half: Integers, keys: npt.NDArray[np.uint64], number: int) -> Integers:
    salted = keys + np.uint64((2 * number + 1) << 32)
    return (_scramble(salted ^ half.view(np.uint64)) >> np.uint64(1)).view(np.int64)


def _scramble(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def spread_order(count: int) -> Integers:
    """Order 0..count-1 so that any run of the order lies evenly over the line, int64 [count].

    The order of van der Corput's sequence: each next number falls into one of the widest gaps.
    """
    bits = max(1, math.ceil(math.log2(count))) if count > 1 else 1
    numbers = np.arange(1 << bits, dtype=np.int64)
    reversed_bits = np.zeros_like(numbers)
    for bit in range(bits):
        reversed_bits |= ((numbers >> bit) & 1) << (bits - 1 - bit)
    # The first `count` of the sequence, each replaced by its rank among them.
    return np.argsort(np.argsort(reversed_bits[:count], kind="stable"), kind="stable")


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
