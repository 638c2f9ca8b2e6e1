"""One seed per image for a script that loops over images: `import bench_seed`, then `bench_seed.seed(path)`.

Runs in a competitor's own environment: Python 3.8 or later, with or without numpy and torch.
"""

import json
import os
import random

_seeds = None


def seed(image):
    """Seeds random, numpy and torch (all devices) for one image and returns the seed, an int in [0, 2**32).

    image: the path or the name of the input, with or without its suffix. The same image gets the same seed, whatever
    was restored before it. Usable as `generator.manual_seed(bench_seed.seed(path))`.

    Raises KeyError for an image that the harness did not hand over, RuntimeError outside the harness.
    """
    value = _look_up(image)
    random.seed(value)
    try:
        import numpy
    except ImportError:
        pass
    else:
        numpy.random.seed(value)
    try:
        import torch
    except ImportError:
        pass
    else:
        torch.manual_seed(value)
    return value


def _look_up(image):
    global _seeds
    if _seeds is None:
        if "TSD_BENCH_SEEDS" not in os.environ:
            raise RuntimeError("TSD_BENCH_SEEDS is not set: bench_seed works under the harness only")
        with open(os.environ["TSD_BENCH_SEEDS"], encoding="utf-8") as file:
            _seeds = json.load(file)
    name = os.path.basename(str(image))
    for key in (name, os.path.splitext(name)[0]):
        if key in _seeds:
            return _seeds[key] % 2**32
    raise KeyError(f"no seed for the image {name!r}")
