"""What the teacher's tuning is: its settings beyond those of every run, and its presets."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tsd.config import RunConfig
from tsd.errors import UserError

TimeDensity = Literal["family", "logit_normal", "uniform"]


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(RunConfig):
    """Everything the teacher's tuning depends on besides its data and its base model.

    Attributes:
        steps: how long.
        caption_dropout: share of the samples whose caption is replaced by the null prompt, so that classifier-free
            guidance keeps its meaning; decided per sample.
        t_density: distribution of t. `family` is what the base was trained with: `logit_normal` for SD3, whose
            logit is standard normal (diffusers' `train_dreambooth_lora_sd3.py` by default, with loss weight 1), and
            `uniform` for SD2.
    """

    steps: int
    caption_dropout: float
    t_density: TimeDensity

    def _checks(self) -> dict[str, bool]:
        return super()._checks() | {"steps": self.steps >= 1, "caption_dropout": 0 <= self.caption_dropout <= 1}

    @property
    def total_steps(self) -> int:
        return self.steps

    def scaled_to(self, steps: int) -> "TeacherConfig":
        """The same run in `steps` steps, its warm-up in proportion."""
        if steps < 1:
            raise UserError(f"a run of {steps} steps is not possible; give 1 or more")
        warmup = min(self.warmup_steps, round(self.warmup_steps * steps / self.steps))
        return dataclasses.replace(self, steps=steps, warmup_steps=warmup)


# [R] tunes SD3 by a rank-64 LoRA on high-quality images and states nothing else; [P] takes the pre-trained model. What
# neither states is diffusers' LoRA example (1e-4, constant rate) and the usual tenth of the captions dropped.
TEACHER = TeacherConfig(
    steps=20_000,
    batch_size=2,  # per GPU, 8 GPUs
    gradient_accumulation=1,
    crop=512,
    usm=False,
    rank=64,
    lr=1e-4,
    lr_schedule="constant_with_warmup",
    warmup_steps=500,
    adam_betas=(0.9, 0.999),
    weight_decay=1e-4,
    max_grad_norm=1.0,
    posterior="sample",
    caption_dropout=0.1,
    t_density="family",
    seed=43,
    mixed_precision="fp16",
    base_dtype="fp16",
    checkpoint_every=5000,
    validate_every=500,
    abort_grad_norm=1e4,
)

TEACHER_PRESETS: dict[str, TeacherConfig] = {
    "paper": TEACHER,
    "release": TEACHER,
    "mini": dataclasses.replace(
        TEACHER, steps=500, batch_size=8, crop=128, lr=1e-3, warmup_steps=50, mixed_precision="bf16", base_dtype="fp32",
        checkpoint_every=100, validate_every=100,
    ),
}  # fmt: skip
