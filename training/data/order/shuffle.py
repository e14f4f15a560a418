"""Permutations that are the same for the same key on every machine and in every version of numpy.

A checkpoint may outlive a numpy release, and the order of samples must not change with it.
"""

import hashlib
import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 8
"""Of the Feistel network, half of them for each side. After four, neighbours stay together or apart too
often; after eight no pattern was found from 50 rows on, and below it one of a few percent."""

_SALTS = np.arange(1, ROUNDS + 1, dtype=np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER, _SECOND_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ONE, _HALF = np.uint64(1), np.uint64(32)
_FIRST_SHIFT, _SECOND_SHIFT, _THIRD_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)


def shuffled(count: int, key: str) -> Integers:
    """Permute 0..count-1, int64 [count].

    Sorts raw Philox words rather than calling Generator.permutation: numpy keeps the raw stream the
    same in every version and Generator's not (NEP 19).
    """
    words = np.random.Philox(key=int.from_bytes(_digest(key), "big")).random_raw(count)
    return np.argsort(words, kind="stable")


def hash_keys(key: str, numbers: Integers) -> Words:
    """Make a 64-bit key of ``key`` and each of ``numbers``, uint64 [n]."""
    return _scramble(np.uint64(int.from_bytes(_digest(key)[:8], "big")) ^ numbers.astype(np.uint64))


def permute(indices: Integers, counts: Integers, keys: Words) -> Integers:
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
    width = np.ceil(np.sqrt(counts)).astype(np.uint64)
    height = (counts.view(np.uint64) + width - _ONE) // width
    found = _cross(indices, width, height, keys)
    # The rectangle has fewer than `width` cells too many: hardly any index walks a second time.
    while len(outside := np.flatnonzero(found >= counts)):
        found[outside] = _cross(found[outside], width[outside], height[outside], keys[outside])
    return found


def _cross(indices: Integers, width: Words, height: Words, keys: Words) -> Integers:
    row, column = np.divmod(indices.view(np.uint64), width)
    for number, salted in enumerate(keys ^ _SALTS):
        changed, other, side = (column, row, width) if number % 2 else (row, column, height)
        words = other ^ salted
        words *= _MULTIPLIER
        words ^= words >> _HALF
        words *= _SECOND_MULTIPLIER
        words >>= _HALF
        changed += words
        changed %= side
    return (row * width + column).view(np.int64)


def _scramble(words: Words) -> Words:
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
