"""Trains the mini model from scratch, end to end: VAE, teacher, the encoder's head start, and the two students.

    python -m tsd.mini.recipe --data-root DIR --output DIR

`DIR/model` becomes the folder that the package ships as `tsd/assets/mini`; `DIR/work` holds checkpoints and logs. If
the recipe is stopped and started again, every stage continues from its last checkpoint. `--quick` runs every stage for
a few steps at toy size.

The students share a head start on the data alone (`tsd.mini.warmup`). Then TSD-SR adds Eq. 5 along the trajectory, and
the OSEDiff recipe adds Eq. 3 (VSD: λ = 1, one point). Everything else is the same for both.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from tsd.config import Phase, TrainConfig
from tsd.console.progress import Progress
from tsd.data.degrade import FULL, degrade
from tsd.errors import UserError
from tsd.files import write_text
from tsd.mini.base import BaseSettings, BaseTraining, new_base, new_scheduler, train_base
from tsd.mini.images import load_photos, procedural_image, split_photos, validation_crops
from tsd.mini.stages import append_row, save_atomically
from tsd.mini.vae import VaeSettings, train_vae
from tsd.mini.warmup import Pool, WarmUpSettings, make_pairs, train_encoder, train_student, write_adapters
from tsd.model.backbone import load_backbone
from tsd.model.family import Family
from tsd.model.loading import FAMILIES
from tsd.presets import PRESETS
from tsd.prompts.folder import write_prompt
from tsd.seeds import seed_for
from tsd.train.settings import RunSettings
from tsd.train.student import train

STAGES = ("vae", "teacher", "encoder", "student", "tsdsr", "vsd")
RESTORE_SETTINGS = {"color": "wavelet", "posterior": "mode", "process_size": 0}
"""The settings that the students are run with: coarse colours are the input's, which these small students shift."""

TSD_SR = dataclasses.replace(
    PRESETS["mini"],
    phases=(Phase(steps=80, latent_mse=1.0, gamma2=1.0, point_weights=(1.0, 0.3, 0.3, 0.3, 0.3)),),
    vae_rank=96,
    batch_size=2,
    crop=256,
    lr=5e-5,
    warmup_steps=10,
    ema_decay=0.97,
    checkpoint_every=20,
    validate_every=20,
)
VSD = dataclasses.replace(TSD_SR, phases=(dataclasses.replace(TSD_SR.phases[0], point_weights=(1.0,)),), lambda_tsd=1.0)


@dataclass(frozen=True)
class Recipe:
    """Every setting of every stage; the defaults made the shipped weights."""

    seed: int = 0
    drawn_images: int = 160
    photo_repeats: int = 24  # in the students' data: 480 photographs and 160 drawn images in every epoch
    turns: int = 8
    vae: VaeSettings = field(default_factory=VaeSettings)
    teacher: BaseSettings = field(default_factory=BaseSettings)
    warmup: WarmUpSettings = field(default_factory=WarmUpSettings)
    tsdsr: TrainConfig = TSD_SR
    vsd: TrainConfig = VSD


def quick_recipe() -> Recipe:
    """Every stage for two or three steps at toy size: it shows that the recipe runs, not that it learns."""
    vae = VaeSettings(steps=3, batch=2, crop=32, warm_up=1)
    teacher = BaseSettings(layers=1, heads=2, head_width=32, steps=3, batch=2, crop=16, warm_up=1)
    warmup = WarmUpSettings(
        pairs=8, crop=64, batch=2, steps=2, joint_pairs=8, joint_crop=64, joint_batch=2, joint_steps=2
    )

    def short(config: TrainConfig) -> TrainConfig:
        phases = tuple(dataclasses.replace(phase, steps=2) for phase in config.phases)
        return dataclasses.replace(config, phases=phases, batch_size=1, crop=64, warmup_steps=1)

    return Recipe(
        drawn_images=4, photo_repeats=1, turns=1, vae=vae, teacher=teacher, warmup=warmup,
        tsdsr=short(TSD_SR), vsd=short(VSD),
    )  # fmt: skip


