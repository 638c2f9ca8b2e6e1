"""Reads and restores the process-wide random generators of Python, numpy and torch.

A method must leave them alone (bench/methods/base.py), and checking that must not change them either.
"""

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def random_states() -> dict[str, bytes]:
    """The state of every generator, by the library's name, in a form that can be compared."""
    found = {
        "random": pickle.dumps(random.getstate()),
        "numpy.random": pickle.dumps(np.random.get_state()),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_available():
        found["torch.cuda"] = b"".join(state.numpy().tobytes() for state in torch.cuda.get_rng_state_all())
    return found


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Restores the generators at the end of the block, whatever happened to them inside."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
