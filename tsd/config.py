"""What a training run is: a frozen dataclass for each stage, and the presets `paper`, `release` and `mini`.

Every value that changes the result stands here, is printed, is written beside the run before work starts, and is
checked on resumption. Where paper [P] and release [R] differ, the preset says which it takes; the argument for the
residual's parameterisation is at `TrainConfig.residual`.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tsd.errors import UserError

Residual = Literal["velocity", "epsilon"]
LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
Weighting = Literal["sigma2", "uniform"]
Optimizer = Literal["adamw", "adamw8bit"]

DEFAULT_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own terms.

    Attributes:
        steps: how long.
        latent_mse: weight of MSE(ẑ, z) in Eq. 7.
        gamma2: γ2, weight of L_reg in Eq. 8; at 0 neither teacher nor critic is run at all.
        point_weights: weight of each point of the trajectory; one point is "DASM off".
    """

    steps: int
    latent_mse: float
    gamma2: float
    point_weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What both stages, the teacher's tuning and the distillation, have in common.

    Attributes:
        batch_size: samples per process and micro-batch.
        gradient_accumulation: micro-batches per step. What counts is their product with the number of processes: a
            run may be resumed on another number of processes if that product stays.
        crop: side of the square ground-truth crops in pixels.
        usm: sharpen the ground truth as SeeSR's pair maker does.
        rank: of the denoiser's LoRA; alpha = rank for every adapter.
        lr, lr_schedule, warmup_steps: learning rate, and its course as diffusers' `get_scheduler` names it.
        optimizer: `adamw`, or bitsandbytes' `adamw8bit`, whose state takes 2 bytes a parameter instead of 8.
        adam_betas, weight_decay, max_grad_norm: AdamW and clipping.
        posterior: whether latents are samples of the encoder's Gaussian or its mean.
        seed: of everything random; per sample, so independent of batch size, order, processes and resumption.
        mixed_precision: accelerate's `no`, `bf16` or `fp16`.
        base_dtype: precision the frozen base is held in; adapters are always fp32.
        gradient_checkpointing: forget activations of denoiser and VAE and compute them again in the backward pass.
        checkpoint_every, validate_every: in steps.
        abort_grad_norm: a gradient norm above this (before clipping) counts as divergence.
    """

    batch_size: int
    gradient_accumulation: int
    crop: int
    usm: bool
    rank: int
    lr: float
    lr_schedule: LearningRateSchedule
    warmup_steps: int
    optimizer: Optimizer = "adamw"
    adam_betas: tuple[float, float]
    weight_decay: float
    max_grad_norm: float
    posterior: Literal["sample", "mode"]
    seed: int
    mixed_precision: Literal["no", "bf16", "fp16"]
    base_dtype: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool = False
    checkpoint_every: int
    validate_every: int
    abort_grad_norm: float

    def __post_init__(self) -> None:
        for name, fine in self._checks().items():
            if not fine:
                raise UserError(f"training configuration: {name} = {getattr(self, name)!r} is not possible")

    def _checks(self) -> dict[str, bool]:
        choices = {
            name: getattr(self, name) in get_args(hint)
            for name, hint in get_type_hints(type(self)).items()
            if get_origin(hint) is Literal
        }
        return choices | {
            "batch_size": self.batch_size >= 1,
            "gradient_accumulation": self.gradient_accumulation >= 1,
            "crop": self.crop >= 8 and self.crop % 8 == 0,
            "rank": self.rank >= 1,
            "lr": self.lr > 0,
            "warmup_steps": self.warmup_steps >= 0,
            "checkpoint_every": self.checkpoint_every >= 1,
            "validate_every": self.validate_every >= 1,
        }

    @property
    def total_steps(self) -> int:
        raise NotImplementedError

    def global_batch(self, processes: int) -> int:
        """Samples per step over all processes."""
        return self.batch_size * self.gradient_accumulation * processes

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Everything a distillation depends on besides its data and its base model.

    Attributes:
        phases: in order; the paper trains with latent MSE and without DASM first, then the other way round.
        degradation: `full` or `light` Real-ESRGAN parameters (`tsd.data.degrade`).
        degrade_anew: of prepared data, degrade every crop anew at every visit instead of reading the stored result.
        vae_rank, critic_rank: LoRA ranks of the student's encoder and of the critic.
        critic_lr: the critic's learning rate.
        lambda_tsd: λ of Eq. 5.
        stride: s, in units of t.
        random_bias: jitter the trajectory's end by up to ± s/2 [R].
        residual: parameterisation in which Eq. 3–5 take differences. `velocity` is what the released weights were
            trained with; `epsilon` is what the equations print. They are not the same for TSM on flow models, see
            `tsd.objective`: the velocity difference can point away from z. Measured on a small model, its cosine
            with ẑ − z is −0.01 to 0.24, epsilon's 0.45 to 0.99, and velocity-TSM alone diverged. So `paper` and
            `mini` take `epsilon` (the stated equation, and a direction that a small run can survive), `release`
            takes `velocity` (what the released code does, with λ = 0.7 keeping VSD in charge).
        weighting: w(t).
        t_range: uniform range of t; [50, 950] in both.
        gamma1: γ1 at the start and at the end of training, linear in between.
        guidance_scale: classifier-free guidance of teacher and critic inside L_reg.
        pixel_loss: `lpips` (AlexNet, as the release), or `charbonnier` where LPIPS' weights cannot be had.
        ema_decay: exponential moving average of the student that is saved and validated; 0 is off.
    """

    phases: tuple[Phase, ...]
    degradation: Literal["full", "light"]
    degrade_anew: bool = False
    vae_rank: int
    critic_rank: int
    critic_lr: float
    lambda_tsd: float
    stride: float
    random_bias: bool
    residual: Residual
    weighting: Weighting
    t_range: tuple[float, float]
    gamma1: tuple[float, float]
    guidance_scale: float
    pixel_loss: Literal["lpips", "charbonnier"]
    ema_decay: float

    def _checks(self) -> dict[str, bool]:
        return super()._checks() | {
            "phases": bool(self.phases) and all(p.steps >= 0 and p.point_weights for p in self.phases),
            "vae_rank": self.vae_rank >= 1,
            "critic_rank": self.critic_rank >= 1,
            "critic_lr": self.critic_lr > 0,
            "lambda_tsd": 0 <= self.lambda_tsd <= 1,
            "stride": self.stride > 0,
            "t_range": 0 < self.t_range[0] < self.t_range[1] <= 1000,
            "ema_decay": 0 <= self.ema_decay < 1,
        }

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> Phase:
        """The phase that step (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def gamma1_at(self, step: int) -> float:
        """γ1 at a step: linear over the whole run."""
        start, end = self.gamma1
        return start + (end - start) * min(step / max(self.total_steps - 1, 1), 1.0)

    def scaled_to(self, steps: int) -> "TrainConfig":
        """The same run with its phases, warm-up included, shortened or lengthened in proportion to `steps` in all."""
        if steps < 1:
            raise UserError(f"a run of {steps} steps is not possible; give 1 or more")
        ends = [
            round(steps * sum(p.steps for p in self.phases[: i + 1]) / self.total_steps)
            for i in range(len(self.phases))
        ]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        phases = tuple(dataclasses.replace(p, steps=n) for p, n in zip(self.phases, lengths, strict=True))
        warmup = min(self.warmup_steps, round(self.warmup_steps * steps / self.total_steps))
        return dataclasses.replace(self, phases=phases, warmup_steps=warmup)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`, strict about unknown and missing keys (settings younger than the file excepted)."""
        fields = dataclasses.fields(TrainConfig)
        values = {f.name: f.default for f in fields if f.default is not dataclasses.MISSING} | values
        names = {field.name for field in fields}
        if set(values) != names:
            raise UserError(
                f"training configuration: unknown {sorted(set(values) - names)}, missing {sorted(names - set(values))}"
            )
        tuples = {name: tuple(values[name]) for name in ("adam_betas", "t_range", "gamma1")}
        phases = tuple(Phase(**{**phase, "point_weights": tuple(phase["point_weights"])}) for phase in values["phases"])
        return TrainConfig(**{**values, **tuples, "phases": phases})


