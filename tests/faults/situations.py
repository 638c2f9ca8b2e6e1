"""The six commands that faults are injected into: their inputs, their call, and what of their results must not change.

Every case has a folder of its own, in which the command runs: `in` holds the inputs, `out` the results.
"""

import contextlib
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

TESTS = Path(__file__).resolve().parents[1]
CHANGING = frozenset({
    "seconds", "cpu_seconds", "peak_mib", "calls", "environment", "images_per_second", "git_commit", "commit",
})  # fmt: skip
"""Keys of records whose values differ from run to run."""
SWEEP = """
[sweep]
name = "faults"
question = "Does a kill change a number?"
domain = "mixture"
seeds = "0"
metrics = ["mse"]
[settings]
steps = 3
[arms]
full = { label = "Full" }
no-dasm = { label = "w/o DASM (N = 1)", point_weights = [1.0] }
[[comparisons]]
of = "full"
against = "no-dasm"
"""
CARD = """
display = "Net"
steps = 1
kind = "gan"
run = "tsd-sr"
summary = "a file of a local server"
licence = "MIT"
citation = "nobody"
repository = "https://github.com/example/net"
commit = "0000000000000000000000000000000000000000"
verified = "never"
seeding = "deterministic"
[[weights]]
file = "net.pth"
urls = ["http://127.0.0.1:{port}/net.pth"]
sha256 = "{sha256}"
[[weights]]
file = "other.pth"
urls = ["http://127.0.0.1:{port}/other.pth"]
sha256 = "{sha256}"
"""


@dataclass(frozen=True)
class Situation:
    """One command.

    Attributes:
        name: how it is called in the report.
        argv: its words; the same ones continue it.
        prepare: writes the inputs into a folder.
        content: what must be the same in the end, by name, of a folder of results.
        before: what the process does first; the working directory is the case's.
        replace: puts another file in the place of an input, in a folder of inputs; None where all inputs are hashed
            by another test.
    """

    name: str
    argv: tuple[str, ...]
    prepare: Callable[[Path], None]
    content: Callable[[Path], dict[str, Any]]
    before: Callable[[], None] = lambda: None
    replace: Callable[[Path], None] | None = None


