"""A small domain for the tests: a line fitted by gradient descent in torch. Worker processes import it by name."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.ablation.domain import Cell, Measure
from tsd.errors import UserError

IMAGES = 6
DEFAULTS: dict[str, Any] = {
    "steps": 20,
    "optimizer": "adamw",
    "lr": 0.1,
    "point_weights": (1.0, 0.3),
    "checkpoint_every": 5,
    "act": "",  # what else a cell does: "fail", "nan", "wait" to be stopped, "die" when another one waits
}


class Patience:
    """Waits for another process. It may be importing torch, which takes a minute on a crowded machine."""

    def __init__(self, seconds: float = 600) -> None:
        self.deadline = time.monotonic() + seconds

    def sleep(self) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError("the other process never came")
        time.sleep(0.02)


@dataclass
class LineDomain:
    """Fits y = 2x to noisy points. `error` is per image (points), `slope` of the set, `inverse` better when higher."""

    base: str = "base-1"
    references: tuple[str, ...] = ("shrunk 0.5", "shrunk 1")
    source: Path | None = None
    name: str = "line"
    measures: tuple[Measure, ...] = (
        Measure("error", "Error", "", False, True, 4),
        Measure("slope", "Slope", "", None, False, 3),
        Measure("inverse", "1/error", "", True, False, 3),
    )

    def settings(self) -> dict[str, Any]:
        return dict(DEFAULTS)

    def check(self, settings: Mapping[str, Any]) -> None:
        if settings["steps"] < 1:
            raise UserError(f"steps = {settings['steps']}; expected 1 or more")

    def fingerprint(self) -> str:
        return self.base

    def code(self) -> Sequence[Path]:
        return [self.source] if self.source else []

    def run(self, cell: Cell, folder: Path, *, device: str, stop: Callable[[], bool]) -> None:
        import torch

        act, patience = cell.settings["act"], Patience()
        (folder / "quantizer.txt").write_text("absent" if sys.modules.get("bitsandbytes", "") is None else "there")
        if act == "fail":
            raise ValueError(f"diverged in {folder}")
        if act == "die":
            while not list(folder.parents[1].glob("*/*/waiting")):
                patience.sleep()
            os.kill(os.getpid(), signal.SIGKILL)
        draws = torch.Generator().manual_seed(cell.seed)
        x, noise = torch.rand(IMAGES, generator=draws), torch.randn(IMAGES, generator=draws)
        (folder / "draws.json").write_text(json.dumps([x.tolist(), noise.tolist()]))
        checkpoint = folder / "checkpoint.json"
        begun = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "slope": 0.0}
        step, slope = begun["step"], torch.tensor(begun["slope"], dtype=torch.float64)
        with (folder / "curve.jsonl").open("a") as curve, (folder / "log.jsonl").open("a") as log:
            while step < cell.settings["steps"]:
                gradient = (2 * (slope * x - (2 * x + 0.1 * noise)) * x).mean()
                slope = slope - cell.settings["lr"] * gradient
                step += 1
                log.write(json.dumps({"step": step, "critic_gain": abs(float(gradient))}) + "\n")
                if step % cell.settings["checkpoint_every"] == 0:
                    curve.write(json.dumps({"step": step, "error": float((slope - 2).abs())}) + "\n")
                    checkpoint.write_text(json.dumps({"step": step, "slope": float(slope)}))
                    (folder / "resumed.txt").write_text(str(begun["step"]))
                    while act == "wait" and step == 5 and not stop():
                        (folder / "waiting").touch()
                        patience.sleep()
                    if stop():
                        return
        value = float("nan") if act == "nan" else float(slope)
        write_scores(folder, [abs(value * point - 2 * point) for point in x.tolist()], value)

    def score_references(self, seed: int, folder: Path) -> None:
        import torch

        x = torch.rand(IMAGES, generator=torch.Generator().manual_seed(seed))
        for name in self.references:
            slope = float(name.split()[1]) * 1.9
            write_scores(folder / name, [abs(slope * point - 2 * point) for point in x.tolist()], slope)


def write_scores(folder: Path, errors: Sequence[float], slope: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    mean = sum(errors) / len(errors)
    rows: list[dict[str, Any]] = [{"image": f"{number:02d}", "error": value} for number, value in enumerate(errors)]
    rows.append({"image": None, "error": mean, "slope": slope, "inverse": 1 / mean})
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
