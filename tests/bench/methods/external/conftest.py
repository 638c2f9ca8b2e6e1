"""A competitor's repository in small: real git, a script with the habits of real ones, a pin that conflicts."""

import hashlib
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cards.card import Card, read_card
from bench.methods.external import environment
from bench.options import RunOptions
from tsd.errors import UserError

PILLOW = "10.4.0"
UNREACHABLE = ("error sending request", "failed to fetch", "dns error", "connection refused", "network", "timed out")

# What it does to an image its name says ("skip_…"); what it does to the whole run, --mode.
SCRIPT = '''\
import argparse, os, random, subprocess, sys, time
import PIL
from PIL import Image
from naming import place

parser = argparse.ArgumentParser()
parser.add_argument("-i", "--input", required=True)
parser.add_argument("-o", "--output", required=True)
parser.add_argument("--ckpt", required=True)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--mode", default="")
args = parser.parse_args()


def main():
    with open("weights/tiny.bin") as linked, open(args.ckpt) as given:
        assert linked.read() == given.read()
    random.seed(args.seed)
    print("Pillow", PIL.__version__)
    os.makedirs(os.path.join(args.output, "results"), exist_ok=True)
    with open(os.path.join(args.output, "settings.txt"), "w") as notes:
        notes.write("python %s\\npillow %s\\nprefix %s\\nseed %s\\ncuda %r\\nrank %s\\n" % (
            sys.version.split()[0], PIL.__version__, sys.prefix, args.seed,
            os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("RANK")))
    for number, path in enumerate(sorted(os.listdir(args.input))):
        path = os.path.join(args.input, path)
        kind = os.path.basename(path).split("_")[0]
        if args.mode == "crash" and number == 1:
            raise RuntimeError("out of memory in " + path)
        if args.mode == "hang" and number == 1:
            hang()
        image = Image.open(path)
        size = image.width * 4, image.height * 4
        pass  # seed here
        image = image.resize(size, 0).point(lambda level, add=random.randrange(100): (level + add) % 256)
        if kind == "skip":
            print("could not restore", os.path.basename(path), ": some error")
            continue
        if kind == "small":
            image = image.resize((size[0] // 2, size[1] // 2))
        if kind == "alpha":
            image = image.convert("RGBA")
        image.save(place(args.output, path, 0))
        if kind == "twice":
            image.save(place(args.output, path, 1))
        if kind == "torn":
            with open(place(args.output, path, 0), "r+b") as file:
                file.truncate(os.path.getsize(place(args.output, path, 0)) // 2)
        if kind == "more":
            image.save(os.path.join(args.output, "grid.png"))


def hang():
    """With a child in another session, and a grandchild that has lost its parent."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(sleep, start_new_session=True)
    orphan = "import subprocess; print(subprocess.Popen(%r, start_new_session=True, stdout=-3).pid)" % (sleep,)
    grandchild = subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE).stdout.decode().strip()
    with open(os.environ["HANG_PIDS"] + ".part", "w") as pids:
        pids.write("%d %d %s" % (os.getpid(), child.pid, grandchild))
    os.rename(os.environ["HANG_PIDS"] + ".part", os.environ["HANG_PIDS"])
    time.sleep(600)


if args.mode == "swallow":
    args.mode = "crash"
    try:
        main()
    except RuntimeError as error:
        print("Error:", error)
else:
    main()
    if args.mode == "late":
        sys.exit(3)
'''
NAMING = """\
import os


def place(folder, path, number):
    name = os.path.splitext(os.path.basename(path))[0]
    return os.path.join(folder, "results", "%s_SR-%d.png" % (name, number))
"""
CARD = """\
display = "Tiny"
steps = 1
kind = "diffusion"
run = "external"
summary = "a script of the tests"
licence = "Apache-2.0"
citation = "none"
repository = {repository!r}
commit = {commit!r}
verified = "by these tests"
seeding = {seeding!r}
timing = {timing!r}
{patches}
[[weights]]
file = "tiny.bin"
sha256 = {weight_sha256!r}

[environment]
python = {python!r}
requirements = {requirements}

[command]
arguments = {arguments}
outputs = "results/{{name}}_SR-*.png"
ignore = ["*.txt"]
flags = {{"-i" = "run.py:7", "-o" = "run.py:8", "--ckpt" = "run.py:9", "--seed" = "run.py:10", "--mode" = "run.py:11"}}
links = {{"weights/tiny.bin" = "tiny.bin"}}
cuda = false
startup_seconds = 60
seconds_per_image = 5
{command}
"""
SEED_PATCH = """
[[patches]]
file = "run.py"
find = "        pass  # seed here"
replace = "        __import__('bench_seed').seed(path)"
reason = "the script seeds once for all images"
"""
WEIGHT = b"weights of no network"


