"""Stage one, optional: the teacher tuned on high-quality images by the ordinary diffusion loss, as a LoRA.

    t ~ the family's training distribution,   z_t = noise(z, ε, t),   loss = ‖ψ(z_t, t, caption) − target(z, ε, t)‖²

The release tunes SD3 in this way before it distils; the paper takes the pre-trained model. The distillation reads the
result with `--teacher-lora` and keeps it frozen.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from torch import Tensor

from tsd.algorithm.turns import Batch, ground_truth_latents, noise_for
from tsd.config import TeacherConfig
from tsd.data.degrade import FULL
from tsd.model.backbone import Backbone
from tsd.model.lora import (
    adapter_parameters,
    attach,
    denoiser_file,
    denoiser_targets,
    role,
    save_adapter,
    write_adapter_config,
)
from tsd.model.prompt import PromptEmbeds
from tsd.seeds import generator_for, seed_for
from tsd.train.checkpoint import TrainState
from tsd.train.optim import OptimizerState, backward, check_divergence, new_optimizer, update, wrap_optimizer
from tsd.train.parallel import mean
from tsd.train.run import Run, Validation
from tsd.train.settings import FinishedRun, RunSettings
from tsd.train.validate import ValidationPair, image_strip, load_validation, pairs_of_process

VALIDATION_CROP = 256
VALIDATION_TIMES = (0.2, 0.4, 0.6, 0.8)
"""Times of the held-out loss, as shares of the last time."""


def train_teacher(settings: RunSettings, config: TeacherConfig) -> FinishedRun:
    """Tunes the denoiser of a base model by a LoRA.

    Prepared data give moments and captions. With plain images the default prompt is every image's caption (the null
    prompt if the model has no default). Errors are those of `tsd.train.student.train`.

    Returns:
        The paths of the run; `lora` holds the teacher's one file (`transformer.` or `unet.safetensors`).
    """
    with Run(settings, config, shown=("teacher",)) as run:
        accelerator = run.accelerator
        pairs = load_validation(settings.val_data, VALIDATION_CROP, FULL, config.seed) if settings.val_data else []
        backbone = run.load(lambda base: attach_teacher(base, config))
        adapter = adapter_parameters(backbone.denoiser, "teacher")
        parameters = list(adapter.values())
        inner = new_optimizer(config, parameters, config.lr)
        schedule = get_scheduler(
            config.lr_schedule, inner, num_warmup_steps=config.warmup_steps, num_training_steps=config.steps
        )
        optimizer = wrap_optimizer(accelerator, inner, parameters, config)
        state = TrainState(
            {"teacher.denoiser": dict(adapter)}, {"schedule": schedule, "optimizer": OptimizerState(optimizer)}
        )
        batches = run.begin(state)

        def validation() -> Validation:
            loss, strip = validate_teacher(backbone, pairs, run)
            title = "noised, estimate, original"
            return Validation(-loss, {"teacher": loss}, strip, title, f"held-out loss {loss:.4f}")

        def save(folder: Path, write: bool) -> None:
            path = folder / denoiser_file(backbone.family)
            save_adapter(backbone.denoiser, "teacher", path, backbone.family, write=write)
            if write:
                write_adapter_config(folder, config.rank)

        overflows = 0
        while not run.done(state):
            micro_logs = []
            for _ in range(config.gradient_accumulation):
                batch = next(batches)
                with accelerator.autocast():
                    loss = teacher_loss(backbone, batch, config)
                backward(accelerator, optimizer, loss)
                micro_logs.append({"teacher": loss.detach()})
            logs = run.mean(micro_logs)
            logs |= update(accelerator, optimizer, parameters, config.max_grad_norm)
            overflows = overflows + 1 if "overflow" in logs else 0
            check_divergence(logs, overflows, config, state.step, run.last_good(), accelerator)
            schedule.step()
            logs |= {"lr": optimizer.param_groups[0]["lr"]}
            run.finish_step(state, logs, validation if pairs else None, save)
        return run.finish(state, run.output / "teacher", save)


def attach_teacher(backbone: Backbone, config: TeacherConfig) -> None:
    """Attaches the adapter to train, on the attention projections, as in diffusers' LoRA examples and the critic."""
    targets = denoiser_targets(backbone.denoiser, backbone.family.critic_targets)
    attach(backbone.denoiser, "teacher", targets, config.rank, seed_for(config.seed, "teacher"))


