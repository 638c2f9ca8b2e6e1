"""Algorithm 1 as one flat loop on accelerate: student's turn, critic's turn, log, validate, checkpoint.

Student, critic and teacher are adapters on one copy of the base (`tsd.lora`). With several processes the adapters'
gradients are averaged explicitly: they are small, and wrapping a base that plays three roles per step in DDP is not.
"""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from tsd.atomic import atomic_path, write_text
from tsd.backbone import Backbone, load_backbone, require_prompt
from tsd.checkpoint import TrainState, check_same_config, latest, prune
from tsd.config import TrainConfig
from tsd.data.degrade import FULL, LIGHT
from tsd.data.pairs import PairDataset
from tsd.ema import averaged, start_ema, update_ema
from tsd.errors import UserError
from tsd.lora import (
    VAE_FILE,
    adapter_parameters,
    attach,
    denoiser_file,
    denoiser_targets,
    load_initial,
    save_student,
    vae_targets,
)
from tsd.pixel_loss import load_pixel_loss
from tsd.seeds import seed_for
from tsd.turns import Batch, critic_turn, student_turn
from tsd.validate import load_validation, validate


class DivergenceError(RuntimeError):
    """Training left the finite or the reasonable; the message names step, numbers and the last good checkpoint."""


class RunningCount(Sampler[int]):
    """The sample numbers of this process, from `first_step` on: a count, not a shuffle (the data set shuffles)."""

    def __init__(self, config: TrainConfig, first_step: int, process: int, processes: int) -> None:
        self.config, self.first_step, self.process, self.processes = config, first_step, process, processes

    def __iter__(self) -> Iterator[int]:
        micro_batches = range(
            self.first_step * self.config.gradient_accumulation,
            self.config.total_steps * self.config.gradient_accumulation,
        )
        for micro in micro_batches:
            start = (micro * self.processes + self.process) * self.config.batch_size
            yield from range(start, start + self.config.batch_size)

    def __len__(self) -> int:
        steps = self.config.total_steps - self.first_step
        return steps * self.config.gradient_accumulation * self.config.batch_size


