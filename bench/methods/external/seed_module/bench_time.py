"""Seconds per image of a script that loops over images: `bench_time.timed(path, function)(...)`.

Runs in a competitor's own environment: Python 3.8 or later, with or without torch. A GPU is synchronised before the
clock starts and before it stops. Every call becomes a line of JSON in the file $TSD_BENCH_TIMES; an image may have
several, which add up.
"""

import json
import os
import sys
import time

_running = ("", 0.0)


def timed(image, function):
    """Wraps a function so that the time of a call counts for an image.

    image: the path or the name of the input, with or without its suffix.
    """

    def call(*arguments, **keywords):
        start(image)
        result = function(*arguments, **keywords)
        stop()
        return result

    return call


def start(image):
    """Starts the clock for an image, where what counts is no single call; `stop` ends it."""
    global _running
    if "TSD_BENCH_TIMES" not in os.environ:
        raise RuntimeError("TSD_BENCH_TIMES is not set: bench_time works under the harness only")
    _synchronize()
    _running = (os.path.basename(str(image)), time.perf_counter())


def stop():
    """Stops the clock and writes the line."""
    _synchronize()
    image, began = _running
    with open(os.environ["TSD_BENCH_TIMES"], "a", encoding="utf-8") as file:
        file.write(json.dumps({"image": image, "seconds": time.perf_counter() - began}) + "\n")


def _synchronize():
    torch = sys.modules.get("torch")  # a script that has not imported it has nothing running on a GPU
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
