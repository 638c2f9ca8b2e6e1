"""`tsd train`: distil a base model into a one-step student, or tune its teacher first."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from tsd.config import RunConfig, TeacherConfig, TrainConfig
from tsd.console.imports import quantizers_of
from tsd.errors import UserError
from tsd.files import MEGAPIXELS_HELP, free_bytes, human_size, is_mini_model, mini_model_dir, require_function

if TYPE_CHECKING:
    from tsd.train.settings import RunSettings

DESCRIPTION = """\
Distils a base model into a one-step student by Algorithm 1 of the paper, or tunes the teacher
before that (--stage teacher).
"""
EPILOG = """\
examples:
  tsd train --preset mini --data photos/ --output run/ --val-data held-out/
  tsd train --data photos/ --val-data photos/ --output try/ --max-train-steps 50    a short trial
  tsd train --preset mini --data photos/ --output run/ --resume      continue after a kill; on
                                                                     the CPU, bit for bit
  tsd train --preset paper --model stable-diffusion-3-medium-diffusers/ --prompt-embeds prompts/ \\
            --data LSDIR/ DIV2K/ --output run/
  tsd train --preset paper --model … --data prepared/ --output run/  data that `tsd prepare` wrote
  tsd train --preset mini --data photos/ --output x --print-config   show every setting and stop
  tsd train --preset paper --model … --data … --output x --dry-run   check, plan memory, and stop
  tsd train --preset release --model stabilityai/stable-diffusion-3-medium-diffusers \\
            --dry-run                                                will it fit my GPU?
  tensorboard --logdir run/logs

start and prepared data:
  A mini model of the package goes on from its own student, of its ranks and with a tenth of the
  preset's learning rates, unless --init-lora, --from-scratch, --config or another rank says
  otherwise. With data that `tsd prepare` wrote, crop, sharpening and degradation are theirs where
  no flag says otherwise.

the teacher first (optional), then the student against it:
  tsd train --stage teacher --preset release --model … --data prepared/ --output tuned/
  tsd train --preset release --model … --data prepared/ --output run/ --teacher-lora tuned/teacher

several processes, by accelerate (--accelerate-configs prints the folder of its configurations):
  accelerate launch --config_file gpu-8x-ddp.yaml $(which tsd) train --preset paper …
                                                       DDP: every GPU holds base and adapters
  accelerate launch --config_file gpu-8x-fsdp.yaml $(which tsd) train --preset paper …
                                                       FSDP: base and adapters sharded
  accelerate launch --config_file gpu-8x-zero2.yaml $(which tsd) train --preset paper …
                                                       DeepSpeed ZeRO-2: optimiser state sharded
  accelerate launch --config_file cpu-2x.yaml $(which tsd) train --device cpu --preset mini …

on a cluster:
  --time-limit 23:45 stops cleanly in time; submit the same command with --resume until it is done.
  Ctrl-C and SIGTERM stop after the step in progress, with a checkpoint; the exit status is then 130
  or 143.

on one GPU of 24 GB:
  --batch-size 1 --gradient-accumulation 16 --gradient-checkpointing --optimizer adamw8bit
