"""Stage two, the distillation: Algorithm 1 as one flat loop on accelerate.

Student's turn, critic's turn, average, end of the step. Student, critic and teacher are adapters on one copy of the
base (`tsd.lora`); how several processes share the work is in `tsd.parallel`, everything that is not the algorithm in
`tsd.run`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from tsd.backbone import Backbone
from tsd.checkpoint import TrainState
from tsd.config import TrainConfig
from tsd.ema import start_ema, update_ema
from tsd.feed import Source, degradation_of
from tsd.loading import load_prompts
from tsd.lora import (
    VAE_FILE,
    adapter_parameters,
    attach,
    denoiser_file,
    denoiser_targets,
    load_adapter,
    load_initial,
    save_student,
    vae_targets,
)
from tsd.optim import DivergenceError, OptimizerState, accelerated, backward, new_optimizer, refuse_divergence, update
from tsd.pixel_loss import load_pixel_loss
from tsd.prompt_files import write_prompt
from tsd.run import Run, Validation
from tsd.seeds import seed_for
from tsd.turns import critic_turn, student_turn
from tsd.validate import ValidationPair, load_validation, validate

__all__ = ["DivergenceError", "train"]

VALIDATION_CROP = 256


def train(
    model: str | Path,
    sources: Sequence[Source],
    output: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    init_lora: str | Path | None = None,
    teacher_lora: str | Path | None = None,
    prompt_embeds: str | Path | None = None,
    val_data: str | Path | None = None,
    workers: int = 0,
    stop_after: int | None = None,
    time_limit: float | None = None,
    keep: int = 2,
    tracker: str = "tensorboard",
    cpu: bool = False,
) -> Path:
    """Distils `model` into a one-step student; returns the folder of the student's LoRA files.

    Args:
        model: base model, a folder in diffusers layout or a hub id.
        sources: image folders, files or uint8 arrays (see `PairDataset`), or one folder that `tsd prepare` wrote.
        output: run folder: `config.json`, `log.jsonl`, `checkpoints/`, `student/` (last), `best/`, `logs/`,
            `validation/`.
        resume: continue from the newest checkpoint in `output`; without it an `output` that has some is an error.
        init_lora: start from an existing student (released layout) instead of B = 0.
        teacher_lora: the teacher's frozen adapter (`tsd.teacher`, or any LoRA of that layout); else the bare base.
        val_data: folder of held-out photographs; without it nothing is validated and there is no `best/`.
        stop_after: stop cleanly after this many steps in all (a checkpoint is written), to be resumed later.
        time_limit: in seconds; stop cleanly before it (see `tsd.stopping`).
        keep: how many of the newest checkpoints are kept, besides that of the best validation.
        tracker: one of accelerate's names, or `none`.

    Raises:
        UserError: bad input, found before anything heavy is loaded.
        DivergenceError: a loss or gradient norm is not finite, or above `config.abort_grad_norm`.
    """
    with Run(
        model, sources, output, config, resume=resume, prompt_embeds=prompt_embeds, init_lora=init_lora,
        teacher_lora=teacher_lora, workers=workers, stop_after=stop_after, time_limit=time_limit, keep=keep,
        tracker=tracker, cpu=cpu, shown=("pixel", "latent_mse", "tsd", "critic"),
    ) as run:  # fmt: skip
        accelerator = run.accelerator
        pixel_loss = load_pixel_loss(config.pixel_loss, accelerator.device)
        pairs = load_pairs(val_data, config)
        backbone = run.load(
            lambda base: attach_roles(base, config, init_lora, teacher_lora, run.checked.teacher_targets)
        )
        state, student, critic = prepare(backbone, config, accelerator)
        batches = run.begin(state)
        optimizer, critic_optimizer = (
            state.stateful["optimizer"].optimizer,
            state.stateful["critic_optimizer"].optimizer,
        )
        perceptual = pixel_loss if config.pixel_loss == "lpips" else None

        def validation() -> Validation:
            numbers, strip = validate(backbone, pairs, accelerator, perceptual)
            return Validation(numbers["psnr_y"], numbers, strip, "input, student, ground truth")

        widths = backbone.family.prompt_widths(backbone.denoiser.config)
        prompt = load_prompts(run.checked.folder, prompt_embeds, widths)["default"]  # as it was given, unrounded

        def save(folder: Path, write: bool) -> None:
            save_student(backbone, folder, write=write)
            if write:  # a student is of little use without the prompt it was trained with
                write_prompt(folder / "prompts" / "default", prompt, "safetensors")

        overflows, critic_overflows = 0, 0
        while run.goes_on(state):
            phase, gamma1 = config.phase_at(state.step), config.gamma1_at(state.step)
            done, micro_logs = [], []
            for _ in range(config.gradient_accumulation):
                batch = next(batches)
                with accelerator.autocast():
                    turn = student_turn(backbone, batch, config, phase, gamma1, pixel_loss)
                backward(accelerator, optimizer, turn.loss)
                done.append((turn.z_hat, batch))
                micro_logs.append(turn.logs)
            logs = run.mean(micro_logs)
            logs |= update(accelerator, optimizer, student, config.max_grad_norm)
            overflows = overflows + 1 if "overflow" in logs else 0
            refuse_divergence(logs, overflows, config, state.step, run.last_good(), accelerator)
            state.stateful["schedule"].step()
            if phase.gamma2 > 0:
                micro_logs = []
                for z_hat, batch in done:
                    with accelerator.autocast():
                        loss = critic_turn(backbone, z_hat, batch.indices, config, batch.prompt)
                    backward(accelerator, critic_optimizer, loss)
                    micro_logs.append({"critic": loss.detach()})
                logs |= run.mean(micro_logs)
                critic_logs = update(accelerator, critic_optimizer, critic, config.max_grad_norm)
                critic_overflows = critic_overflows + 1 if "overflow" in critic_logs else 0
                logs |= {f"critic_{name}": value for name, value in critic_logs.items()}
                refuse_divergence(logs, critic_overflows, config, state.step, run.last_good(), accelerator)
                state.stateful["critic_schedule"].step()
            update_ema(state, config.ema_decay)
            logs |= {"lr": optimizer.param_groups[0]["lr"], "gamma1": gamma1}
            run.finish_step(state, logs, validation if pairs else None, save)
        student_folder = run.output / "student"
        run.finish(state, student_folder, save)
    return student_folder


def load_pairs(val_data: str | Path | None, config: TrainConfig) -> list[ValidationPair]:
    """The held-out pairs of a run, two crops of every photograph; none without `val_data`.

    Raises:
        UserError: no photographs there, or one smaller than the crop.
    """
    if val_data is None:
        return []
    return load_validation(Path(val_data), VALIDATION_CROP, degradation_of(config), config.seed, 2)


def attach_roles(
    backbone: Backbone,
    config: TrainConfig,
    init_lora: str | Path | None,
    teacher_lora: str | Path | None,
    teacher_targets: list[str],
) -> None:
    """Student and critic adapters on the base, trained; and the teacher's, frozen, where one is given."""
    denoiser, vae, family, seed = backbone.denoiser, backbone.vae, backbone.family, config.seed
    student_targets = denoiser_targets(denoiser, family.student_targets)
    attach(denoiser, "student", student_targets, config.rank, seed_for(seed, "student"))
    attach(vae, "student", vae_targets(vae), config.vae_rank, seed_for(seed, "student", "vae"))
    critic_targets = denoiser_targets(denoiser, family.critic_targets)
    attach(denoiser, "critic", critic_targets, config.critic_rank, seed_for(seed, "critic"))
    if init_lora is not None:
        load_initial(denoiser, Path(init_lora) / denoiser_file(family), family)
        load_initial(vae, Path(init_lora) / VAE_FILE, family)
    if teacher_lora is not None:
        load_adapter(denoiser, "teacher", Path(teacher_lora) / denoiser_file(family), family, teacher_targets)


