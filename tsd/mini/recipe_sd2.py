"""Trains the second mini base, of SD2's family, and its two students, which the paper's Table 5 compares.

    python -m tsd.mini.recipe_sd2 --data-root DIR --output DIR [--sd3 DIR]

`DIR/model` becomes the folder that the package ships as `tsd/assets/mini-sd2`. The VAE is that of the first mini model
(`--sd3`, by default the shipped one). The students start with the encoder of its `lora/tsdsr`, which learned to restore
into the latents that this base works on. The rest follows the first recipe: a teacher from scratch, a head start on the
data alone (`tsd.mini.unet`), and from this common start TSD-SR and the OSEDiff recipe.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from tsd.config import TrainConfig
from tsd.files import mini_model_dir, write_safetensors
from tsd.mini.recipe import TSD_SR, VSD, RecipeRun, publish, run_command
from tsd.mini.unet import UNetSettings, UNetStartSettings, encode_pairs, new_sd2_scheduler, new_unet, train_unet_student
from tsd.mini.warmup import make_pairs
from tsd.model.backbone import load_backbone
from tsd.model.loading import FAMILIES
from tsd.model.lora import STUDENT, VAE_FILE, attach, load_initial, save_student, vae_targets
from tsd.seeds import seed_for

STAGES = ("vae", "teacher", "student", "tsdsr", "vsd")
RANK = 16
"""Rank of the UNet's adapters. The encoder's rank is that of the first model's student."""

SD2_TSD_SR, SD2_VSD = (dataclasses.replace(config, rank=RANK, critic_rank=RANK) for config in (TSD_SR, VSD))


@dataclass(frozen=True)
class SD2Recipe:
    """Every setting of every stage; the defaults made the shipped weights."""

    seed: int = 0
    drawn_images: int = 160
    photo_repeats: int = 24
    turns: int = 8
    teacher: UNetSettings = field(default_factory=UNetSettings)
    start: UNetStartSettings = field(default_factory=UNetStartSettings)
    tsdsr: TrainConfig = SD2_TSD_SR
    vsd: TrainConfig = SD2_VSD


def quick_recipe() -> SD2Recipe:
    """Every stage for two or three steps at toy size: it shows that the recipe runs, not that it learns."""
    teacher = UNetSettings(channels=(32, 32), heads=2, steps=3, batch=2, crop=16, warm_up=1)
    start = UNetStartSettings(pairs=8, crop=64, readout_pairs=4, window=12, batch=2, steps=2)

    def short(config: TrainConfig) -> TrainConfig:
        phases = tuple(dataclasses.replace(phase, steps=2) for phase in config.phases)
        return dataclasses.replace(config, phases=phases, batch_size=1, crop=64, warmup_steps=1)

    return SD2Recipe(
        drawn_images=4, photo_repeats=1, turns=1, teacher=teacher, start=start,
        tsdsr=short(SD2_TSD_SR), vsd=short(SD2_VSD),
    )  # fmt: skip


class SD2Run(RecipeRun):
    """The first recipe's run with another base; `first` is the model that the VAE and the encoder come from."""

    recipe: SD2Recipe  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self, recipe: SD2Recipe, photos: dict[str, Tensor], output: Path, device: torch.device, first: Path
    ) -> None:
        super().__init__(recipe, photos, output, device)  # pyright: ignore[reportArgumentType]
        self.first = first

    def vae(self) -> None:
        publish(self.model / "vae", lambda folder: shutil.copytree(self.first / "vae", folder, dirs_exist_ok=True))

    def teacher(self) -> None:
        settings, vae = self.recipe.teacher, self.load_vae()
        torch.manual_seed(seed_for(self.recipe.seed, "teacher", "weights"))
        model = new_unet(settings, vae.config["latent_channels"])
        model.to(memory_format=torch.channels_last)
        self.pretrain(model, FAMILIES["sd2"], new_sd2_scheduler(settings), vae, settings)

    def student(self) -> None:
        backbone, settings, seed = load_backbone(self.model, device=self.device), self.recipe.start, self.recipe.seed
        sd2, state = backbone.family, load_file(self.first / "lora" / "tsdsr" / VAE_FILE)
        sd3_prefix = FAMILIES["sd3"].denoiser_folder
        renamed = {f"{sd2.denoiser_folder}{key.removeprefix(sd3_prefix)}": value for key, value in state.items()}
        write_safetensors(self.work / VAE_FILE, renamed)
        rank = next(value.shape[0] for key, value in renamed.items() if key.endswith("lora_A.weight"))
        attach(backbone.vae, STUDENT, vae_targets(backbone.vae), rank, seed=0)
        load_initial(backbone.vae, self.work / VAE_FILE, sd2)
        backbone.vae.requires_grad_(False).to(self.device, memory_format=torch.channels_last)
        arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in self.photos]
        pair_seed = seed_for(seed, "pool", "student")
        low, high = make_pairs(self.work / "pairs-student.pt", arrays, settings.pairs, settings.crop, pair_seed)
        train_unet_student(
            self.work, backbone, encode_pairs(self.work / "latents.pt", backbone, low, high), high,
            self.pairs_to_validate(), settings, rank=self.recipe.tsdsr.rank, seed=seed,
        )  # fmt: skip
        save_student(backbone, self.work / "warm")


def main(arguments: Sequence[str] | None = None) -> int:
    def new_run(args: argparse.Namespace, photos: dict[str, Tensor]) -> RecipeRun:
        recipe = quick_recipe() if args.quick else SD2Recipe()
        return SD2Run(recipe, photos, args.output, torch.device(args.device), args.sd3)

    parser = argparse.ArgumentParser(
        prog="python -m tsd.mini.recipe_sd2", description="Train the second mini model, of SD2's family."
    )
    parser.add_argument(
        "--sd3", type=Path, default=mini_model_dir(), help="the first mini model (default: the shipped)"
    )
    return run_command(parser, arguments, STAGES, new_run)


if __name__ == "__main__":
    sys.exit(main())
