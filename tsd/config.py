"""The settings of the distillation, of the teacher's tuning and of a restoration: every value that changes a result.

Each group is a frozen dataclass. A run prints its settings, writes them beside its results before work starts, and
checks them on resumption; `tsd.presets` has named values for the two training stages. A restoration takes each setting
from the caller, else from the student's `restore.json`, else from the defaults, which are the release's.

Standard library only, so that `bench` may use it anywhere.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tsd.errors import UserError
from tsd.files import function_named
from tsd.precision import Precision

Residual = Literal["velocity", "epsilon"]
LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
Weighting = Literal["sigma2", "sigma2_one_minus_sigma", "uniform"]
CriticLayers = Literal["attention", "student"]
Optimizer = Literal["adamw", "adamw8bit"]
TimeDensity = Literal["family", "logit_normal", "uniform"]
Posterior = Literal["sample", "mode"]
Alignment = Literal["wavelet", "adain", "none"]

TSD = "tsd"
"""The built-in regularisation, Eq. 5."""


RECOMMENDED_FILE = "restore.json"
"""File in a LoRA folder with the restoration settings that its weights were trained for."""

ADAPTER_CONFIG = "adapter_config.json"
"""File in a LoRA folder with the strength of its adapters, in peft's form."""

EXPORT_FILE = "tsd_student.json"
"""File in an exported student that says what it is and what it was made from."""
FOLDED_FILE = "folded.safetensors"
"""The denoiser's weights in a folded export, which diffusers does not read."""

