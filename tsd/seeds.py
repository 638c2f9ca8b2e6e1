"""Seeds that depend on *what* is drawn, never on when: independent of batch size, order and resumption."""

import hashlib

import torch


def seed_for(*parts: int | str) -> int:
    """A stable 63-bit seed for the given parts, e.g. `seed_for(42, "degrade", "kodim01", 3)`.

    The parts are joined with an unprintable separator and hashed (BLAKE2b), so neighbouring steps and images
    get unrelated streams, and the same parts give the same seed on every machine and in every process.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "big") >> 1


def generator_for(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A `torch.Generator` on `device`, seeded with `seed_for(*parts)`."""
    return torch.Generator(device=device).manual_seed(seed_for(*parts))
