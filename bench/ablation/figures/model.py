"""A model on disk as a subject of figures: photographs, degraded, restored by its students.

Nothing is trained. A student is a LoRA folder, which has one moment and no critic; or the output folder of `tsd train`,
whose checkpoints are its moments and hold the critic too. Teacher and critic see the model's default prompt without
guidance, since captions are not stored in a student.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ablation.domain import Measure
from bench.ablation.figures.stage import Stage, Strategy
from tsd.algorithm.turns import predictor
from tsd.config import TrainConfig
from tsd.data.degrade import FULL
from tsd.errors import UserError
from tsd.model.backbone import Backbone, load_backbone, require_prompt
from tsd.model.lora import STUDENT, adapter_parameters, attach_roles, load_student, role
from tsd.train.checkpoint import CONFIG_FILE, STATE_FILE, checkpoint_folder, checkpoints
from tsd.train.validate import ValidationPair, load_validation, luma_psnr

MOST_IMAGES = 8
PSNR_Y = Measure("psnr_y", "PSNR-Y", "dB", True, True, 2)


@dataclass(frozen=True)
class ModelSubject:
    """A `Subject` of given students.

    Attributes:
        model: a folder in diffusers layout.
        students: folders by the label that figures show.
        photographs: a folder of ground-truth images, each at least `crop` pixels wide and high.
        crop: side of the squares that are cut from them, in pixels.
    """

    model: Path
    students: Mapping[str, Path]
    photographs: Path
    crop: int

    @property
    def name(self) -> str:
        return self.model.name

    def moments(self, wanted: Sequence[float]) -> list[float]:
        """Fractions of the first student's run for which there are checkpoints, at most one for each wanted."""
        steps = [step for step, _ in self._moments(self._first)]
        nearest = {min(steps, key=lambda step: abs(step - fraction * steps[-1])) for fraction in wanted}
        return [step / steps[-1] if steps[-1] else 1.0 for step in sorted(nearest)]

    def strategies(self, wanted: Sequence[Strategy]) -> list[Strategy]:
        """The students themselves, in place of strategies that would have to be trained."""
        return [Strategy(label, {"student": label}) for label in self.students]

    def stages(self, overrides: Mapping[str, Any], seed: int, moments: Sequence[float]) -> Iterator[Stage]:
        known = self._moments(str(overrides.get("student", self._first)))
        for moment in moments:
            step, folder = min(known, key=lambda one: abs(one[0] - moment * known[-1][0]))
            yield self._stage(step, folder, seed)

    @property
    def _first(self) -> str:
        return next(iter(self.students))

    def _moments(self, label: str) -> list[tuple[int, Path]]:
        """(step, checkpoint) of a run, or one pair (0, folder) of a finished student."""
        folder = self.students[label]
        if not folder.is_dir():
            raise UserError(f"--student {folder} is no folder; expected a student's, or the --output of `tsd train`")
        found = checkpoints(checkpoint_folder(folder))
        return [(int(path.name.rpartition("-")[2]), path) for path in found] or [(0, folder)]

    @cached_property
    def _cache(self) -> dict[int, list[ValidationPair]]:
        return {}

    def _pairs(self, seed: int) -> list[ValidationPair]:
        if seed not in self._cache:
            self._cache[seed] = load_validation(self.photographs, self.crop, FULL, seed)[:MOST_IMAGES]
        return self._cache[seed]

    @torch.no_grad()
    def _stage(self, step: int, folder: Path, seed: int) -> Stage:
        pairs = self._pairs(seed)
        backbone = load_backbone(self.model)
        has_critic = (folder / STATE_FILE).is_file()
        if has_critic:
            load_checkpoint(backbone, folder)
        else:
            load_student(backbone, folder, merge=False)
        prompt = require_prompt(backbone, "default")
        x_L, x_H = (torch.cat([getattr(pair, name) for pair in pairs]) for name in ("lr_up", "hr"))
        z_L, z_hat, z = latents_of(backbone, x_L, x_H)

        def images(latents: Tensor) -> Tensor:
            with torch.no_grad(), role(backbone.vae, "teacher"):
                return (backbone.decode(latents) / 2 + 0.5).clamp(0, 1)

        psnr = luma_psnr(images(z_hat) * 2 - 1, x_H)
        return Stage(
            step,
            seed,
            backbone.process,
            predictor(backbone, "teacher", prompt, prompt, 1.0),
            predictor(backbone, "critic", prompt, prompt, 1.0) if has_critic else None,
            z_L=z_L,
            z_hat=z_hat,
            z=z,
            images=images,
            scores={PSNR_Y: psnr},
        )


@torch.no_grad()
def latents_of(backbone: Backbone, x_L: Tensor, x_H: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z_L and z by the base's own encoder, and ẑ by the attached student between them: (z_L, ẑ, z), (B, C, h, w).

    Args:
        x_L, x_H: the enlarged degraded images and the true ones, (B, 3, H, W) in [-1, 1].
    """
    with role(backbone.vae, STUDENT), role(backbone.denoiser, STUDENT):
        z_hat = backbone.one_step(backbone.encode(x_L, posterior="mode")).float()
    with role(backbone.vae, "teacher"):
        z_L, z = (backbone.encode(x, posterior="mode").float() for x in (x_L, x_H))
    return z_L, z_hat, z


def load_checkpoint(backbone: Backbone, folder: Path) -> None:
    """Attaches student and critic to a bare base, with a checkpoint's weights or, where it has them, averages.

    Raises:
        UserError: the checkpoint does not fit the model.
    """
    config = TrainConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
    attach_roles(backbone, config)
    saved = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)["tensors"]
    adapters = {
        "student.denoiser": adapter_parameters(backbone.denoiser, "student"),
        "student.vae": adapter_parameters(backbone.vae, "student"),
        "critic.denoiser": adapter_parameters(backbone.denoiser, "critic"),
    }
    for name, parameters in adapters.items():
        values = saved.get(f"ema.{name}", saved[name])
        for key, parameter in parameters.items():
            if key not in values or values[key].shape != parameter.shape:
                raise UserError(
                    f"{folder} does not fit the model in {backbone.source}: {name} has no {key} of its shape"
                )
            parameter.data.copy_(values[key])