def train(
    model: str | Path,
    sources: Sequence[str | Path | np.ndarray],
    output: str | Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    init_lora: str | Path | None = None,
    prompt_embeds: str | Path | None = None,
    val_data: str | Path | None = None,
    workers: int = 0,
    stop_after: int | None = None,
    trackers: bool = True,
    cpu: bool = False,
) -> Path:
    """Distils `model` into a one-step student; returns the folder of the student's LoRA files.

    Args:
        model: base model, a folder in diffusers layout or a hub id.
        sources: image folders, files or uint8 arrays (see `PairDataset`).
        output: run folder: `config.json`, `checkpoints/`, `student/` (last), `best/`, `logs/`, `validation/`.
        resume: continue from the newest checkpoint in `output`; without it an `output` that has some is an error.
        init_lora: start from an existing student (released layout) instead of B = 0.
        val_data: folder of held-out photographs; without it nothing is validated and there is no `best/`.
        stop_after: stop cleanly after this many steps in all (a checkpoint is written), to be resumed later.

    Raises:
        UserError: bad input, found before anything is trained.
        DivergenceError: a loss or gradient norm is not finite, or above `config.abort_grad_norm`.
    """
    output = Path(output)
    folder = output / "checkpoints"
    newest = latest(folder)
    if newest is not None and not resume:
        raise UserError(f"{output} already holds {newest.name}; add --resume to continue, or choose another --output")
    if newest is not None:
        check_same_config(newest, config)
    AcceleratorState._reset_state()  # a singleton: a second run in this process may have another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation,
        log_with="tensorboard" if trackers else None,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / "logs")),
        cpu=cpu,
    )
    degradation = {"full": FULL, "light": LIGHT}[config.degradation]
    per_step = config.batch_size * config.gradient_accumulation * accelerator.num_processes
    length = config.total_steps * per_step
    dataset = PairDataset(
        sources, crop=config.crop, seed=config.seed, length=length, degradation=degradation, usm=config.usm
    )
    pixel_loss = load_pixel_loss(config.pixel_loss, accelerator.device)
    pairs = load_validation(Path(val_data), 256, degradation, config.seed, 2) if val_data is not None else []
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.base_dtype]
    backbone = load_backbone(model, device=accelerator.device, dtype=dtype, prompt_embeds=prompt_embeds)
    require_prompt(backbone, "default")
    if any(phase.gamma2 > 0 for phase in config.phases):
        require_prompt(backbone, "null")
    if config.crop % backbone.pixel_multiple:
        raise UserError(f"crop is {config.crop}; this model needs a multiple of {backbone.pixel_multiple}")
    state, student, critic = prepare(backbone, config, accelerator, init_lora)
    if newest is not None:
        state.load(newest)
        _cut_log(output / "log.jsonl", state.step)
        print(f"resumed from {newest} at step {state.step}", file=sys.stderr)
    if accelerator.is_main_process:
        write_text(output / "config.json", config.to_json())
    if trackers:
        accelerator.init_trackers("tsd", config={"config": config.to_json()})

    loader = DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=RunningCount(config, state.step, accelerator.process_index, accelerator.num_processes),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    end = min(config.total_steps, stop_after if stop_after is not None else config.total_steps)
    batches = iter(loader)
    optimizer, critic_optimizer = state.stateful["optimizer"], state.stateful["critic_optimizer"]
    quiet = not accelerator.is_main_process
    bar = tqdm(total=end, initial=state.step, desc="train", unit="step", disable=quiet, file=sys.stderr)
    overflows = 0
    with bar:
        while state.step < end:
            phase, gamma1 = config.phase_at(state.step), config.gamma1_at(state.step)
            latents: list[tuple[Tensor, list[int]]] = []
            for _ in range(config.gradient_accumulation):
                batch = _to_batch(next(batches), accelerator.device)
                with accelerator.autocast():
                    turn = student_turn(backbone, batch, config, phase, gamma1, pixel_loss)
                accelerator.backward(turn.loss)  # divides by the accumulation count itself
                latents.append((turn.z_hat, batch.indices))
            logs = {name: float(value) for name, value in turn.logs.items()}
            logs |= update(accelerator, optimizer, student, config.max_grad_norm)
            overflows = overflows + 1 if "overflow" in logs else 0
            refuse_divergence(logs, overflows, config, state.step, latest(folder), accelerator)
            state.stateful["schedule"].step()
            if phase.gamma2 > 0:
                for z_hat, indices in latents:
                    with accelerator.autocast():
                        loss = critic_turn(backbone, z_hat, indices, config)
                    accelerator.backward(loss)
                logs["critic"] = float(loss.detach())
                critic_logs = update(accelerator, critic_optimizer, critic, config.max_grad_norm)
                logs |= {f"critic_{name}": value for name, value in critic_logs.items()}
                refuse_divergence(logs, overflows, config, state.step, latest(folder), accelerator)
                state.stateful["critic_schedule"].step()
            update_ema(state, config.ema_decay)
            state.step += 1
            bar.update()
            bar.set_postfix({k: f"{logs[k]:.4f}" for k in ("pixel", "latent_mse", "tsd", "critic") if k in logs})
            last = state.step == end
            if accelerator.is_main_process:
                logs |= {"lr": optimizer.param_groups[0]["lr"], "gamma1": gamma1}
                if pairs and (last or state.step % config.validate_every == 0):
                    logs |= _validate(backbone, state, config, pairs, output, accelerator)
                _log(accelerator, output, logs, state.step)
                if last or state.step % config.checkpoint_every == 0:
                    state.save(folder, config)
                    prune(folder, keep=2)
    if accelerator.is_main_process:
        with averaged(state):
            save_student(backbone, output / "student")
    accelerator.end_training()
    return output / "student"


