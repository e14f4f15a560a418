"""Seeds as pure functions of what they are for, so that nothing random has to be saved."""

import hashlib


def derive_seed(seed: int, purpose: str, position: int) -> int:
    """Hash a run's seed, a purpose and a position to 63 bits; the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