class RecipeRun:
    """One run of the recipe in `output`: it holds the data and has a method for every stage."""

    def __init__(self, recipe: Recipe, photos: dict[str, Tensor], output: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model, self.work = output / "model", output / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        training, self.validation = split_photos(photos)
        self.photos = list(training.values())
        numbers = Progress(range(recipe.drawn_images), desc="drawing images", delay=2)
        self.drawn = [procedural_image(recipe.seed, number) for number in numbers]

    def sources(self) -> list[np.ndarray]:
        images = [*self.photos * self.recipe.photo_repeats, *self.drawn]
        return [image.permute(1, 2, 0).contiguous().numpy() for image in images]

    def vae(self) -> None:
        vae = train_vae(
            self.work, self.photos, self.drawn, validation_crops(self.validation), self.recipe.vae,
            seed=self.recipe.seed, device=self.device,
        )  # fmt: skip
        publish(self.model / "vae", lambda folder: vae.half().save_pretrained(folder))

    def load_vae(self) -> Any:
        """Loads the VAE as it is shipped: later stages build on the rounded weights."""
        return AutoencoderKL.from_pretrained(self.model / "vae", torch_dtype=torch.float32, use_safetensors=True)

    def teacher(self) -> None:
        settings, vae = self.recipe.teacher, self.load_vae()
        torch.manual_seed(seed_for(self.recipe.seed, "teacher", "weights"))
        model = new_base(settings, vae.config["latent_channels"])
        self.pretrain(
            model, FAMILIES["sd3"], new_scheduler(settings), vae, settings, position_jitter=settings.position_jitter
        )

    def pretrain(
        self,
        model: Any,
        family: Family,
        scheduler: Any,
        vae: Any,
        settings: BaseTraining,
        *,
        position_jitter: int = 0,
    ) -> None:
        """Trains a base's denoiser and writes it, its scheduler and its prompts to the model folder."""
        process = family.process({"_class_name": type(scheduler).__name__, **scheduler.config})
        prompts = train_base(
            self.work, model, family, process, vae, self.photos, self.drawn, list(self.validation.values()),
            settings, seed=self.recipe.seed, device=self.device, turns=self.recipe.turns,
            position_jitter=position_jitter,
        )  # fmt: skip
        publish(self.model / family.denoiser_folder, lambda folder: model.half().save_pretrained(folder))
        publish(self.model / "scheduler", lambda folder: scheduler.save_pretrained(folder))

        def write_prompts(folder: Path) -> None:
            for name, prompt in prompts.items():
                write_prompt(folder / name, prompt.to(dtype=torch.float16), "safetensors")

        publish(self.model / "prompts", write_prompts)

    def pairs_to_validate(self) -> tuple[Tensor, Tensor]:
        """Crops (enlarged low-quality, original) of the held-out photographs, each with two degradations."""
        high = validation_crops(self.validation).repeat(2, 1, 1, 1)
        low = [
            degrade((x + 1) / 2, FULL, seed_for(self.recipe.seed, "validation", index)) for index, x in enumerate(high)
        ]
        return F.interpolate(torch.stack(low), scale_factor=4, mode="bicubic").clamp(0, 1) * 2 - 1, high

    def pool(self, vae: Any, name: str, count: int, crop: int, seed: int) -> Pool:
        """Makes a pool for the head start, from photographs only."""
        arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in self.photos]
        low, high = make_pairs(self.work / f"pairs-{name}.pt", arrays, count, crop, seed)
        vae = vae.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        return Pool(vae, low, high, self.work / f"pool-{name}.pt", self.device, self.recipe.seed)

    def encoder(self) -> None:
        vae, settings = self.load_vae(), self.recipe.warmup
        pool = self.pool(vae, "encoder", settings.pairs, settings.crop, settings.pair_seed)
        encoder = train_encoder(self.work, vae, pool, self.pairs_to_validate(), settings, seed=self.recipe.seed)
        save_atomically(encoder.state_dict(), self.work / "restoring-encoder.pt")

    def student(self) -> None:
        backbone, config = load_backbone(self.model, device=self.device), self.recipe.tsdsr
        encoder = self.load_vae().encoder
        encoder.load_state_dict(torch.load(self.work / "restoring-encoder.pt", map_location="cpu", weights_only=True))
        settings = self.recipe.warmup
        pool = self.pool(
            backbone.vae,
            "student",
            settings.joint_pairs,
            settings.joint_crop,
            seed_for(self.recipe.seed, "pool", "student"),
        )
        encoder = train_student(
            self.work, backbone, encoder, pool, self.pairs_to_validate(), settings,
            rank=config.rank, seed=self.recipe.seed,
        )  # fmt: skip
        write_adapters(self.work / "warm", backbone, encoder, vae_rank=config.vae_rank, seed=self.recipe.seed)

    def tsdsr(self) -> None:
        self.ship("tsdsr", self.distil("tsdsr", self.recipe.tsdsr, self.work / "warm"))

    def vsd(self) -> None:
        self.ship("vsd", self.distil("vsd", self.recipe.vsd, self.work / "warm"))

    def distil(self, name: str, config: TrainConfig, start: Path) -> Path:
        photographs = self.work / "validation"
        photographs.mkdir(exist_ok=True)
        for stem, photo in self.validation.items():
            if not (photographs / f"{stem}.png").exists():
                Image.fromarray(photo.permute(1, 2, 0).numpy()).save(photographs / f"{stem}.png")
        settings = RunSettings(
            model=self.model,
            data=self.sources(),
            output=self.work / name,
            resume=(self.work / name).exists(),
            init_lora=start,
            val_data=photographs,
            cpu=self.device.type == "cpu",
        )
        return train(settings, config).lora

    def ship(self, name: str, student: Path) -> None:
        """Writes the student's adapters in fp16, its `restore.json`, and its log as a table like the other stages'."""
        rows = [json.loads(line) for line in (self.work / name / "log.jsonl").read_text().splitlines()]
        (self.work / f"{name}.csv").unlink(missing_ok=True)
        columns = sorted({key for row in rows for key in row} - {"step"})
        for row in rows:
            append_row(self.work / f"{name}.csv", {"step": row["step"]} | {key: row.get(key, "") for key in columns})

        def write(folder: Path) -> None:
            write_half(student, folder)
            write_text(folder / "restore.json", json.dumps(RESTORE_SETTINGS, indent=2) + "\n")

        publish(self.model / "lora" / name, write)