def prepare(
    backbone: Backbone, config: TrainConfig, accelerator: Accelerator, init_lora: str | Path | None
) -> tuple[TrainState, list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Adapters, optimisers and schedules: the resumable state, and the student's and the critic's parameters."""
    denoiser, vae = backbone.denoiser, backbone.vae
    family, seed = backbone.family, config.seed
    student_targets = denoiser_targets(denoiser, family.student_targets)
    attach(denoiser, "student", student_targets, config.rank, seed_for(seed, "student"))
    attach(vae, "student", vae_targets(vae), config.vae_rank, seed_for(seed, "student", "vae"))
    critic_targets = denoiser_targets(denoiser, family.critic_targets)
    attach(denoiser, "critic", critic_targets, config.critic_rank, seed_for(seed, "critic"))
    if init_lora is not None:
        load_initial(denoiser, Path(init_lora) / denoiser_file(family), family)
        load_initial(vae, Path(init_lora) / VAE_FILE, family)
    adapters = {
        "student.denoiser": adapter_parameters(denoiser, "student"),
        "student.vae": adapter_parameters(vae, "student"),
        "critic.denoiser": adapter_parameters(denoiser, "critic"),
    }
    student = [*adapters["student.denoiser"].values(), *adapters["student.vae"].values()]
    critic = list(adapters["critic.denoiser"].values())
    stateful: dict[str, Any] = {}
    critic_steps = max(sum(phase.steps for phase in config.phases if phase.gamma2 > 0), 1)
    plans = (("", student, config.lr, config.total_steps), ("critic_", critic, config.critic_lr, critic_steps))
    for prefix, parameters, lr, steps in plans:
        optimizer = torch.optim.AdamW(parameters, lr=lr, betas=config.adam_betas, weight_decay=config.weight_decay)
        stateful[f"{prefix}schedule"] = get_scheduler(
            config.lr_schedule, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps
        )
        stateful[f"{prefix}optimizer"] = accelerator.prepare_optimizer(optimizer)
    state = TrainState({name: dict(group) for name, group in adapters.items()}, stateful)
    if config.ema_decay:
        start_ema(state)
    return state, student, critic


def update(
    accelerator: Accelerator, optimizer: AcceleratedOptimizer, parameters: list[torch.nn.Parameter], max_norm: float
) -> dict[str, float]:
    """Averages gradients over processes, clips, steps, clears.

    Returns:
        `grad_norm` before clipping. Under fp16's loss scaling an overflow is how the scale is found: such a step is
        left out by the scaler, and counted as `overflow` instead of a norm.
    """
    accelerator.unscale_gradients(optimizer)
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")  # pyright: ignore
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_norm))
    scaled = accelerator.scaler is not None
    if scaled or math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"overflow": 1.0} if scaled and not math.isfinite(norm) else {"grad_norm": norm}


def refuse_divergence(
    logs: dict[str, float],
    overflows: int,
    config: TrainConfig,
    step: int,
    good: Path | None,
    accelerator: Accelerator,
) -> None:
    """Stops at the first number that is not finite, a gradient norm beyond the limit, or 20 overflows in a row."""
    odd = {name: value for name, value in logs.items() if not math.isfinite(value)}
    odd |= {n: v for n, v in logs.items() if n.endswith("grad_norm") and v > config.abort_grad_norm}
    if overflows >= 20:
        odd["fp16 overflows in a row"] = float(overflows)
    if odd:
        accelerator.end_training()
        numbers = ", ".join(f"{name} = {value:g}" for name, value in odd.items())
        raise DivergenceError(
            f"training diverged at step {step}: {numbers} (limit of gradient norms: {config.abort_grad_norm:g}). "
            f"Last good checkpoint: {good or 'none yet'}. Try a smaller --lr or --critic-lr, or a smaller gamma2."
        )


def _validate(
    backbone: Backbone, state: TrainState, config: TrainConfig, pairs: list[Any], output: Path, accelerator: Accelerator
) -> dict[str, float]:
    with averaged(state), accelerator.autocast():
        numbers, strip = validate(backbone, pairs)
        if state.best is None or numbers["psnr_y"] > state.best:
            state.best = numbers["psnr_y"]
            save_student(backbone, output / "best")
    with atomic_path(output / "validation" / f"step-{state.step:07d}.png") as path:
        Image.fromarray(strip.permute(1, 2, 0).numpy()).save(path)
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.writer.add_image("input, student, ground truth", strip, state.step)  # pyright: ignore
    return {f"val_{name}": value for name, value in numbers.items()}


def _log(accelerator: Accelerator, output: Path, logs: dict[str, float], step: int) -> None:
    accelerator.log(logs, step=step)
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, **logs}) + "\n")


def _cut_log(path: Path, step: int) -> None:
    """Drops what a killed run logged after the checkpoint that is being resumed."""
    if path.is_file():
        rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        write_text(path, "".join(f"{row}\n" for row in rows))


def _to_batch(item: dict[str, Tensor], device: torch.device) -> Batch:
    return Batch(item["lr_up"].to(device), item["hr"].to(device), item["index"].tolist())
