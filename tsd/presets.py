"""Named settings of a run: `paper`, `release` and `mini`, for the distillation and for the teacher's tuning.

Where paper [P] and release [R] differ, the preset says which it takes; the argument for the residual's
parameterisation is at `TrainConfig.residual`.
"""

import dataclasses

from tsd.config import Phase, TeacherConfig, TrainConfig

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

# [R] as the command in its README runs it. That command leaves out the flag `--use_dasm`, and the phases are a comment;
# both are written out here with the constants of the code (four points, γ1 = 1, MSE kept, jittered end).
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

# [R] tunes SD3 by a rank-64 LoRA on high-quality images and states nothing else; [P] takes the pre-trained model. The
# other values are those of diffusers' LoRA example (1e-4, constant rate); a tenth of the captions is dropped, as usual.
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

PRESETS: dict[str, TrainConfig] = {"paper": PAPER, "release": RELEASE, "mini": MINI}

TEACHER_PRESETS: dict[str, TeacherConfig] = {
    "paper": TEACHER,
    "release": TEACHER,
    "mini": dataclasses.replace(
        TEACHER, steps=500, batch_size=8, crop=128, lr=1e-3, warmup_steps=50, mixed_precision="bf16", base_dtype="fp32",
        checkpoint_every=100, validate_every=100,
    ),
}  # fmt: skip
