"""Runs `bench` in one and in several CPU processes, for test_ranks.py: `… DATASETS SCENARIO…`.

Every process of every scenario is forked from here, before torch has computed anything, with the variables that a
launcher would set. Every scenario works in a folder of its name, under the current one; what
its processes printed is in `<label>.<rank>.txt` there, how they ended in `<label>.json`.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))  # not `tests`, whose `bench` would hide the package

import accelerate
import pyiqa
import torch
from forked import forked, print_into

import bench.report.figures
import bench.report.render
import bench.run.pipeline
import bench.run.score
from bench import cli, ranks
from bench.methods import METHODS, MethodSpec
from bench.methods.base import nothing_missing
from bench.options import RunOptions
from bench.records.records import MethodRecords, Records
from bench.run import restore
from bench.testsets import manifest
from bench.testsets.manifest import load_testset
from tsd.errors import UserError

IMPORTED_ONCE = (accelerate, pyiqa, torch, bench)
LIMIT_SECONDS = 600
TABLE = ("run", "--methods", "bicubic", "lanczos", "--metrics", "psnr", "ssim", "--no-timing", "--no-figure")


def together(label: str, world: int, act: Callable[[int], int]) -> None:
    """`act(rank)` in `world` processes. One that has not ended in time is killed, and -9 tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [fork(label, rank, world, port, act) for rank in range(world)]
    watch = threading.Timer(LIMIT_SECONDS, lambda: [os.kill(child, signal.SIGKILL) for child in children])
    watch.start()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    watch.cancel()
    Path(f"{label}.json").write_text(json.dumps(codes))


def fork(label: str, rank: int, world: int, port: int, act: Callable[[int], int]) -> int:
    def run() -> int:
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        print_into(f"{label}.{rank}.txt")
        return act(rank)

    return forked(run)


def command(*arguments: object) -> Callable[[int], int]:
    return lambda rank: cli.main([str(argument) for argument in arguments])


def killed_at(count: int, victim: int, act: Callable[[int], int]) -> Callable[[int], int]:
    """`act`, but the process of rank `victim` is killed in its write number `count` (each ends in fsync)."""

    def acting(rank: int) -> int:
        real, written = os.fsync, 0

        def fsync(handle: int) -> None:
            nonlocal written
            written += 1
            if written == count:
                os.ftruncate(handle, max(os.fstat(handle).st_size - 40, 0))  # torn as well
                os.kill(os.getpid(), signal.SIGKILL)
            real(handle)

        if rank == victim:
            os.fsync = fsync
        return act(rank)

    return acting


# -- the whole command -----------------------------------------------------------------------------------------------


def equal() -> None:
    for world in (1, 2, 3):
        together(f"of{world}", world, command(*TABLE, "--out", f"of{world}"))


def killed() -> None:
    """At several instants, in either process, and continued by another number of processes."""
    for count, victim, world in ((3, 1, 1), (7, 1, 3), (11, 1, 2), (16, 1, 1), (9, 0, 3), (21, 0, 1)):
        label = f"at{count}-{victim}"
        together(f"{label}-killed", 2, killed_at(count, victim, command(*TABLE, "--out", label)))
        shutil.copytree(f"{label}/records", f"{label}-records-then")
        together(f"{label}-again", world, command(*TABLE, "--out", label))


def failing() -> None:
    """A method that fails on an image of the second process."""
    from bench.pixels import read_image

    mean = float(read_image(load_testset("mini").images[1].lr).mean())
    Path("own.py").write_text(
        "def restore(lr, seed):\n"
        f"    if abs(float(lr.mean()) - {mean!r}) < 1e-6:\n"
        "        raise RuntimeError('not this')\n"
        "    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)\n"
    )
    for world in (1, 2):
        rows = ("--methods", "bicubic", "own=python:own.py:restore", "--metrics", "psnr")
        together(f"of{world}", world, command("run", *rows, "--no-timing", "--no-figure", "--out", f"of{world}"))


def refused() -> None:
    """Bad input, the same for all: said once. And one process alone that comes to nothing: all end."""
    together("typo", 3, command("run", "--methods", "bicubi", "--out", "typo"))
    together("gpus", 2, command("run", "--device", "cuda:0", "--out", "gpus"))
    together("redo", 2, command(*TABLE, "--out", "redo"))
    together("redone", 2, command(*TABLE, "--out", "redo", "--redo", "lanczos"))
    together("seed", 2, command(*TABLE, "--out", "redo", "--seed", "7"))

    def apart(rank: int) -> int:
        ranks.wait_until_visible = lambda condition, real=ranks.wait_until_visible: real(condition, 1.0)
        return cli.main([*TABLE, "--out", f"apart{rank}"])

    together("apart", 2, apart)

    def broken(rank: int) -> int:
        if rank == 1:
            MethodRecords.add_score = lambda *arguments: (_ for _ in ()).throw(ArithmeticError("a bug\nof rank 1"))
        return cli.main([*TABLE, "--out", "broken"])

    together("broken", 2, broken)