def git(place: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The official repository, a clone whose branch has moved on since, and the pinned commit."""
    place = tmp_path_factory.mktemp("official") / "Tiny"
    place.mkdir()
    git(place, "init", "--quiet", "--initial-branch=main")
    (place / "run.py").write_text(SCRIPT)
    (place / "naming.py").write_text(NAMING)
    git(place, "add", ".")
    git(place, "commit", "--quiet", "-m", "first")
    commit = git(place, "rev-parse", "HEAD")
    (place / "run.py").write_text(SCRIPT.replace("* 4", "* 2"))
    git(place, "commit", "--quiet", "-a", "-m", "a later one, which would give other images")
    return place, commit


MakeCard = Callable[..., Card]


@pytest.fixture
def make_card(official: tuple[Path, str], tmp_path: Path) -> MakeCard:
    """A card for the official repository; arguments change it."""

    def make(
        name: str = "tiny",
        *,
        mode: str = "",
        seeding: str = "none",
        timing: str = "",
        patches: str = "",
        command: str = "",
        requirements: tuple[str, ...] = (f"pillow=={PILLOW}",),
        before: str = "",
        repository: str = "",
        commit: str = "",
    ) -> Card:
        arguments = ["run.py", "-i", "{lr}", "-o", "{sr}", "--ckpt", "{weights}/tiny.bin", "--seed", "{seed}"]
        text = CARD.format(
            repository=repository or str(official[0]),
            commit=commit or official[1],
            seeding=seeding,
            timing=timing,
            patches=patches or (SEED_PATCH if seeding == "image" else ""),
            weight_sha256=hashlib.sha256(WEIGHT).hexdigest(),
            python=f"{sys.version_info.major}.{sys.version_info.minor}",
            requirements=f"{list(requirements)}\nbefore = {before!r}",
            arguments=[*arguments, *(["--mode", mode] if mode else [])],
            command=textwrap.dedent(command),
        )
        path = tmp_path / "cards" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return read_card(path)

    return make


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def options(cache: Path, tmp_path: Path) -> RunOptions:
    """A cache that all tests of a session share, and a store with the weight."""
    store = tmp_path / "weights"
    store.mkdir()
    (store / "tiny.bin").write_bytes(WEIGHT)
    return RunOptions(cache_root=cache, weights_root=store)


@pytest.fixture
def built(make_card: MakeCard, options: RunOptions) -> Iterator[Path]:
    """The environment with the older Pillow, built once a session."""
    try:
        yield environment.build(make_card(), options)
    except UserError as error:
        if any(sign in str(error).lower() for sign in UNREACHABLE):
            pytest.skip("the package index cannot be reached, and the environment is built from it")
        raise


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., dict[str, Path]]:
    """Low-resolution images of the names given, 20x16, all different."""

    def make(*names: str) -> dict[str, Path]:
        folder = tmp_path / "inputs"
        folder.mkdir(exist_ok=True)
        for name in names:
            number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            pixels = np.random.default_rng(number).integers(0, 256, (16, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
        return {name: folder / f"{name}.png" for name in names}

    return make
