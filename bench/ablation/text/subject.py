"""The text domain as a subject of figures: a training of `tsd.train`, looked at through its checkpoints."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.ablation.experiment import measures_of
from bench.ablation.figures.model import latents_of, load_checkpoint
from bench.ablation.figures.stage import Stage, Strategy
from bench.ablation.text.data import TextPairs
from bench.ablation.text.domain import TextDomain, scorer
from bench.ablation.text.domain import open_domain as open_text
from bench.ablation.text.measures import gray_of
from tsd.algorithm.turns import predictor
from tsd.config import TrainConfig
from tsd.model.backbone import load_backbone
from tsd.model.lora import attach_roles, role
from tsd.train.checkpoint import checkpoint_folder, latest
from tsd.train.settings import RunSettings
from tsd.train.student import train

SHOWN = 64
"""So many test lines are looked at."""
SCORES = ("lp", "psnr", "sharpness")


def open_subject() -> "TextSubject":
    return TextSubject(open_text(""))


class TextSubject:
    """A `Subject` that trains for some minutes, on the first test lines."""

    name = "text"

    def __init__(self, domain: TextDomain) -> None:
        self.domain = domain

    def moments(self, wanted: Sequence[float]) -> list[float]:
        return list(wanted)

    def strategies(self, wanted: Sequence[Strategy]) -> list[Strategy]:
        return list(wanted)

    def stages(self, overrides: Mapping[str, Any], seed: int, moments: Sequence[float]) -> Iterator[Stage]:
        settings = self.domain.settings() | dict(overrides)
        self.domain.check(settings)
        config = self.domain.config(settings, seed)
        data = TextPairs(seed, config.total_steps * config.batch_size, captions=self.domain.captions)
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "run"
            for moment in moments:
                end = config.critic_warmup_steps + round(moment * config.student_steps)
                if end:
                    train(
                        RunSettings(
                            model=self.domain.model, data=data, output=output, resume=output.exists(), keep=1,
                            init_lora=self.domain.start, stop_after=end, tracker="none", cpu=True,
                        ),
                        config,
                    )  # fmt: skip
                yield self._stage(config, latest(checkpoint_folder(output)), round(moment * config.student_steps))

    def _stage(self, config: TrainConfig, checkpoint: Path | None, step: int) -> Stage:
        """The averaged student and critic of the checkpoint; before any step the start, and the teacher as critic."""
        backbone = load_backbone(self.domain.model)
        if checkpoint is not None:
            load_checkpoint(backbone, checkpoint)
        else:
            attach_roles(backbone, config, self.domain.start)
        data = TextPairs(0, SHOWN, split="test")
        items = [data[number] for number in range(SHOWN)]
        x_L, x_H = (torch.stack([item[name] for item in items]) for name in ("lr_up", "hr"))  # pyright: ignore
        prompt, null = backbone.prompts["default"], backbone.prompts["null"]

        @torch.no_grad()
        def images(latents: Tensor) -> Tensor:
            with role(backbone.vae, "teacher"):
                return gray_of(backbone.decode(latents)).clamp(0, 1)

        z_L, z_hat, z = latents_of(backbone, x_L, x_H)
        found = scorer(self.domain.model, SHOWN)(images(z_hat)).of_set
        return Stage(
            step,
            config.seed,
            backbone.process,
            predictor(backbone, "teacher", prompt, null, config.guidance_scale),
            predictor(backbone, "critic", prompt, null, config.guidance_scale),
            z_L,
            z_hat,
            z,
            images,
            {measure: found[measure.name] for measure in measures_of(SCORES, self.domain)},
        )