def prepare(
    backbone: Backbone, config: TrainConfig, accelerator: Accelerator
) -> tuple[TrainState, list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Optimisers and schedules: the resumable state, and the student's and the critic's parameters."""
    adapters = {
        "student.denoiser": adapter_parameters(backbone.denoiser, "student"),
        "student.vae": adapter_parameters(backbone.vae, "student"),
        "critic.denoiser": adapter_parameters(backbone.denoiser, "critic"),
    }
    student = [*adapters["student.denoiser"].values(), *adapters["student.vae"].values()]
    critic = list(adapters["critic.denoiser"].values())
    stateful: dict[str, Any] = {}
    critic_steps = max(sum(phase.steps for phase in config.phases if phase.gamma2 > 0), 1)
    plans = (("", student, config.lr, config.total_steps), ("critic_", critic, config.critic_lr, critic_steps))
    for prefix, parameters, lr, steps in plans:
        optimizer = new_optimizer(config, parameters, lr)
        stateful[f"{prefix}schedule"] = get_scheduler(
            config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
        )
        stateful[f"{prefix}optimizer"] = OptimizerState(accelerated(accelerator, optimizer, parameters, config))
    state = TrainState({name: dict(group) for name, group in adapters.items()}, stateful)
    if config.ema_decay:
        start_ema(state)
    return state, student, critic