"""
CONTINUED_LR = 0.1
"""Share of the preset's learning rates for a run that goes on from the student of a mini model."""
VALIDATIONS = 5
"""Least number of validations of a run that is shorter than its preset."""
_RANKS = ("rank", "vae_rank")
"""The settings that a student's files fix."""
_NOT_FLAGS = ("steps",)  # --max-train-steps serves both stages
_SETTINGS_HELP = {
    "batch_size": "samples per process and micro-batch",
    "gradient_accumulation": "micro-batches per step",
    "crop": "side of the square target crops in pixels",
    "usm": "sharpen the targets",
    "rank": "rank of the denoiser's LoRA",
    "lr": "learning rate",
    "lr_schedule": "course of the learning rate",
    "warmup_steps": "steps until the learning rate is reached",
    "optimizer": "adamw8bit needs bitsandbytes and keeps a state of 2 instead of 8 bytes a parameter",
    "weight_decay": "weight decay of the optimizer",
    "max_grad_norm": "clip gradients to this norm",
    "posterior": "encode images as a sample of the encoder's distribution (sample), or as its mean (mode)",
    "seed": "seed of everything random",
    "mixed_precision": "precision of the computation",
    "base_dtype": "precision in which the frozen base is held",
    "gradient_checkpointing": "compute activations again in the backward pass: less memory, more time",
    "checkpoint_every": "steps between checkpoints",
    "validate_every": "steps between validations",
    "abort_grad_norm": "gradient norm above which the training counts as diverged",
    "degradation": "parameter set of the degradation",
    "degrade_anew": "degrade the crops of prepared data again at every visit, instead of reading the stored results",
    "vae_rank": "rank of the LoRA of the student's encoder",
    "critic_rank": "rank of the critic's LoRA",
    "critic_layers": "layers that the critic adapts: its attention, as released, or those that the student adapts",
    "critic_lr": "learning rate of the critic",
    "critic_warmup_steps": "first steps of the run, in which the critic alone is trained",
    "critic_steps": "updates of the critic for each of the student",
    "critic_ema_decay": "decay of the average of the critic that predicts inside the regularisation; 0: no average",
    "regularisation": "tsd (Eq. 5), or a gradient of your own: python:FILE.py:FUNCTION",
    "lambda_tsd": "λ of Eq. 5",
    "stride": "step s along the trajectory, in units of t",
    "random_bias": "move the end of the trajectory at random by up to s/2",
    "residual": "parameterisation in which Eq. 3–5 take differences",
    "weighting": "weight w(t) of the times",
    "guidance_scale": "classifier-free guidance of teacher and critic",
    "pixel_loss": "pixel term of Eq. 7",
    "ema_decay": "decay of the average of the student's weights that is saved and validated; 0: no average",
    "gain_every": "steps between measurements of the critic's gain over the teacher",
    "caption_dropout": "share of the samples whose caption is replaced by the null prompt",
    "t_density": "distribution of t; family: the one that the base was trained with",
}


