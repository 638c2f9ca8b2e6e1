"""Stage two, the distillation: Algorithm 1 as one flat loop on accelerate.

A step is the student's turn, the critic's turn, and the update of the averages; the steps of the critic's warm-up have
only its turn, on the latents of the student that the run starts with. Student, critic and teacher are adapters
on one copy of the base (`tsd.model.lora`). `tsd.train.parallel` shares the work among processes, and `tsd.train.run`
does everything that is not the algorithm.
"""

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor

from tsd.algorithm.pixel_loss import load_pixel_loss
from tsd.algorithm.turns import Batch, student_latents, student_turn
from tsd.config import RECOMMENDED_FILE, TrainConfig, settings_to_restore
from tsd.files import write_text
from tsd.model.backbone import Backbone
from tsd.model.lora import adapter_parameters, attach_roles, save_student, write_adapter_config
from tsd.model.prompt import load_prompts
from tsd.prompts.folder import write_prompt
from tsd.train.checkpoint import TrainState
from tsd.train.critic import CriticTraining
from tsd.train.ema import CRITIC_GROUPS, averaged, start_ema, update_ema
from tsd.train.feed import degradation_of
from tsd.train.optim import (
    DivergenceError,
    OptimizerState,
    backward,
    check_divergence,
    loss_scale,
    new_optimizer,
    update,
    wrap_optimizer,
)
from tsd.train.run import Run, Validation
from tsd.train.settings import FinishedRun, RunSettings
from tsd.train.validate import ValidationPair, in_words, load_validation, validate

__all__ = ["DivergenceError", "train"]

VALIDATION_CROP = 256
GRADIENT_SIZES = ("data_grad_rms", "tsd_grad_rms", "grad_cosine")


def train(settings: RunSettings, config: TrainConfig) -> FinishedRun:
    """Distils a base model into a one-step student.

    >>> run = train(RunSettings(data="photos/", output="run/"), MINI.scaled_to(100))
    >>> restorer = Restorer.load(lora=run.lora)

    Args:
        settings: the paths to read and write, and how the run is carried out.
        config: everything that changes the result.

    Returns:
        The paths of the run; `lora` is the student.

    Raises:
        UserError: bad input, found before anything heavy is loaded.
        DivergenceError: a loss or gradient norm is not finite, or above `config.abort_grad_norm`.
    """
    with Run(settings, config, shown=("pixel", "latent_mse", "tsd", "critic")) as run:
        accelerator = run.accelerator
        pixel_loss = load_pixel_loss(config.pixel_loss, accelerator.device) if config.has_pixel_loss else None
        pairs = load_pairs(settings.val_data, config)
        given = (settings.init_lora, settings.teacher_lora, run.checked.teacher_targets)
        backbone = run.load(lambda base: attach_roles(base, config, *given))
        state, student = optimizers(backbone, config, accelerator)
        batches = run.begin(state)
        optimizer = state.stateful["optimizer"].optimizer
        perceptual = pixel_loss if config.pixel_loss == "lpips" else None

        def validation() -> Validation:
            numbers, strip = validate(backbone, pairs, accelerator, perceptual)
            return Validation(numbers["psnr_y"], numbers, strip, "input, student, ground truth", in_words(numbers))

        widths = backbone.family.prompt_widths(backbone.denoiser.config)
        prompts = load_prompts(run.checked.folder, settings.prompt_embeds, widths)  # not rounded to the base's dtype

        to_restore = settings_to_restore(posterior=config.posterior, crop=config.crop)

        def save(folder: Path, write: bool) -> None:
            save_student(backbone, folder, write=write)
            if write:  # a student needs the prompt it was trained with, and is restored as it was trained
                write_prompt(folder / "prompts" / "default", prompts["default"], "safetensors")
                write_text(folder / RECOMMENDED_FILE, json.dumps(to_restore, indent=2) + "\n")
                write_adapter_config(folder, config.rank, config.vae_rank)

        own = run.checked.regularisation
        regularise = None if own is None else own.regularise
        critic = CriticTraining(run, backbone, config, state)
        overflows = 0
        while not run.done(state):
            step, warms_up = state.step, config.warms_up(state.step)
            run.describe("critic warm-up" if warms_up else "train")
            phase, gamma1 = config.phase_at(step), config.gamma1_at(step)
            logs: dict[str, float] = {}
            latents: list[tuple[Tensor, Batch]] = []
            micro_logs = []
            for _ in range(config.gradient_accumulation):
                batch = next(batches)
                if warms_up:
                    with torch.no_grad(), accelerator.autocast():
                        latents.append((student_latents(backbone, batch, config).float(), batch))
                    continue
                with accelerator.autocast(), averaged(state, CRITIC_GROUPS):
                    turn = student_turn(backbone, batch, config, phase, gamma1, pixel_loss, regularise=regularise)
                backward(accelerator, optimizer, turn.loss)
                latents.append((turn.z_hat, batch))
                micro_logs.append(turn.logs | turn.gradient_sizes(loss_scale(accelerator, config)))
            if not warms_up:
                logs = run.mean(micro_logs)
                logs |= update(accelerator, optimizer, student, config.max_grad_norm)
                if "overflow" in logs:  # the gradients' sizes are not finite either
                    logs = {name: value for name, value in logs.items() if name not in GRADIENT_SIZES}
                overflows = overflows + 1 if "overflow" in logs else 0
                check_divergence(logs, overflows, config, step, run.last_good(), accelerator)
                state.stateful["schedule"].step()
            if warms_up or phase.gamma2 > 0:
                logs |= critic.step(latents)
            if not warms_up:
                update_ema(state, config.ema_decay, step - config.critic_warmup_steps)
                logs |= {"lr": optimizer.param_groups[0]["lr"], "gamma1": gamma1}
            run.finish_step(state, logs, validation if pairs and not warms_up else None, save)
        return run.finish(state, run.output / "student", save)


