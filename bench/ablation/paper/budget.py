"""What the arms will take, planned without weights: memory, GPU hours, and the command that trains each alone."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.ablation.cells import write_json
from bench.ablation.experiment import Arm, Experiment
from bench.ablation.paper.files import Files
from bench.ablation.paper.settings import config_of, default_settings
from tsd.config import Phase, TrainConfig

if TYPE_CHECKING:
    from tsd.memory.flops import SampleFlops
    from tsd.memory.table import MemoryPlan

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12}
"""Dense fp16 and bf16 matrix products by the vendor's data sheets, FLOPs a second."""
SHARE = 0.35
"""The share of the peak that training is taken to reach."""
GPUS, LAUNCHER, LAUNCHER_ALONE = 8, "gpu-8x-ddp.yaml", "gpu-1x-80gb.yaml"
NEUTRAL = {"seed": 0, "lr": 1e-6, "critic_lr": 1e-6, "stride": 1.0, "residual": "epsilon", "weighting": "sigma2"}
"""Settings that change neither memory nor the FLOPs of a pass."""
ANY_PHASE = Phase(steps=1, latent_mse=1.0, gamma2=1.0, point_weights=(1.0,))


@dataclass(frozen=True)
class ArmBudget:
    """One arm with one seed.

    Attributes:
        config: its run.
        student: the finished student that replaces the training; then the rest is None.
        flops: of one sample over all steps; times the global batch it is the run's.
        plan: memory of one process at the run's batch size, with and without gradient checkpointing.
    """

    arm: Arm
    config: TrainConfig
    student: Path | None = None
    flops: "SampleFlops | None" = None
    plan: "MemoryPlan | None" = None

    @property
    def total_flops(self) -> float:
        """Of the whole run; 0 without training."""
        return 0.0 if self.flops is None else self.flops.total * self.config.global_batch(1)

    def gpu_hours(self, gpu: str) -> float:
        return self.total_flops / (PEAK_FLOPS[gpu] * SHARE) / 3600


def arm_budgets(experiment: Experiment, arms: Sequence[Arm], files: Files, seed: int) -> list[ArmBudget]:
    """The budgets of the arms; takes a minute or two for SD3-medium, most of it once for all arms.

    Raises:
        UserError: the configuration of the base is neither on disk nor known.
    """
    from tsd.memory.flops import FlopCounter
    from tsd.memory.plan import memory_plan

    model = files.planned_model()
    counters: dict[TrainConfig, FlopCounter] = {}
    plans: dict[TrainConfig, MemoryPlan] = {}
    found = []
    for arm in arms:
        config = config_of(default_settings() | experiment.overrides(arm), seed)
        student = files.student(arm.name)
        if student is not None:
            found.append(ArmBudget(arm, config, student))
            continue
        # λ strictly inside (0, 1) needs every prediction: the most memory, and the same for all arms.
        shape = dataclasses.replace(config, **NEUTRAL, phases=(ANY_PHASE,), lambda_tsd=0.5, regularisation="tsd")
        if shape not in plans:
            checkpointing = (True,) if config.gradient_checkpointing else (False, True)
            plans[shape] = memory_plan(model, shape, batch_sizes=(config.batch_size,), checkpointing=checkpointing)
            counters[shape] = FlopCounter(model, shape)
        found.append(ArmBudget(arm, config, None, counters[shape].run(config), plans[shape]))
    return found