def teacher_loss(backbone: Backbone, batch: Batch, config: TeacherConfig) -> Tensor:
    """The diffusion loss of a micro-batch, a scalar in fp32; each sample has its own generator for every draw."""
    process = backbone.process
    z = ground_truth_latents(backbone, batch, config)
    noise = noise_for(config.seed, "noise of the teacher", batch.indices, z)
    t = times(backbone, config, batch.indices).to(z.device)
    prompt = captions_with_dropout(backbone, batch, config)
    with role(backbone.denoiser, "teacher"):
        prediction = backbone.predict(process.add_noise(z, noise, t), t, prompt)
    return F.mse_loss(prediction.float(), process.target(z, noise, t).float())


def times(backbone: Backbone, config: TeacherConfig, indices: list[int]) -> Tensor:
    """Draws times (B,) on the CPU from the configured density over [0, last time], each with its sample's generator.

    Logit-normal: t = T · sigmoid(n), n standard normal, before the schedule's shift, as diffusers draws its index.
    """
    density = config.t_density
    if density == "family":
        density = backbone.family.time_density
    generators = [generator_for(config.seed, "t of the teacher", index) for index in indices]
    if density == "logit_normal":
        share = torch.stack([torch.randn((), generator=generator) for generator in generators]).sigmoid()
    else:
        share = torch.stack([torch.rand((), generator=generator) for generator in generators])
    return share * backbone.process.last_time


def captions_with_dropout(backbone: Backbone, batch: Batch, config: TeacherConfig) -> PromptEmbeds:
    """The samples' captions (B, L, D), of which a share is replaced by the null prompt."""
    size = len(batch.indices)
    null = backbone.prompts["null"]
    prompt = (batch.prompt or backbone.prompts.get("default", null)).expand(size)
    draws = [torch.rand((), generator=generator_for(config.seed, "caption", index)) for index in batch.indices]
    dropped = (torch.stack(draws) < config.caption_dropout).to(prompt.embeds.device)
    length = max(prompt.embeds.shape[1], null.embeds.shape[1])
    embeds = torch.where(dropped[:, None, None], _padded(null.embeds, length), _padded(prompt.embeds, length))
    if prompt.pooled is None or null.pooled is None:
        return PromptEmbeds(embeds)
    return PromptEmbeds(embeds, torch.where(dropped[:, None], null.pooled, prompt.pooled))


def _padded(embeds: Tensor, length: int) -> Tensor:
    """Pads a shorter prompt with zeros at its end."""
    return F.pad(embeds, (0, 0, 0, length - embeds.shape[1]))


@torch.no_grad()
def validate_teacher(backbone: Backbone, pairs: list[ValidationPair], run: Run) -> tuple[float, Tensor]:
    """Returns the loss on held-out crops at fixed times with fixed noise, and a strip: noised, estimate, original."""
    process, accelerator = backbone.process, run.accelerator
    prompt = backbone.prompts.get("default", backbone.prompts["null"])
    sums = {"loss": 0.0, "count": 0.0}
    rows: list[Tensor] = []
    for pair, counts in pairs_of_process(pairs, accelerator):
        z = ground_truth_latents(backbone, Batch(pair.lr_up, pair.hr.to(backbone.device), [0]), run.config)
        noise = noise_for(seed_for("validation", pair.name), "noise", [0], z)
        for share in VALIDATION_TIMES:
            t = torch.full((1,), share * process.last_time, device=z.device)
            z_t = process.add_noise(z, noise, t)
            with role(backbone.denoiser, "teacher"):
                prediction = backbone.predict(z_t, t, prompt).float()
            sums["loss"] += counts * float(F.mse_loss(prediction, process.target(z, noise, t).float()))
            sums["count"] += counts
            if share == VALIDATION_TIMES[1] and len(rows) < 12:
                with role(backbone.vae, "teacher"):
                    images = [backbone.decode(x.to(backbone.dtype))[0] for x in (z_t, process.x0(z_t, prediction, t))]
                rows += [*images, pair.hr[0]]
    totals = mean(accelerator, sums)
    return totals["loss"] / totals["count"], image_strip(rows)