def add_parser(verbs: Any) -> None:
    """Adds the verb; every scalar setting of either stage becomes a flag that overrides the preset."""
    parser = verbs.add_parser(
        "train",
        help="distil a base model into a one-step student (Algorithm 1)",
        usage="%(prog)s --data DIR [DIR ...] --output DIR [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--stage", choices=("student", "teacher"), default="student", help="what is trained (default: student)"
    )
    parser.add_argument(
        "--preset", choices=("paper", "release", "mini"), default="mini",
        help="which settings to start from (default: mini)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="start from the settings in a file instead: the config.json of a run of --stage student",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", type=Path, metavar="DIR", help="folders of high-quality images, or one prepared data set"
    )
    parser.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder")
    parser.add_argument(
        "--model", metavar="DIR", help="base model in diffusers layout, or hub id (default: the mini model)"
    )
    parser.add_argument(
        "--prompt-embeds", type=Path, metavar="DIR",
        help="folder with default/ and null/ prompts (default: those of the model folder)",
    )  # fmt: skip
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init-lora", type=Path, metavar="DIR", help="start from an existing student")
    start.add_argument(
        "--from-scratch", action="store_true", help="start with B = 0, also where the model carries a student"
    )
    parser.add_argument(
        "--teacher-lora", type=Path, metavar="DIR",
        help="LoRA folder of a tuned teacher (default: the base as it is)",
    )  # fmt: skip
    parser.add_argument(
        "--val-data", type=Path, metavar="DIR",
        help="held-out photographs on which the run is validated (default: no validation)",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    parser.add_argument(
        "--max-train-steps", type=int, metavar="N",
        help="shorten or lengthen all phases in proportion, to N steps in all",
    )  # fmt: skip
    parser.add_argument(
        "--stop-after", type=int, metavar="N", help="stop after step N with a checkpoint, to be resumed later"
    )
    parser.add_argument(
        "--time-limit", metavar="HH:MM", help="stop cleanly before this time is up (HH:MM[:SS], or minutes)"
    )
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="how many checkpoints to keep besides the best (default: 2)"
    )
    parser.add_argument(
        "--tracker", default="tensorboard", metavar="NAME",
        help="where losses are logged: tensorboard, wandb, … of accelerate, or none (default: tensorboard)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="data-loading processes; 0: the training process loads (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="where to train (default: auto, the GPU if there is one)",
    )  # fmt: skip
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything but the weights, plan the memory, and stop. Without --data only the memory is planned",
    )
    parser.add_argument(
        "--time", action="store_true",
        help="with --dry-run: also train a few steps of each phase, and say how long the run will take",
    )  # fmt: skip
    parser.add_argument(
        "--accelerate-configs", action="store_true", help="print the folder of ready launcher configurations and stop"
    )
    groups: dict[tuple[str, ...], argparse._ArgumentGroup] = {
        stages: parser.add_argument_group(title)
        for stages, title in (
            (("student", "teacher"), "settings (default: those of the preset; --print-config shows them)"),
            (("student",), "settings of --stage student"),
            (("teacher",), "settings of --stage teacher"),
        )
    }
    for name, (convert, choices, stages) in _flags().items():
        flag, text = f"--{name.replace('_', '-')}", _SETTINGS_HELP[name]
        if convert is bool:
            groups[stages].add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            metavar = None if choices else "N" if convert is int else "VALUE"
            groups[stages].add_argument(flag, type=convert, choices=choices, default=None, metavar=metavar, help=text)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns the exit status.

    0: done, or stopped where --stop-after or --time-limit said; 1: diverged (the last good checkpoint is kept and
    named); 130 and 143: stopped by Ctrl-C and SIGTERM, with a checkpoint.
    """
    if args.accelerate_configs:
        print(Path(__file__).parents[1] / "assets" / "accelerate")
        return 0

    config = resolve_config(args)
    if args.print_config:
        print(config.to_json())
        return 0
    if not args.dry_run and not (args.data and args.output):
        raise UserError("--data DIR... and --output DIR are needed (or --print-config, --dry-run)")
    if args.time and not (args.dry_run and args.data):
        raise UserError("--time belongs to --dry-run with --data DIR...")
    settings = resolve_settings(args)
    if settings.data:
        from tsd.train.paths import check_paths

        check_paths(settings, config)
    if isinstance(config, TrainConfig) and config.own_regularisation is not None:
        require_function(*config.own_regularisation, "point", "w", "config")
    if _is_main_process():
        _print_settings(args, config, settings)
    with quantizers_of(config.optimizer):
        return _work(args, settings, config)


def _work(args: argparse.Namespace, settings: "RunSettings", config: TrainConfig | TeacherConfig) -> int:
    """What needs torch: the dry run, or the training; returns the exit status of `run`."""
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda, but this machine has no CUDA device; leave it out or give --device cpu")
    if args.dry_run:
        return dry_run(settings, config, timed=args.time)
    from tsd.train.optim import DivergenceError
    from tsd.train.stopping import EXIT_STATUS

    try:
        if isinstance(config, TrainConfig):
            from tsd.train.student import train

            finished = train(settings, config)
            folder = finished.lora
            base = f"--model {args.model} " if args.model is not None else ""
            done = f"student written to {folder}; try: tsd restore photo.png -o out/ {base}--lora {folder}"
        else:
            from tsd.train.teacher import train_teacher

            finished = train_teacher(settings, config)
            folder = finished.lora
            done = f"teacher written to {folder}; distil against it with: tsd train --teacher-lora {folder} …"
    except DivergenceError as error:
        print(f"tsd train: {error}", file=sys.stderr)
        return 1
    if finished.step < finished.total_steps:
        by = finished.stopped_by or "--stop-after"
        done = (
            f"stopped at step {finished.step} of {finished.total_steps}, continue with --resume ({by}; the weights so "
            f"far are in {folder})"
        )
    if _is_main_process():
        print(done)
    return EXIT_STATUS.get(finished.stopped_by or "", 0)


def resolve_config(args: argparse.Namespace) -> TrainConfig | TeacherConfig:
    """Takes the stage's preset, or the file with settings, and overrides it with the flags.

    Where neither says otherwise, prepared data bring their own crop, sharpening and degradation, and a run that goes on
    from the student of a mini model has its ranks and a tenth of the preset's learning rates.

    Raises:
        UserError: a flag of the other stage, an impossible value, or a file without settings of a distillation.
    """

    from tsd.presets import PRESETS, TEACHER_PRESETS

    config = (PRESETS if args.stage == "student" else TEACHER_PRESETS)[args.preset]
    if args.config is not None and args.stage == "student":
        config = _config_of(args.config)
    overrides = {name: getattr(args, name) for name in _flags() if getattr(args, name) is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in overrides if args.stage not in _flags()[name][2]]
    if args.stage == "teacher":
        foreign += [
            flag for flag in ("--init-lora", "--teacher-lora", "--config") if getattr(args, flag[2:].replace("-", "_"))
        ]
    if foreign:
        raise UserError(f"{', '.join(foreign)}: not a setting of --stage {args.stage}")
    if args.config is None:
        overrides = _of_prepared(args, config) | overrides
        if args.init_lora is None and (student := own_student(args)) is not None:
            overrides |= dict(zip(_RANKS, _ranks(student), strict=True))
            if args.preset == "mini":
                names = [name for name in ("lr", "critic_lr") if name not in overrides]
                overrides |= {name: getattr(config, name) * CONTINUED_LR for name in names}
    config = dataclasses.replace(config, **overrides)
    if args.max_train_steps is None:
        return config
    if args.validate_every is None:  # a short run too shows whether it makes progress
        most = max(args.max_train_steps // VALIDATIONS, 1)
        config = dataclasses.replace(config, validate_every=min(config.validate_every, most))
    return config.scaled_to(args.max_train_steps)


def _of_prepared(args: argparse.Namespace, config: RunConfig) -> dict[str, Any]:
    """The settings of the data that `tsd prepare` wrote, as far as the training's settings have them."""
    from tsd.data.prepared_record import is_prepared, read_record

    prepared = next((folder for folder in args.data or () if is_prepared(folder)), None)
    if prepared is None:
        return {}
    stored = read_record(prepared)["settings"]
    theirs = {"crop": stored["crop"], "usm": stored["usm"]}
    if isinstance(config, TrainConfig) and stored["degradation"]["name"] in ("full", "light"):
        theirs["degradation"] = stored["degradation"]["name"]
    return theirs