def uneven() -> None:
    """Machines that do not have the same: weights of one of them alone, another image in the test set of one."""
    Path("weights").mkdir()
    Path("weights/realesr-general-x4v3.pth").write_bytes(b"found by its name")

    def weights(rank: int) -> int:
        rows = ("--methods", "bicubic", "realesrgan-compact", "--metrics", "psnr")
        root = "weights" if rank == 0 else "none"
        return cli.main(["run", *rows, "--no-timing", "--no-figure", "--out", "weighed", "--weights-root", root])

    together("weighed", 2, weights)
    shutil.copytree(manifest.DATASETS, "datasets")
    path = Path("datasets/mini/manifest.json")
    content = json.loads(path.read_text())
    content["images"][0]["lr_sha256"] = content["images"][1]["lr_sha256"]
    path.write_text(json.dumps(content))
    shutil.copy("datasets/mini/test_LR/photo1.png", "datasets/mini/test_LR/photo0.png")

    def images(rank: int) -> int:
        if rank == 1:
            manifest.DATASETS = Path("datasets")
        return cli.main([*TABLE, "--out", "sets"])

    together("sets", 2, images)


# -- restore_set by itself, with methods that look at their process ----------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    with Image.open(path) as image:
        image.resize((image.width * 4, image.height * 4)).save(Path(sys.argv[2], path.stem + ".png"))
    print(path.stem, flush=True)
"""


@dataclass
class Enlarger:
    """A `FolderRunner`; `account` is its provenance."""

    account: dict[str, object]

    def restore_folder(
        self, images: Mapping[str, Path], seeds: Mapping[str, int], work: Path
    ) -> Iterator[tuple[str, Path | str]]:
        for name in ("in", "out"):
            (work / name).mkdir(parents=True)
        for path in images.values():
            shutil.copy(path, work / "in")
        command = [sys.executable, "-c", SCRIPT, work / "in", work / "out"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for name in done.stdout.split():
            yield name, work / "out" / f"{name}.png"

    def provenance(self) -> dict[str, object]:
        return self.account

    def environment(self) -> dict[str, object]:
        return {"python": "3.8"}

    def seeded(self) -> bool:
        return True

    def seconds(self, name: str) -> float | None:
        return None


def restored(out: str, load: Callable[[int], object]) -> Callable[[int], int]:
    """`restore_set` with a method of its own per rank, through a `Rank` alone; its status as of `bench run`."""

    def act(rank: int) -> int:
        with ranks.on_all_ranks() as own:
            spec = MethodSpec(
                "own", "Own", 1, "function", "", "", lambda options: load(rank), nothing_missing,  # type: ignore[arg-type, return-value]
            )  # fmt: skip
            records = Records(Path(out), own.index)
            options = RunOptions()
            report = restore.restore_set(records, load_testset("mini"), spec, options, rank=own, log=print)
            print(json.dumps([report.kept, report.made, report.failed]))
        return 1 if report.failed else 0

    return act


def runner() -> None:
    for world in (1, 2):
        together(f"of{world}", world, restored(f"of{world}", lambda rank: Enlarger({"steps": 1})))


def loading() -> None:
    def load(rank: int) -> object:
        if rank == 1:
            raise UserError("no weights on this machine")
        return METHODS["bicubic"].load(RunOptions())

    together("partly", 2, restored("partly", load))
    together("mended", 2, restored("partly", lambda rank: METHODS["bicubic"].load(RunOptions())))
    shutil.rmtree("partly/images")
    together("cloned", 2, restored("partly", load))
    together("differs", 2, restored("differs", lambda rank: Enlarger({"weights": {"net.pth": f"{rank}a"}})))


SCENARIOS = (equal, killed, failing, refused, uneven, runner, loading)


def main(datasets: str, *names: str) -> None:
    manifest.DATASETS = Path(datasets)
    root = Path.cwd()
    for scenario in SCENARIOS:
        if scenario.__name__ in names:
            folder = root / scenario.__name__
            folder.mkdir()
            os.chdir(folder)
            scenario()


if __name__ == "__main__":
    main(*sys.argv[1:])
