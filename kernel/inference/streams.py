"""Random streams of a row's passes: the same for the same row, seed and pass, whatever is drawn beside them.

Owns how a stream is seeded, one at a time by numpy and many at once. What is drawn from them is `views`.
"""
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence

# Source: numpy 2.4, numpy/random/bit_generator.pyx (SeedSequence), whose streams numpy keeps over versions
POOL = 4
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
SHIFT = np.uint32(16)


def _powers(first: int, factor: int, count: int) -> np.ndarray:
    """u32[count + 1], first x factor ** i."""
    return np.array([first * pow(factor, i, 1 << 32) & 0xFFFFFFFF for i in range(count + 1)], np.uint32)


HASH_A = _powers(INIT_A, MULT_A, POOL * POOL)
HASH_B = _powers(INIT_B, MULT_B, 2 * POOL)


class _Known(ISeedSequence):
    """A seed sequence whose words are known."""

    def __init__(self, words: np.ndarray) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """u64[4], what PCG64 asks for."""
        return self._words


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The random streams of one row.

    known  index of a stream -> u64[4], the words that seed it
    """

    row_id: str
    seed: int = 0
    known: Mapping[int, np.ndarray] = field(default_factory=dict)

    def of(self, index: int) -> np.random.Generator:
        """The stream of one pass, from its beginning."""
        words = self.known.get(index)
        if words is not None:
            seeds: Any = _Known(words)  # numpy's stubs know its own class alone
            return np.random.Generator(np.random.PCG64(seeds))
        return np.random.Generator(np.random.PCG64(int(_entropy(self.row_id, self.seed, index))))


def prepare(row_ids: Sequence[str], seed: int, indices: Sequence[int]) -> list[Streams]:
    """The rows' streams, those of `indices` seeded all at once; the numbers are those of `Streams` alone."""
    entropy = [_entropy(row_id, seed, index) for row_id in row_ids for index in indices]
    words = _seed_words(np.array(entropy, np.uint64)).reshape(len(row_ids), len(indices), POOL)
    return [
        Streams(row_id=row_id, seed=seed, known=dict(zip(indices, own, strict=True)))
        for row_id, own in zip(row_ids, words, strict=True)
    ]


def _entropy(row_id: str, seed: int, index: int) -> int:
    """The 64 bits that a stream is seeded with."""
    digest = hashlib.blake2b(f"{row_id}\0{seed}\0{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _hash(values: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """u32[n, P] of values u32[n or 1, P], with constants u32[n + 1]."""
    hashed: np.ndarray = (values ^ constants[:-1, None]) * constants[1:, None]
    hashed ^= hashed >> SHIFT
    return hashed


def _seed_words(entropy: np.ndarray) -> np.ndarray:
    """u64[P, 4] that numpy's SeedSequence makes of each of entropy u64[P]."""
    pool: np.ndarray = np.zeros((POOL, len(entropy)), np.uint32)
    pool[0] = entropy & np.uint64(0xFFFFFFFF)
    pool[1] = entropy >> np.uint64(32)
    pool = _hash(pool, HASH_A[: POOL + 1])
    for source in range(POOL):
        others = [place for place in range(POOL) if place != source]
        first = POOL + source * len(others)
        hashed = _hash(pool[source][None], HASH_A[first : first + POOL])
        mixed: np.ndarray = pool[others] * MIX_LEFT - hashed * MIX_RIGHT
        mixed ^= mixed >> SHIFT
        pool[others] = mixed
    words = _hash(np.concatenate([pool, pool]), HASH_B)
    return np.ascontiguousarray(words.T).view("<u8").astype(np.uint64, copy=False)