DEFAULT_PROMPT = (
    "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
    "maximum detail, 32k, Color Grading, ultra HD, extrememeticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations."
)


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own terms.

    Attributes:
        steps: number of optimiser steps.
        latent_mse: weight of MSE(ẑ, z) in Eq. 7.
        gamma2: γ2, weight of L_reg in Eq. 8; at 0 neither teacher nor critic is run at all.
        point_weights: weight of each point of the trajectory; a single point switches DASM off.
    """

    steps: int
    latent_mse: float
    gamma2: float
    point_weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings that both stages, the teacher's tuning and the distillation, have in common.

    Attributes:
        batch_size: samples per process and micro-batch.
        gradient_accumulation: micro-batches per step. A run may be resumed on another number of processes if the
            product of the two stays the same.
        crop: side of the square ground-truth crops in pixels.
        usm: sharpen the ground truth as SeeSR's pair maker does.
        rank: rank of the denoiser's LoRA; alpha = rank for every adapter.
        lr, lr_schedule, warmup_steps: learning rate (where images are meant, `lr` is the low-resolution one), its
            schedule as diffusers' `get_scheduler` names it, and the length of the warm-up.
        optimizer: `adamw`, or bitsandbytes' `adamw8bit`, whose state takes 2 bytes a parameter instead of 8.
        adam_betas, weight_decay, max_grad_norm: AdamW and clipping.
        posterior: whether latents are samples of the encoder's Gaussian or its mean.
        seed: seeds every random draw; draws are made per sample, so that they do not depend on batch size, order,
            processes or resumption.
        mixed_precision: accelerate's `no`, `bf16` or `fp16`.
        base_dtype: precision the frozen base is held in; adapters are always fp32.
        gradient_checkpointing: discard activations of denoiser and VAE and recompute them in the backward pass.
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
    posterior: Posterior
    seed: int
    mixed_precision: Literal["no", "bf16", "fp16"]
    base_dtype: Precision
    gradient_checkpointing: bool = False
    checkpoint_every: int
    validate_every: int
    abort_grad_norm: float

    def __post_init__(self) -> None:
        for name, possible in self._checks().items():
            if not possible:
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

    def stretch_of(self, step: int) -> int:
        """Which stretch of the sample numbers a step (counted from 0) reads; a stretch is a global batch long."""
        return step

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
        degrade_anew: with prepared data, degrade every crop anew at every visit instead of reading the stored result.
        vae_rank, critic_rank: LoRA ranks of the student's encoder and of the critic.
        critic_layers: which layers the critic adapts. `attention`: the projections of the attention, as released;
            `student`: those that the student adapts, so that the critic can follow wherever the student goes.
        critic_lr: the critic's learning rate. Its schedule is as long as the steps in which the critic is trained.
        critic_warmup_steps: the first steps of the run train the critic alone, on the outputs of the student that the
            run starts with, one update a step. They are steps of the run like all others, but read sample numbers after
            those of the student's steps: runs with other lengths of it still share the samples of the student.
        critic_steps: updates of the critic for each update of the student, on the same latents, each with its own
            noise and times.
        critic_ema_decay: decay of an average of the critic's weights, updated at each of its updates, which predicts in
            place of the critic wherever L_reg asks it (VSD and trajectory); 0 asks the critic itself. The average
            starts as the critic is after its warm-up.
        lambda_tsd: λ of Eq. 5.
        stride: s, in units of t.
        regularisation: the gradient of L_reg at a point of the trajectory: `tsd`, Eq. 5, or a function of one's own,
            `python:FILE.py:FUNCTION` (`tsd.algorithm.regularisation`).
        random_bias: jitter the trajectory's end by up to ± s/2, as the release does.
        residual: parameterisation in which Eq. 3–5 take differences. `velocity` is what the released weights were
            trained with; `epsilon` is what the equations print. They are not the same for TSM on flow models, see
            `tsd.algorithm.objective`: the velocity difference can point away from z. Measured on a small model, its
            cosine with ẑ − z is −0.01 to 0.24, epsilon's 0.45 to 0.99, and velocity-TSM alone diverged. So `paper` and
            `mini` take `epsilon` (the stated equation, and a direction that a small run can survive), `release` takes
            `velocity` (what the released code does, with λ = 0.7 keeping VSD in charge).
        weighting: w(t). `sigma2`: σ², as released; `sigma2_one_minus_sigma`: σ²(1 − σ), with which VSD in velocity form
            equals VSD in epsilon form with σ² on flow models (a DDPM has its signal level α in place of 1 − σ);
            `uniform`: 1.
        t_range: t is drawn uniformly from this range; [50, 950] in paper and release.
        gamma1: γ1 at the start and at the end of training, linear in between; at 0 the decoder is not run at all, and
            0 throughout needs no pixel loss.
        guidance_scale: classifier-free guidance of teacher and critic inside L_reg.
        pixel_loss: `lpips` (AlexNet, as the release), or `charbonnier` where LPIPS' weights cannot be had.
        ema_decay: decay of the student's exponential moving average, which is saved and validated; 0 switches it off.
        gain_every: steps between two measurements of the critic's gain, each one more forward pass of the teacher.
    """

    phases: tuple[Phase, ...]
    degradation: Literal["full", "light"]
    degrade_anew: bool = False
    vae_rank: int
    critic_rank: int
    critic_layers: CriticLayers = "attention"
    critic_lr: float
    critic_warmup_steps: int = 0
    critic_steps: int = 1
    critic_ema_decay: float = 0.0
    lambda_tsd: float
    regularisation: str = TSD
    stride: float
    random_bias: bool
    residual: Residual
    weighting: Weighting
    t_range: tuple[float, float]
    gamma1: tuple[float, float]
    guidance_scale: float
    pixel_loss: Literal["lpips", "charbonnier"]
    ema_decay: float
    gain_every: int = 10

    def _checks(self) -> dict[str, bool]:
        return super()._checks() | {
            "phases": bool(self.phases) and all(p.steps >= 0 and p.point_weights for p in self.phases),
            "vae_rank": self.vae_rank >= 1,
            "critic_rank": self.critic_rank >= 1,
            "critic_lr": self.critic_lr > 0,
            "critic_warmup_steps": self.critic_warmup_steps >= 0,
            "critic_steps": self.critic_steps >= 1,
            "critic_ema_decay": 0 <= self.critic_ema_decay < 1,
            "regularisation": self.regularisation == TSD or self.own_regularisation is not None,
            "lambda_tsd": 0 <= self.lambda_tsd <= 1,
            "stride": self.stride > 0,
            "t_range": 0 < self.t_range[0] < self.t_range[1] <= 1000,
            "ema_decay": 0 <= self.ema_decay < 1,
            "gain_every": self.gain_every >= 1,
        }

    @property
    def own_regularisation(self) -> tuple[Path, str] | None:
        """The file and the function of a regularisation of one's own; None for Eq. 5, or if the text names none."""
        return function_named(self.regularisation)

    @property
    def total_steps(self) -> int:
        """Steps of the run: those of the critic's warm-up, then those of the student."""
        return self.critic_warmup_steps + self.student_steps

    @property
    def student_steps(self) -> int:
        """Steps in which the student is trained."""
        return sum(phase.steps for phase in self.phases)

    @property
    def critic_schedule_steps(self) -> int:
        """Steps in which the critic is trained."""
        return self.critic_warmup_steps + sum(phase.steps for phase in self.phases if phase.gamma2 > 0)

    def warms_up(self, step: int) -> bool:
        """Whether a step (counted from 0) belongs to the critic's warm-up."""
        return step < self.critic_warmup_steps

    def stretch_of(self, step: int) -> int:
        warmup = self.critic_warmup_steps
        return self.student_steps + step if self.warms_up(step) else step - warmup

    def phase_at(self, step: int) -> Phase:
        """The phase that a step (counted from 0) belongs to; in the critic's warm-up the one that follows it."""
        step = max(step - self.critic_warmup_steps, 0)
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    @property
    def has_pixel_loss(self) -> bool:
        """Whether the pixel loss has a weight anywhere in the run."""
        return self.gamma1 != (0.0, 0.0)

    def gamma1_at(self, step: int) -> float:
        """γ1 at a step: linear over the steps of the student."""
        start, end = self.gamma1
        step = max(step - self.critic_warmup_steps, 0)
        return start + (end - start) * min(step / max(self.student_steps - 1, 1), 1.0)

    def scaled_to(self, steps: int) -> "TrainConfig":
        """The same run with the critic's warm-up and the phases scaled to `steps` in all.

        No phase vanishes from a run of as many steps as there are phases. The warm-up of the learning rate is shortened
        in proportion, never lengthened.
        """
        if steps < 1:
            raise UserError(f"a run of {steps} steps is not possible; give 1 or more")
        parts = [self.critic_warmup_steps, *(phase.steps for phase in self.phases)]
        ends = [round(steps * sum(parts[: i + 1]) / self.total_steps) for i in range(len(parts))]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        vanished = [number for number, part in enumerate(parts) if part and not lengths[number]]
        if steps >= sum(part > 0 for part in parts):
            for number in vanished:
                lengths[lengths.index(max(lengths))] -= 1
                lengths[number] = 1
        critic_warmup, *lengths = lengths
        phases = tuple(dataclasses.replace(p, steps=n) for p, n in zip(self.phases, lengths, strict=True))
        warmup = min(self.warmup_steps, round(self.warmup_steps * steps / self.total_steps))
        return dataclasses.replace(self, phases=phases, critic_warmup_steps=critic_warmup, warmup_steps=warmup)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "TrainConfig":
        """The inverse of `to_json`, strict about unknown and missing keys; settings with a default may be missing."""
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


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(RunConfig):
    """Everything the teacher's tuning depends on besides its data and its base model.

    Attributes:
        steps: number of optimiser steps.
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
        """The same run in `steps` steps; the warm-up is shortened in proportion if at all."""
        if steps < 1:
            raise UserError(f"a run of {steps} steps is not possible; give 1 or more")
        warmup = min(self.warmup_steps, round(self.warmup_steps * steps / self.steps))
        return dataclasses.replace(self, steps=steps, warmup_steps=warmup)


@dataclass(frozen=True)
class RestoreConfig:
    """Everything beside weights, prompt, device and precision that changes the result. The defaults are the release's.

    Attributes:
        scale: output size over input size, 1 or more; sizes are rounded by `enlarged_size`.
        color: colour alignment with the input, see `tsd.restore.color`.
        posterior: `sample` draws the latent from the encoder's Gaussian, `mode` takes its mean.
        process_size: inputs whose short side times `scale` is less are processed at this short side (in output
            pixels) and resized back; 0 switches that off.
        seed: with the image's name, seeds the posterior draw.
        tile, tile_overlap: side and overlap of the denoiser's tiles in latent positions, used where the latent has
            more than tile² positions; tile 0 switches tiling off.
        vae_tile: the VAE too works in tiles (1024 pixels, diffusers' own blending). Saves memory on very large
            images; results change a little, since its group normalisation then sees tiles instead of the image.
    """

    scale: float = 4
    color: Alignment = "wavelet"
    posterior: Posterior = "sample"
    process_size: int = 512
    seed: int = 42
    tile: int = 64
    tile_overlap: int = 8
    vae_tile: bool = False

    def __post_init__(self) -> None:
        scale = self.scale
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 1 <= scale < math.inf:
            raise UserError(f"scale is {scale!r}; expected a number of 1 or more")
        for field, least in (("process_size", 0), ("seed", 0), ("tile", 0), ("tile_overlap", 0)):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{field} is {value!r}; expected an integer of {least} or more")
        if self.color not in get_args(Alignment):
            raise UserError(f"color is {self.color!r}; expected one of {', '.join(get_args(Alignment))}")
        if self.posterior not in get_args(Posterior):
            raise UserError(f"posterior is {self.posterior!r}; expected sample or mode")
        if not isinstance(self.vae_tile, bool):
            raise UserError(f"vae_tile is {self.vae_tile!r}; expected true or false")
        if self.tile and self.tile_overlap >= self.tile:
            raise UserError(f"tile_overlap is {self.tile_overlap}; expected less than the tile, {self.tile}")


def enlarged_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) of an image enlarged `scale` times: each side to the nearest pixel, halves up, at least one."""
    sides = (max(math.floor(scale * side + 0.5), 1) for side in (width, height))
    return next(sides), next(sides)


def settings_to_restore(*, posterior: Posterior, crop: int) -> dict[str, object]:
    """The settings to restore with for a student that was trained with this posterior and crop: its `restore.json`.

    It encodes as it was trained to. Inputs that would be smaller than the crops it has seen are enlarged to them, as
    the release does with its crops of 512 pixels. Training knows no alignment of colours, but a student that is young
    or small moves them, and `wavelet` takes them from the input.
    """
    return {"color": "wavelet", "posterior": posterior, "process_size": crop}


@dataclass(frozen=True)
class FastPath:
    """How a loaded student is rewritten so that it computes the same image in less time: only rounding differs.

    Attributes:
        channels_last: the VAE's images lie in memory channel by channel of each pixel.
        fold: time and pooled prompt are constants of a one-step student, so every modulation computed from them is
            one too: a third of SD3's weights leave memory. A folded student has one prompt and one time.
        text: whatever depends on the prompt alone is computed once: SD3's `context_embedder` and the text's queries,
            keys and values of its first block, all keys and values of the text in SD2. Needs `fold`.
        qkv: queries, keys and values of an attention come from one matrix product.
        upsample: "nearest x2, then 3x3 convolution" as four 2x2 convolutions of the small image, 4/9 of the products.
        pack: on a CPU in bf16 the denoiser's linear layers hold their weights as oneDNN multiplies them.
        mean: with the posterior `mode` the encoder computes the mean alone.
        attention: on a CPU without a matrix unit SD3's blocks compute the attention of bf16 in fp32. Needs `fold`; what
            other models and devices do stays as it is.
        winograd: on a CPU 3x3 convolutions of many channels compute a quarter of their products, in fp32: those in fp32
            and, without a matrix unit, those in bf16. Not together with `compile`.
        compile: `torch.compile` for each kind of block (`tsd.fast.compiling`). The first image takes minutes longer.
    """

    channels_last: bool = True
    fold: bool = True
    text: bool = True
    qkv: bool = True
    upsample: bool = True
    pack: bool = True
    mean: bool = True
    attention: bool = True
    winograd: bool = True
    compile: bool = False

    def __post_init__(self) -> None:
        if self.text and not self.fold:
            raise UserError("text: what depends on the prompt alone is computed once only with fold; switch both off")


PLAIN = FastPath(
    channels_last=False,
    fold=False,
    text=False,
    qkv=False,
    upsample=False,
    pack=False,
    mean=False,
    attention=False,
    winograd=False,
)
"""Every measure switched off: diffusers' own modules, as they were loaded."""


@dataclass(frozen=True)
class DecoderConfig:
    """Everything the distillation of a small decoder depends on besides its images and its model.

    Attributes:
        steps: number of optimiser steps.
        batch_size: crops per step.
        crop: side of the crops in pixels, a multiple of 8.
        width: channels of the decoder; TAESD's has 64.
        blocks: residual blocks at each size but the largest, which has one.
        lr: peak learning rate, from which a cosine falls to zero.
        pool: number of crops that the frozen decoder decodes before the first step and that all steps draw from; 0 for
            new crops at every step. Most of a step's time is the frozen model's.
        mixed_precision: `no`, or `bf16` for the small decoder's products.
        seed: seeds crops and initial weights.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = 5000
    batch_size: int = 8
    crop: int = 128
    width: int = 64
    blocks: int = 3
    lr: float = 1e-3
    pool: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.mixed_precision not in ("no", "bf16"):
            raise UserError(f"mixed_precision is {self.mixed_precision!r}; expected no or bf16")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < (0 if field.name in ("seed", "pool") else 1e-12):
                raise UserError(f"{field.name} is {value}; expected more than 0")
        if self.crop % 8 or self.crop < 32:
            raise UserError(f"crop is {self.crop}; expected a multiple of 8 of 32 or more")

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


def recommended_settings(lora: Path) -> dict[str, object]:
    """The settings that a LoRA folder's `restore.json` recommends; empty without that file.

    Raises:
        UserError: not a JSON object, or a key that is no setting.
    """
    path = lora / RECOMMENDED_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    known = [field.name for field in dataclasses.fields(RestoreConfig)]
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds a {type(settings).__name__}; expected an object with keys of {', '.join(known)}")
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise UserError(f"{path} has the unknown keys {', '.join(unknown)}; known are {', '.join(known)}")
    return settings


def config_for(lora: Path, overrides: dict[str, object] | None = None) -> RestoreConfig:
    """The settings recommended for a LoRA folder, below explicit `overrides` (by field name)."""
    return RestoreConfig(**(recommended_settings(lora) | (overrides or {})))  # pyright: ignore[reportArgumentType]
