"""Trains what the text domain ships, from nothing: VAE, teacher, glyph classifier, and the arms' common start.

    python -m bench.ablation.text.recipe --output DIR [--stages …] [--quick]

`DIR/model` becomes the folder that the package ships as `bench/ablation/text/model`: a base in diffusers layout (an
`AutoencoderKL`, a `UNet2DConditionModel` with a flow-matching scheduler), `lora/start` with the student that all arms
start from, and the classifier. A stopped run continues where it stopped.

The VAE is a linear block PCA at the start (`tsd.mini.vae`); as a line is gray, its 16 channels can hold every 4x4
block. The teacher is trained with the string as its caption for half of the samples. The start is a student trained
by `tsd.train` with the latent term alone, from ẑ = z_L.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from bench.ablation.text.classifier import WEIGHTS_FILE, GlyphClassifier, glyph_crops
from bench.ablation.text.data import CAPTION_WIDTH, TextPairs, caption, no_caption
from bench.ablation.text.domain import BASE
from bench.ablation.text.glyphs import Line
from tsd.config import Phase, TrainConfig
from tsd.console.progress import Progress
from tsd.mini.optim import split_optimisers
from tsd.mini.recipe import publish, run_stages, write_half
from tsd.mini.stages import in_batches, psnr_luma, run_stage
from tsd.mini.vae import VaeSettings, initialise, new_vae, vae_loss
from tsd.mini.warmup import start_as_identity
from tsd.model.backbone import load_backbone
from tsd.model.loading import FAMILIES
from tsd.model.lora import STUDENT, attach, denoiser_targets, save_student, vae_targets
from tsd.model.prompt import PromptEmbeds
from tsd.prompts.folder import write_prompt
from tsd.seeds import generator_for, seed_for
from tsd.train.settings import RunSettings
from tsd.train.student import train

STAGES = ("vae", "teacher", "classifier", "start")


@dataclass(frozen=True)
class TeacherTraining:
    """Architecture and training of the teacher; the defaults made the shipped weights."""

    channels: tuple[int, int] = (64, 128)
    layers: int = 2
    heads: int = 4
    shift: float = 2.0
    steps: int = 2600
    batch: int = 64
    caption_share: float = 0.5
    muon_lr: float = 0.02
    adamw_lr: float = 2e-3
    warm_up: int = 50


@dataclass(frozen=True)
class ClassifierTraining:
    """Training of the classifier; the defaults made the shipped weights."""

    steps: int = 1500
    batch: int = 256
    lr: float = 2e-3
    warm_up: int = 50
    jitter_pixels: int = 1


START = dataclasses.replace(
    BASE,
    phases=(Phase(steps=1500, latent_mse=1.0, gamma2=0.0, point_weights=(1.0,)),),
    batch_size=32,
    lr=2e-3,
    warmup_steps=50,
    ema_decay=0.98,
    checkpoint_every=100,
)
"""The settings of the common start."""


@dataclass(frozen=True)
class TextRecipe:
    """Every setting of every stage; the defaults made the shipped weights."""

    seed: int = 0
    lines: int = 40_000
    held_out: int = 512
    vae: VaeSettings = field(
        default_factory=lambda: VaeSettings(
            channels=(16, 24, 48), latent_channels=16, steps=600, batch=32, muon_lr=0.01, warm_up=50
        )
    )
    teacher: TeacherTraining = field(default_factory=TeacherTraining)
    classifier: ClassifierTraining = field(default_factory=ClassifierTraining)
    start: TrainConfig = START


def quick_recipe() -> TextRecipe:
    """Every stage for two or three steps at toy size: it shows that the recipe runs, not that it learns."""
    vae = VaeSettings(channels=(16, 24, 48), latent_channels=16, steps=3, batch=4, warm_up=1)
    teacher = TeacherTraining(channels=(32, 32), layers=1, heads=2, steps=3, batch=4, warm_up=1)
    phases = (dataclasses.replace(START.phases[0], steps=2),)
    start = dataclasses.replace(START, phases=phases, batch_size=2, rank=16, vae_rank=4, warmup_steps=1)
    return TextRecipe(
        lines=300, held_out=16, vae=vae, teacher=teacher, classifier=ClassifierTraining(steps=3, batch=8, warm_up=1),
        start=start,
    )  # fmt: skip


def new_teacher(settings: TeacherTraining, latent_channels: int) -> Any:
    """The untrained library model: convolutions at 8x12 and 4x6 positions, attention between them.

    Residual branches and the last convolution start at 0, so that every block is the identity.
    """
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        attention_head_dim=settings.heads,  # the library's name for the number of heads
        cross_attention_dim=CAPTION_WIDTH,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        use_linear_projection=True,
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith((".conv2", "conv_out", ".proj_out")):
                for parameter in module.parameters():
                    parameter.zero_()
    return model


class TextRun:
    """One run of the recipe in `output`, with a method for every stage."""

    def __init__(self, recipe: TextRecipe, output: Path, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.model, self.work = output / "model", output / "work"
        self.work.mkdir(parents=True, exist_ok=True)

    def lines(self, split: str, count: int) -> list[Line]:
        """Renders `count` lines once; a later stage of the same run reads them from the work folder."""
        path = self.work / f"lines-{split}-{count}.npz"
        if path.exists():
            saved = np.load(path)
            return [
                Line(image.astype(np.float32) / 255, tuple(glyphs[:n].tolist()), tuple(map(tuple, centres[:n])), int(f))
                for image, glyphs, centres, n, f in zip(*(saved[key] for key in sorted(saved)), strict=True)
            ]
        data = TextPairs(self.recipe.seed, count, split=split)
        lines = [data.line(i) for i in Progress(range(count), desc="rendering", unit="line", delay=2)]
        images = np.stack([np.rint(line.image * 255).astype(np.uint8) for line in lines])
        glyphs, centres = np.zeros((count, 5), np.int16), np.zeros((count, 5, 2), np.float32)
        for row, line in enumerate(lines):
            glyphs[row, : len(line.glyphs)], centres[row, : len(line.glyphs)] = line.glyphs, line.centres
        lengths, faces = (np.array(values) for values in zip(*((len(li.glyphs), li.face) for li in lines), strict=True))
        np.savez(path, a=images, b=glyphs, c=centres, d=lengths, e=faces)
        return self.lines(split, count)

    def images(self, split: str, count: int) -> tuple[list[Line], Tensor]:
        """The lines and their images, (N, 1, 32, 48) in [0, 1]."""
        lines = self.lines(split, count)
        return lines, torch.from_numpy(np.stack([line.image for line in lines]))[:, None]

    def vae(self) -> None:
        settings, seed = self.recipe.vae, self.recipe.seed
        _, images = self.images("train", self.recipe.lines)
        _, held_out = self.images("held out", self.recipe.held_out)
        torch.manual_seed(seed_for(seed, "vae", "weights"))
        vae = new_vae(settings)
        initialise(vae, colour(images[:1024]), settings)
        vae.to(self.device, memory_format=torch.channels_last)
        shown = colour(held_out[:128]).to(self.device)

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = generator_for(seed, "vae", step)
            rows = torch.randint(len(images), (settings.batch,), generator=generator)
            x = colour(images[rows]).to(self.device, memory_format=torch.channels_last)
            with torch.autocast(self.device.type, torch.bfloat16):
                return vae_loss(vae, x, settings, generator)

        def validate() -> dict[str, float]:
            restored = in_batches(lambda x: vae.decode(vae.encode(x).latent_dist.mode()).sample, shown, 64)
            return {"psnr_y": psnr_luma(restored, shown)}

        optimisers = split_optimisers(vae, muon_lr=settings.muon_lr, adamw_lr=settings.adamw_lr)
        run_stage(
            "vae", self.work, vae, optimisers, steps=settings.steps, warm_up=settings.warm_up,
            loss_at=loss_at, validate=validate, validate_every=250,
        )  # fmt: skip
        with torch.no_grad():
            latents = in_batches(lambda x: vae.encode(x).latent_dist.mode(), colour(images[:1024]).to(self.device), 128)
        vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
        publish(self.model / "vae", lambda folder: vae.half().save_pretrained(folder))

    def load_vae(self) -> Any:
        """Loads the VAE as it is shipped: later stages build on the rounded weights."""
        vae: Any = AutoencoderKL.from_pretrained(self.model / "vae", torch_dtype=torch.float32, use_safetensors=True)
        return vae.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(self, vae: Any, images: Tensor) -> Tensor:
        def means(x: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                return vae.encode(colour(x).to(self.device)).latent_dist.mode().float()

        return in_batches(lambda x: (means(x) * vae.config["scaling_factor"]).half().cpu(), images, 256)

    def teacher(self) -> None:
        settings, seed, device = self.recipe.teacher, self.recipe.seed, self.device
        vae, family = self.load_vae(), FAMILIES["sd2"]
        lines, images = self.images("train", self.recipe.lines)
        held_lines, held_images = self.images("held out", self.recipe.held_out)
        z_all, z_held = self.encode(vae, images), self.encode(vae, held_images)
        strings = torch.stack([caption(line.glyphs) for line in lines])
        held_strings = torch.stack([caption(line.glyphs) for line in held_lines])
        none = no_caption().embeds
        torch.manual_seed(seed_for(seed, "teacher", "weights"))
        model = new_teacher(settings, z_all.shape[1]).to(device, memory_format=torch.channels_last)
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=settings.shift)
        process = family.process({"_class_name": type(scheduler).__name__, **scheduler.config})

        def error(z: Tensor, prompt: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
            """‖prediction − target‖² (Eq. 9) of every sample."""
            z, prompt, t = z.to(device).float(), prompt.to(device), t.to(device)
            noise = torch.randn(z.shape, generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                z_t = process.add_noise(z, noise, t).contiguous(memory_format=torch.channels_last)
                predicted = family.predict(model, z_t, process.timestep(t), PromptEmbeds(prompt))
            return (predicted.float() - process.target(z, noise, t)).square().mean(dim=(1, 2, 3))

        def times(batch: int, generator: torch.Generator) -> Tensor:
            """Stratified: one uniform draw in each of `batch` equal slices of the time axis."""
            return process.last_time * (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = generator_for(seed, "teacher", step)
            rows = torch.randint(len(z_all), (settings.batch,), generator=generator)
            told = torch.rand(settings.batch, generator=generator) < settings.caption_share
            prompt = torch.where(told[:, None, None], strings[rows], none)
            loss = error(z_all[rows], prompt, times(settings.batch, generator), generator).mean()
            return loss, {"error": loss.item()}

        def validate() -> dict[str, float]:
            found: dict[str, float] = {}
            for name, prompt in (("held_out", none.expand(len(z_held), -1, -1)), ("held_out_told", held_strings)):
                generator = generator_for(seed, "teacher", "validation")
                t = times(len(z_held), generator)
                parts = zip(z_held.split(128), prompt.split(128), t.split(128), strict=True)
                found[name] = float(torch.cat([error(*part, generator) for part in parts]).mean())
            return found

        optimisers = split_optimisers(
            model,
            muon_lr=settings.muon_lr,
            adamw_lr=settings.adamw_lr,
            keep_adamw=("conv_in.weight", "conv_out.weight"),
        )
        run_stage(
            "teacher", self.work, model, optimisers, steps=settings.steps, warm_up=settings.warm_up,
            loss_at=loss_at, validate=validate, validate_every=200, save_every=100, max_norm=1.0,
        )  # fmt: skip
        publish(self.model / family.denoiser_folder, lambda folder: model.half().save_pretrained(folder))
        publish(self.model / "scheduler", lambda folder: scheduler.save_pretrained(folder))

        def write_prompts(folder: Path) -> None:
            for name in ("default", "null"):
                write_prompt(folder / name, no_caption().to(dtype=torch.float16), "safetensors")

        publish(self.model / "prompts", write_prompts)

    def classifier(self) -> None:
        settings, seed, device = self.recipe.classifier, self.recipe.seed, self.device
        lines, images = self.images("train", self.recipe.lines)
        held_lines, held_images = self.images("held out", self.recipe.held_out)
        torch.manual_seed(seed_for(seed, "classifier", "weights"))
        model = GlyphClassifier().to(device)
        held_letters, held_faces = labels(held_lines)

        def loss_at(step: int) -> tuple[Tensor, dict[str, float]]:
            generator = generator_for(seed, "classifier", step)
            rows = torch.randint(len(lines), (settings.batch // 3,), generator=generator).tolist()
            reach = settings.jitter_pixels
            moves = torch.randint(-reach, reach + 1, (len(rows), 2), generator=generator).tolist()
            shifted = [
                dataclasses.replace(lines[row], centres=tuple((x + dx, y + dy) for x, y in lines[row].centres))
                for row, (dx, dy) in zip(rows, moves, strict=True)
            ]
            letters, faces = (truth.to(device) for truth in labels(shifted))
            found = model(glyph_crops(images[rows], shifted).to(device))
            loss = F.cross_entropy(found.letters, letters) + 0.5 * F.cross_entropy(found.faces, faces)
            return loss, {"loss": loss.item()}

        def validate() -> dict[str, float]:
            found = model(glyph_crops(held_images, held_lines).to(device))
            right = {"letters": found.letters.argmax(1).cpu() == held_letters}
            right["faces"] = found.faces.argmax(1).cpu() == held_faces
            return {name: float(value.float().mean()) for name, value in right.items()}

        optimiser = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=1e-4)
        run_stage(
            "classifier", self.work, model, [optimiser], steps=settings.steps, warm_up=settings.warm_up,
            loss_at=loss_at, validate=validate, validate_every=250,
        )  # fmt: skip
        state = {name: value.half().cpu().contiguous() for name, value in model.state_dict().items()}
        self.model.mkdir(parents=True, exist_ok=True)
        save_file(state, self.model / WEIGHTS_FILE)

    def start(self) -> None:
        config = self.recipe.start
        identity = self.work / "identity"
        if not identity.exists():
            write_identity(self.model, identity, config)
        output = self.work / "start"
        data = TextPairs(seed_for(self.recipe.seed, "start"), config.total_steps * config.batch_size, split="train")
        settings = RunSettings(
            model=self.model, data=data, output=output, resume=output.exists(), init_lora=identity, tracker="none",
            cpu=self.device.type == "cpu",
        )  # fmt: skip
        student = train(settings, config).lora

        publish(self.model / "lora" / "start", lambda folder: write_half(student, folder))


def colour(gray: Tensor) -> Tensor:
    """Gray images (B, 1, H, W) in [0, 1] as the VAE reads them, (B, 3, H, W) in [-1, 1]."""
    return (gray * 2 - 1).expand(-1, 3, -1, -1)


def labels(lines: Sequence[Line]) -> tuple[Tensor, Tensor]:
    """(letter, face) of every glyph of every line, in the order of `glyph_crops`."""
    letters = [glyph for line in lines for glyph in line.glyphs]
    return torch.tensor(letters), torch.tensor([line.face for line in lines for _ in line.glyphs])


def write_identity(model: Path, folder: Path, config: TrainConfig) -> None:
    """Writes a student that begins at ẑ = z_L up to a bias: the last convolution's adapter cancels its weights."""
    backbone = load_backbone(model)
    targets = denoiser_targets(backbone.denoiser, backbone.family.student_targets)
    attach(backbone.denoiser, STUDENT, targets, config.rank, seed_for(config.seed, "identity", "denoiser"))
    attach(backbone.vae, STUDENT, vae_targets(backbone.vae), config.vae_rank, seed_for(config.seed, "identity", "vae"))
    start_as_identity(backbone.denoiser, generator_for(config.seed, "identity", "factors"), last="conv_out")
    save_student(backbone, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation.text.recipe", description="Train the text domain's models from nothing."
    )
    parser.add_argument("--output", type=Path, required=True, help="gets model/ and work/; continues a stopped run")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="every stage for a few steps at toy size")
    args = parser.parse_args(arguments)
    run = TextRun(quick_recipe() if args.quick else TextRecipe(), args.output, torch.device(args.device))
    print(run_stages(run, args.stages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