def load_pairs(val_data: str | Path | None, config: TrainConfig) -> list[ValidationPair]:
    """Loads the held-out pairs of a run, two crops of every photograph; none without `val_data`.

    Raises:
        UserError: no photographs in the folder, or one that is smaller than the crop.
    """
    if val_data is None:
        return []
    return load_validation(val_data, VALIDATION_CROP, degradation_of(config), config.seed, 2)


def optimizers(
    backbone: Backbone, config: TrainConfig, accelerator: Accelerator
) -> tuple[TrainState, list[torch.nn.Parameter]]:
    """Makes the optimisers and schedules.

    Returns:
        The resumable state that holds them, and the student's parameters.
    """
    adapters = {
        "student.denoiser": adapter_parameters(backbone.denoiser, "student"),
        "student.vae": adapter_parameters(backbone.vae, "student"),
        "critic.denoiser": adapter_parameters(backbone.denoiser, "critic"),
    }
    student = [*adapters["student.denoiser"].values(), *adapters["student.vae"].values()]
    critic = list(adapters["critic.denoiser"].values())
    stateful: dict[str, Any] = {}
    critic_steps = max(config.critic_schedule_steps, 1)
    plans = (("", student, config.lr, config.student_steps), ("critic_", critic, config.critic_lr, critic_steps))
    for prefix, parameters, lr, steps in plans:
        optimizer = new_optimizer(config, parameters, lr)
        stateful[f"{prefix}schedule"] = get_scheduler(
            config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
        )
        stateful[f"{prefix}optimizer"] = OptimizerState(wrap_optimizer(accelerator, optimizer, parameters, config))
    state = TrainState({name: dict(group) for name, group in adapters.items()}, stateful)
    if config.ema_decay:
        start_ema(state)
    if config.critic_ema_decay:
        start_ema(state, CRITIC_GROUPS)
    return state, student