def own_student(args: argparse.Namespace) -> Path | None:
    """The student to go on from where nothing else is said: that of a mini model of the package.

    None for any other model, for other ranks, and for a run to be resumed that began without one.
    """
    from tsd.restore.student import STUDENT_FOLDER

    model = mini_model_dir() if args.model is None else Path(args.model).expanduser()
    student = model / STUDENT_FOLDER
    shipped = student.is_dir() and is_mini_model(model)
    if not shipped or args.stage != "student" or args.from_scratch or args.config is not None:
        return None
    if args.resume and args.output is not None:
        from tsd.train.checkpoint import checkpoint_folder, latest, recorded

        newest = latest(checkpoint_folder(args.output))
        if newest is not None and recorded(newest).get("init_lora") is None:
            return None
    asked = [getattr(args, name) for name in _RANKS]
    return student if all(rank in (None, own) for rank, own in zip(asked, _ranks(student), strict=True)) else None


def _ranks(student: Path) -> list[int]:
    """The ranks of a student's two files, the denoiser's first, from their headers."""
    from safetensors import safe_open

    from tsd.model.loading import FAMILIES

    denoiser = next(
        file for family in FAMILIES.values() if (file := student / f"{family.denoiser_folder}.safetensors").is_file()
    )
    ranks = []
    for path in (denoiser, student / "vae.safetensors"):
        with safe_open(path, framework="numpy") as file:
            name = next(key for key in file.keys() if key.endswith(".lora_A.weight"))  # noqa: SIM118
            ranks.append(file.get_slice(name).get_shape()[0])
    return ranks


def _print_settings(args: argparse.Namespace, config: RunConfig, settings: "RunSettings") -> None:
    """Prints how the run's settings differ from those of the preset or the file that it starts from."""
    from tsd.presets import PRESETS, TEACHER_PRESETS

    if args.config is not None:
        base, name = _config_of(args.config), f"--config {args.config}"
    else:
        base, name = (PRESETS if args.stage == "student" else TEACHER_PRESETS)[args.preset], f"preset {args.preset}"
    changes = differences(config, base)
    print(f"{name}{', but with' if changes else ''} (--print-config shows every setting)")
    for setting, (now, before) in changes.items():
        print(f"  {setting:<24}{now}   ({before})")
    if settings.init_lora is not None:
        own = " (--from-scratch: none)" if args.init_lora is None else ""
        print(f"  {'starts from':<24}the student in {settings.init_lora}{own}")