# [P]: two phases, N = 4 and s = 50 (so five points), γ1 1 → 2, batch 16 on 8 GPUs. Not stated in [P] and taken from
# [R]: λ = 0.7, w = σ², optimiser constants, the weights of the later points, the split of the 200k steps (halves).
PAPER = TrainConfig(
    phases=(
        Phase(steps=100_000, latent_mse=1.0, gamma2=1.0, point_weights=(1.0,)),
        Phase(steps=100_000, latent_mse=0.0, gamma2=1.0, point_weights=(1.0, 0.3, 0.3, 0.3, 0.3)),
    ),
    batch_size=2,  # per GPU, 8 GPUs
    gradient_accumulation=1,
    crop=512,
    degradation="full",
    usm=True,
    rank=64,
    vae_rank=64,
    critic_rank=64,
    lr=5e-6,
    critic_lr=1e-6,
    lr_schedule="cosine_with_restarts",
    warmup_steps=3000,
    adam_betas=(0.9, 0.999),
    weight_decay=1e-4,
    max_grad_norm=1.0,
    lambda_tsd=0.7,
    stride=50.0,
    random_bias=False,
    residual="epsilon",
    weighting="sigma2",
    t_range=(50.0, 950.0),
    gamma1=(1.0, 2.0),
    guidance_scale=7.5,
    posterior="sample",
    pixel_loss="lpips",
    ema_decay=0.0,
    seed=43,
    mixed_precision="fp16",
    base_dtype="fp16",
    checkpoint_every=5000,
    validate_every=500,
    abort_grad_norm=1e4,
)

# [R] as its README's command runs it: `--use_dasm` is a flag that command leaves out and phases are a comment, so both
# are written out here with the constants of the code (four points, γ1 = 1, MSE kept, jittered end).
RELEASE = dataclasses.replace(
    PAPER,
    phases=(
        Phase(steps=100_000, latent_mse=1.0, gamma2=1.0, point_weights=(1.0,)),
        Phase(steps=100_000, latent_mse=0.0, gamma2=1.0, point_weights=(1.0, 0.3, 0.3, 0.3)),
    ),
    random_bias=True,
    residual="velocity",
    gamma1=(1.0, 1.0),
)

# Two CPU cores and an hour: a long stretch of data terms (neither teacher nor critic), then TSD as in the paper.
MINI = dataclasses.replace(
    PAPER,
    phases=(
        Phase(steps=3000, latent_mse=1.0, gamma2=0.0, point_weights=(1.0,)),
        Phase(steps=200, latent_mse=1.0, gamma2=1.0, point_weights=(1.0, 0.3, 0.3, 0.3, 0.3)),
    ),
    batch_size=8,
    crop=128,
    usm=False,
    lr=1e-3,
    critic_lr=1e-4,
    lr_schedule="cosine",
    warmup_steps=100,
    guidance_scale=1.5,
    posterior="mode",
    pixel_loss="charbonnier",
    gamma1=(1.0, 2.0),
    ema_decay=0.995,
    mixed_precision="bf16",
    base_dtype="fp32",
    checkpoint_every=200,
    validate_every=200,
)

PRESETS: dict[str, TrainConfig] = {"paper": PAPER, "release": RELEASE, "mini": MINI}
