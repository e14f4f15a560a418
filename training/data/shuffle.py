"""Permutations that are the same for the same key on every machine and in every version of numpy.

A checkpoint may outlive a numpy release, and the order of samples must not change with it.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

_ROUND_SALTS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0x3C6EF372FE94F82A))
"""Two rounds each, with the key and with its complement."""

_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF, _MOST = np.uint64(32), np.uint64(33)
_FIRST_SHIFT, _SECOND_SHIFT, _THIRD_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)


def shuffled(count: int, key: str) -> Integers:
    """Permute 0..count-1, int64 [count].

    Sorts raw Philox words rather than calling Generator.permutation: numpy keeps the raw stream the
    same in every version and Generator's not (NEP 19).
    """
    words = np.random.Philox(key=int.from_bytes(_digest(key), "big")).random_raw(count)
    return np.argsort(words, kind="stable")


def hash_keys(key: str, numbers: Integers) -> npt.NDArray[np.uint64]:
    """Make a 64-bit key of ``key`` and each of ``numbers``, uint64 [n]."""
    return _scramble(np.uint64(int.from_bytes(_digest(key)[:8], "big")) ^ numbers.astype(np.uint64))


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


def _cross(indices: Integers, width: Integers, height: Integers, keys: npt.NDArray[np.uint64]) -> Integers:
    row, column = np.divmod(indices, width)
    # Four rounds: each half is changed twice.
    for salt in _ROUND_SALTS:
        row = (row + _draw(column, keys ^ salt)) % height
        column = (column + _draw(row, ~keys ^ salt)) % width
    return row * width + column


def _draw(half: Integers, keys: npt.NDArray[np.uint64]) -> Integers:
    words = (half.view(np.uint64) ^ keys) * _MULTIPLIER
    words ^= words >> _HALF
    words *= _SECOND_MULTIPLIER
    return (words >> _MOST).view(np.int64)


def _scramble(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection."""
    words = words + _GOLDEN
    words = (words ^ (words >> _FIRST_SHIFT)) * _MULTIPLIER
    words = (words ^ (words >> _SECOND_SHIFT)) * _SECOND_MULTIPLIER
    return words ^ (words >> _THIRD_SHIFT)


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