def to_text(budgets: Sequence[ArmBudget], commands: Mapping[str, str], model: str, seeds: int) -> str:
    """The table of GPU hours with what it assumes, the memory, and the commands."""
    from tabulate import tabulate

    from tsd.memory.table import GPU_GIB, gib

    trained = [budget for budget in budgets if budget.flops is not None]
    rows = []
    for budget in budgets:
        name, steps = budget.arm.name, budget.config.total_steps
        if budget.flops is None:
            rows.append([name, f"{steps:,}", "finished student", *[""] * 3, *["0"] * (1 + len(PEAK_FLOPS))])
            continue
        a_step = budget.flops.times(1e-12 / steps)
        parts = [f"{part:.2f}" for part in (a_step.data, a_step.trajectory, a_step.critic)]
        hours = [f"{budget.gpu_hours(gpu):,.4g}" for gpu in PEAK_FLOPS]
        total = f"{budget.total_flops:.3g}"
        rows.append([name, f"{steps:,}", str(budget.config.global_batch(1)), *parts, total, *hours])
    headers = [
        "arm",
        "steps",
        "samples a step",
        "data",
        "trajectory",
        "critic",
        "FLOP",
        *(f"{g} h" for g in PEAK_FLOPS),
    ]
    peaks = ", ".join(f"{gpu} {peak / 1e12:.0f}" for gpu, peak in PEAK_FLOPS.items())
    lines = [
        f"Estimate for {model}, nothing of it measured: GPU hours of one seed of each arm",
        "",
        tabulate(
            rows, headers, tablefmt="plain", disable_numparse=True, colalign=["left", *["right"] * (len(headers) - 1)]
        ),
        "",
        "data, trajectory, critic: TFLOP a sample and step, averaged over the run: the student's encoder, step and "
        "decoder forward and backward; teacher and critic with guidance at every point; the critic's turn.",
        f"It assumes that training reaches {100 * SHARE:.0f} % of a GPU's peak ({peaks} TFLOP/s in dense fp16). FLOPs "
        "are counted on tensors without data: matrix products, convolutions, attention.",
        "Every point of a trajectory is counted, also those that samples leave out because they would lie below t = 0: "
        "an upper bound that grows with N and is the same for every s.",
        "Not counted: LPIPS' own network, the optimiser, reading data, and restoring and scoring the test sets.",
    ]
    if trained:
        hours = {gpu: seeds * sum(budget.gpu_hours(gpu) for budget in trained) for gpu in PEAK_FLOPS}
        together = ", ".join(f"{gpu} {value:,.4g}" for gpu, value in hours.items())
        lines += [
            "",
            f"Together, {len(trained)} arms × {seeds} seed{'s' if seeds > 1 else ''}: {together} GPU hours.",
            "",
        ]
        lines.append("Memory of one process (GPU), planned by the same means; weights, optimiser and reserve included")
        memory = []
        for budget in trained:
            assert budget.plan is not None
            for it in budget.plan.iterations:
                fits = ["fits" if budget.plan.fits(it, gpu) else "no" for gpu in GPU_GIB]
                checkpointing = "yes" if it.checkpointing else "no"
                memory.append([budget.arm.name, str(it.batch), checkpointing, gib(budget.plan.total(it)), *fits])
        heads = ["arm", "batch", "checkpointing", "total", *(f"{gpu} GiB" for gpu in GPU_GIB)]
        lines.append(tabulate(memory, heads, tablefmt="plain", disable_numparse=True))
        lines += [
            "",
            "Each arm alone, on several GPUs, with its settings in the file that --config names; then come back with "
            "--student ARM=DIR/student:",
        ]
        lines += [command for name, command in commands.items() if name in {budget.arm.name for budget in trained}]
    return "\n".join(lines) + "\n"


def write_commands(budgets: Sequence[ArmBudget], files: Files, out: Path) -> dict[str, str]:
    """Writes the settings of each arm to be trained to `out`/configs; returns the commands that train with them."""
    commands = {}
    for budget in budgets:
        if budget.flops is None:
            continue
        path = out / "configs" / f"{budget.arm.name}.json"
        write_json(path, dataclasses.asdict(budget.config))
        commands[budget.arm.name] = launch_command(budget, files, path, out / "trained" / budget.arm.name)
    return commands


def launch_command(budget: ArmBudget, files: Files, config: Path, output: Path) -> str:
    """The command that trains an arm by `tsd train` with the same global batch: on eight GPUs where it divides."""
    wanted, batch = budget.config.global_batch(1), budget.config.batch_size
    divides = wanted % (GPUS * batch) == 0
    launcher = LAUNCHER if divides else LAUNCHER_ALONE
    accumulation = wanted // (GPUS * batch) if divides else budget.config.gradient_accumulation
    words = ["--config", str(config), *_paths(files), "--output", str(output), "--resume"]
    words += ["--gradient-accumulation", str(accumulation)]
    return (
        f'accelerate launch --config_file "$(tsd train --accelerate-configs)/{launcher}" $(which tsd) train '
        f"{shlex.join(words)}"
    )


def _paths(files: Files) -> Iterator[str]:
    yield from ("--model", files.model or str(files.model_folder()))
    yield from ("--data", str(files.data or "DATA"))
    if files.prompt_embeds is not None:
        yield from ("--prompt-embeds", str(files.prompt_embeds))
    if files.teacher_lora is not None:
        yield from ("--teacher-lora", str(files.teacher_lora))