def write_half(student: Path, folder: Path) -> None:
    """Writes a student's adapters to `folder` in fp16."""
    for path in sorted(student.glob("*.safetensors")):
        save_file({key: tensor.half() for key, tensor in load_file(path).items()}, folder / path.name)


def publish(folder: Path, write: Callable[[Path], object]) -> None:
    """Fills a new folder beside `folder` and moves it into place: readers never see an incomplete one."""
    fresh = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


class StagedRun(Protocol):
    """A run of a recipe, with a method for every stage."""

    recipe: Any
    model: Path
    work: Path


def run_stages(run: StagedRun, stages: Sequence[str]) -> Path:
    """Runs the named stages in order, writes settings and logs beside the model, and returns the model folder."""
    for stage in stages:
        getattr(run, stage)()
        write_text(run.model / "recipe.json", json.dumps(dataclasses.asdict(run.recipe), indent=2, default=str) + "\n")
        for log in sorted(run.work.glob("*.csv")):
            shutil.copy(log, run.model / log.name)
    return run.model


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    stages: Sequence[str],
    new_run: Callable[[argparse.Namespace, dict[str, Tensor]], RecipeRun],
) -> int:
    """Runs the command of a recipe, with the flags that all recipes share.

    Args:
        new_run: makes the run from the flags and the photographs.

    Returns:
        The exit status: 0, or 2 after bad input.
    """
    parser.add_argument("--data-root", type=Path, help="folder with the Kodak photographs (default: $TSD_DATA)")
    parser.add_argument("--manifest", type=Path, default=Path("datasets/kodak/manifest.json"))
    parser.add_argument("--output", type=Path, required=True, help="gets model/ and work/; continues a stopped run")
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="every stage for a few steps at toy size")
    args = parser.parse_args(arguments)
    try:
        print(run_stages(new_run(args, load_photos(args.manifest, args.data_root)), args.stages))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    def new_run(args: argparse.Namespace, photos: dict[str, Tensor]) -> RecipeRun:
        recipe = quick_recipe() if args.quick else Recipe()
        return RecipeRun(recipe, photos, args.output, torch.device(args.device))

    parser = argparse.ArgumentParser(prog="python -m tsd.mini.recipe", description="Train the mini model from scratch.")
    return run_command(parser, arguments, STAGES, new_run)


if __name__ == "__main__":
    sys.exit(main())
