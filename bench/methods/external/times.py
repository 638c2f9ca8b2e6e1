"""Reads the seconds that `bench_time` wrote in a method's own process."""

import json
from collections.abc import Iterable
from pathlib import Path


def read_times(path: Path, names: Iterable[str]) -> dict[str, float]:
    """Seconds by image, in the order in which they were made, without the process's first image, which was cold.

    A line that was torn by the end of the process ends the reading; its image has no time.

    Args:
        names: of the images; the script may have named them with a suffix.
    """
    known = set(names)
    found: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else ():
        try:
            content = json.loads(line)
        except ValueError:
            break
        image = content["image"]
        name = image if image in known else image.rpartition(".")[0]
        found[name] = found.get(name, 0.0) + content["seconds"]
    return {name: seconds for name, seconds in list(found.items())[1:] if name in known}
