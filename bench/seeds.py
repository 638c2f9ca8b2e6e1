"""The seed of one image: it depends on the run's seed and the image's name, never on order, count or resumption."""

import hashlib


def image_seed(seed: int, name: str) -> int:
    """A stable 63-bit seed for restoring image `name` in a run seeded with `seed`.

    Hashed (BLAKE2b), so that neighbouring seeds and names get unrelated streams, and the same on every machine.
    """
    digest = hashlib.blake2b(f"{seed}\x1f{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