def differences(config: RunConfig, base: RunConfig) -> dict[str, tuple[str, str]]:
    """The settings in which two configurations differ, by name, with both values."""
    found = {}
    for field in dataclasses.fields(config):
        now, before = getattr(config, field.name), getattr(base, field.name)
        if now != before and field.name == "phases":
            found["steps of the phases"] = tuple(" + ".join(str(p.steps) for p in phases) for phases in (now, before))
            terms = [[dataclasses.replace(p, steps=0) for p in phases] for phases in (now, before)]
            if terms[0] != terms[1]:
                found["terms of the phases"] = ("other", "see --print-config")
        elif now != before:
            found[field.name] = (str(now), str(before))
    return found


def _config_of(path: Path) -> TrainConfig:
    """The settings of a distillation in a file, as a run writes them.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or "phases" not in values:
            raise UserError(f"--config {path} holds no settings of a distillation; expected a run's config.json")
        return TrainConfig.from_dict(values)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}; expected a run's config.json") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--config {path} is no run's config.json: {error}") from error


def resolve_settings(args: argparse.Namespace) -> "RunSettings":
    """Reads from the flags the paths of the run and how it is carried out.

    Raises:
        UserError: an impossible value.
    """
    from tsd.train.settings import RunSettings
    from tsd.train.stopping import seconds_from_text

    return RunSettings(
        model=args.model if args.model is not None else mini_model_dir(),
        data=args.data or (),
        output=args.output,
        resume=args.resume,
        init_lora=args.init_lora if args.init_lora is not None else own_student(args),
        teacher_lora=args.teacher_lora,
        prompt_embeds=args.prompt_embeds,
        val_data=args.val_data,
        workers=args.workers,
        stop_after=args.stop_after,
        time_limit_seconds=seconds_from_text(args.time_limit) if args.time_limit is not None else None,
        keep=args.keep,
        tracker=args.tracker,
        cpu=args.device == "cpu",
    )


def dry_run(settings: "RunSettings", config: RunConfig, *, timed: bool = False) -> int:
    """Prints everything that can be checked without weights, disk and memory, and with `timed` the duration; returns 0.

    Without data nothing is checked: the plan needs only the model's configuration, which is built in for SD3-medium.
    """
    from tsd.train.preflight import check_run

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not settings.data:
        _print_plan(settings.model, config, processes, settings)
        return 0
    checked = check_run(settings, config, processes)
    if not _is_main_process():
        return 0
    if isinstance(config, TrainConfig):
        from tsd.algorithm.pixel_loss import load_pixel_loss
        from tsd.train.student import load_pairs

        if config.has_pixel_loss:
            load_pixel_loss(config.pixel_loss, "cpu")
        load_pairs(settings.val_data, config)
    print("\n".join(checked.summary))
    _print_plan(checked.folder, config, processes, settings)
    if timed:
        from tsd.train.timed import timed_steps

        print(timed_steps(settings, config).to_text())
    return 0


def _print_plan(model: str | Path, config: RunConfig, processes: int, settings: "RunSettings") -> None:
    """Prints the memory of a step, by this run's own batch first, and the disk that checkpoints take."""
    if not _is_main_process():
        return
    if not isinstance(config, TrainConfig):
        print("memory: the teacher's stage has no plan of its own; it needs less than distilling at that batch size")
        return
    from tsd.memory.plan import memory_plan

    batches = sorted({1, config.batch_size, 2 * config.batch_size})
    plan = memory_plan(model, config, processes=processes, batch_sizes=batches)
    print(f"memory: {plan.verdict(config.batch_size, config.gradient_checkpointing)}; other batches are below")
    size, place = plan.checkpoint_bytes, Path(settings.output or ".")
    print(
        f"disk: {human_size((settings.keep + 1) * size)}, {human_size(size)} for each of {settings.keep} checkpoints "
        f"(--keep) and the best one; {human_size(free_bytes(place))} are free"
    )
    print(plan.to_text())


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _flags() -> dict[str, tuple[Any, tuple[str, ...] | None, tuple[str, ...]]]:
    """For every setting of one value: its converter, its choices, and the stages that have it."""

    flags: dict[str, tuple[Any, tuple[str, ...] | None, tuple[str, ...]]] = {}
    for stage, config in (("student", TrainConfig), ("teacher", TeacherConfig)):
        for name, hint in get_type_hints(config).items():
            stages = (*flags[name][2], stage) if name in flags else (stage,)
            if name in _NOT_FLAGS:
                continue
            if get_origin(hint) is Literal:
                flags[name] = (str, get_args(hint), stages)
            elif hint in (int, float, str, bool):
                flags[name] = (hint, None, stages)
    return flags