def load(path: Path) -> ModuleType:
    """A conftest, whose builders of tiny models and test sets serve here too."""
    spec = importlib.util.spec_from_file_location(f"builders_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photographs(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        photograph(folder / f"{index:02d}.png", index)
        (folder / f"{index:02d}.txt").write_text(f"photograph {index}")


def photograph(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def lines(path: Path) -> list[Any]:
    return [settled(json.loads(line)) for line in path.read_text().splitlines()]


def settled(value: Any) -> Any:
    """A record without what differs from run to run."""
    if isinstance(value, dict):
        return {key: settled(item) for key, item in value.items() if key not in CHANGING}
    return [settled(item) for item in value] if isinstance(value, list) else value


def files(out: Path, *patterns: str) -> dict[str, Any]:
    """The bytes of files, those of JSON without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in sorted({path for pattern in patterns for path in out.glob(pattern) if path.is_file()}):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".jsonl":
            found[name] = lines(path)
        elif path.suffix == ".json":
            found[name] = settled(json.loads(path.read_text()))
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(out: Path) -> list[str]:
    """Temporary files and folders that nobody will remove."""
    names = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    return [name for name in names if re.search(r"\.tmp(\.\w+)?$|\.part$|(^|/)\.checkpoint-", name)]


# -- inputs ------------------------------------------------------------------------------------------------------------


def testset(folder: Path) -> None:
    load(TESTS / "bench" / "conftest.py").write_testset(folder / "datasets", count=2)


def own_testset() -> None:
    from bench.testsets import manifest

    manifest.DATASETS = Path("in/datasets").resolve()


def sweep(folder: Path) -> None:
    (folder / "faults.toml").write_text(SWEEP)


def forked_workers() -> None:
    """Workers are forked, not spawned: a fresh interpreter would import torch for each of them."""
    import bench.ablation.sweep

    real = bench.ablation.sweep.get_context
    bench.ablation.sweep.get_context = lambda method: real("fork")


def model_and_photographs(folder: Path) -> None:
    builders = load(TESTS / "conftest.py")
    builders.build_tiny_sd3(folder / "model")
    builders.save_random_student(folder / "model", folder / "lora")
    (folder / "lora" / "restore.json").write_text('{"process_size": 0, "posterior": "mode"}')
    photographs(folder / "photos", 4)


def served(folder: Path) -> None:
    """A card, and a server for its files. It ends with the process that injects, a child of which makes the inputs."""
    import torch

    (folder / "served").mkdir(parents=True)
    torch.save({"weight": torch.arange(60_000.0)}, folder / "served" / "net.pth")
    shutil.copy(folder / "served" / "net.pth", folder / "served" / "other.pth")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(str(folder / "served")))
    port = server.server_address[1]
    sha256 = hashlib.sha256((folder / "served" / "net.pth").read_bytes()).hexdigest()
    (folder / "net.toml").write_text(CARD.format(port=port, sha256=sha256))
    injecting = os.getppid()
    if os.fork():
        server.server_close()
        return
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        server.timeout = 1
        with contextlib.suppress(ProcessLookupError):
            while os.kill(injecting, 0) is None:
                server.handle_request()
    finally:
        os._exit(0)


def handler(folder: str) -> Callable[..., http.server.SimpleHTTPRequestHandler]:
    def build(*arguments: Any) -> http.server.SimpleHTTPRequestHandler:
        return http.server.SimpleHTTPRequestHandler(*arguments, directory=folder)

    return build


def other_photograph(folder: Path) -> None:
    photograph(folder / "photos" / "03.png", 99)


def other_pair(folder: Path) -> None:
    photograph(folder / "datasets" / "mini" / "test_LR" / "photo1.png", 99)


def other_steps(folder: Path) -> None:
    (folder / "faults.toml").write_text(SWEEP.replace("steps = 3", "steps = 4"))


# -- commands ----------------------------------------------------------------------------------------------------------

TRAIN = (
    "tsd", "train", "--preset", "mini", "--model", "in/model", "--data", "in/photos", "--output", "out", "--crop", "32",
    "--max-train-steps", "3", "--batch-size", "1", "--rank", "4", "--vae-rank", "4", "--device", "cpu",
    "--tracker", "none", "--checkpoint-every", "1", "--resume",
)  # fmt: skip
PREPARE = (
    "tsd", "prepare", "in/photos", "--out", "out", "--model", "in/model", "--crop", "32",
    "--crops-per-image", "1", "--seed", "3", "--no-usm", "--shard-images", "2", "--batch-size", "2",
    "--workers", "0", "--device", "cpu",
)  # fmt: skip
SITUATIONS = (
    Situation(
        "bench run",
        ("bench", "run", "--methods", "bicubic", "lanczos", "--metrics", "psnr", "--no-timing", "--no-figure",
         "--device", "cpu", "--out", "out"),
        testset,
        lambda out: files(out, "records/**/*", "images/mini/**/*.png", "*.md", "*.csv", "*.tex"),
        own_testset,
        other_pair,
    ),
    Situation(
        "bench sweep",
        ("bench", "sweep", "in/faults.toml", "--device", "cpu", "--jobs", "1", "--out", "out"),
        sweep,
        lambda out: files(out, "cells/**/scores.jsonl", "cells/**/cell.json", "cells.jsonl"),  # tables tell seconds
        forked_workers,
        other_steps,
    ),
    Situation(
        "tsd train", TRAIN, model_and_photographs,
        lambda out: files(out, "student/*.safetensors", "student/*.json", "log.jsonl", "config.json"),
        replace=other_photograph,
    ),
    Situation(
        "tsd prepare", PREPARE, model_and_photographs,
        lambda out: files(out, "data-*.arrow", "dataset_info.json"),
        replace=other_photograph,
    ),
    Situation(
        "tsd restore",
        ("tsd", "restore", "in/photos", "-o", "out", "--model", "in/model", "--lora", "in/lora", "--device", "cpu",
         "--skip-existing"),
        model_and_photographs,
        lambda out: files(out, "**/*.png"),
    ),
    Situation(
        "bench fetch", ("bench", "fetch", "card:in/net.toml", "--weights-root", "out"), served,
        lambda out: files(out, "*.pth"),
    ),
)  # fmt: skip
