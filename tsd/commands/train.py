"""`tsd train`: distil a base model into a one-step student, or tune its teacher first."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tsd.config import RunConfig, TeacherConfig, TrainConfig
from tsd.errors import UserError
from tsd.files import mini_model_dir
from tsd.presets import PRESETS, TEACHER_PRESETS
from tsd.train.settings import RunSettings
from tsd.train.stopping import seconds_from_text

EPILOG = """\
examples:
  tsd train --preset mini --data photos/ --output run/ --val-data held-out/
  tsd train --preset mini --data photos/ --output run/ --resume          continue after a kill, bit for bit on the CPU
  tsd train --preset paper --model stable-diffusion-3-medium-diffusers/ --prompt-embeds prompts/ \\
            --data LSDIR/ DIV2K/ --output run/
  tsd train --preset paper --model … --data prepared/ --output run/      what `tsd prepare` wrote: captions, latents
  tsd train --preset mini --data photos/ --output x --print-config       show every setting and stop
  tsd train --preset paper --model … --data … --output x --dry-run       check everything, plan memory, and stop
  tsd train --preset release --model stabilityai/stable-diffusion-3-medium-diffusers --dry-run      will it fit my card?
  tensorboard --logdir run/logs

the teacher first (optional), then the student against it:
  tsd train --stage teacher --preset release --model … --data prepared/ --output tuned/
  tsd train --preset release --model … --data prepared/ --output run/ --teacher-lora tuned/teacher

several processes, by accelerate (its configuration files are in the folder that --accelerate-configs prints):
  accelerate launch --config_file gpu-8x-ddp.yaml $(which tsd) train --preset paper …
  accelerate launch --config_file gpu-8x-fsdp.yaml $(which tsd) train --preset paper …      base and adapters sharded
  accelerate launch --config_file gpu-8x-zero2.yaml $(which tsd) train --preset paper …     DeepSpeed, moments divided
  accelerate launch --config_file cpu-2x.yaml $(which tsd) train --device cpu --preset mini …
on a cluster: --time-limit 23:45 stops cleanly in time; submit the same command with --resume until it is done.
one card of 24 GB: --batch-size 1 --gradient-accumulation 16 --gradient-checkpointing --optimizer adamw8bit
"""
_NOT_FLAGS = ("steps",)  # --max-train-steps serves both stages


def add_parser(verbs: Any) -> None:
    """Adds the verb; every scalar setting of either stage becomes a flag that overrides the preset."""
    parser = verbs.add_parser(
        "train",
        help="distil a base model into a one-step student (Algorithm 1)",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=("student", "teacher"), default="student", help="default: student")
    parser.add_argument("--preset", choices=("paper", "release", "mini"), default="mini", help="default: mini")
    parser.add_argument(
        "--data", nargs="+", type=Path, metavar="DIR", help="folders of high-quality images, or one prepared data set"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder")
    parser.add_argument(
        "--model", metavar="DIR", help="base model in diffusers layout, or hub id (default: mini model)"
    )
    parser.add_argument("--prompt-embeds", type=Path, metavar="DIR", help="folder with default/ and null/ prompts")
    parser.add_argument("--init-lora", type=Path, metavar="DIR", help="start from an existing student")
    parser.add_argument("--teacher-lora", type=Path, metavar="DIR", help="the tuned teacher (default: the bare base)")
    parser.add_argument("--val-data", type=Path, metavar="DIR", help="held-out photographs, validated as it goes")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    parser.add_argument("--max-train-steps", type=int, metavar="N", help="scale all phases to N steps in all")
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop cleanly after step N, to be resumed")
    parser.add_argument(
        "--time-limit", metavar="HH:MM", help="stop cleanly before this time is up (HH:MM[:SS], or minutes)"
    )
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="checkpoints to keep besides the best (default 2)"
    )
    parser.add_argument(
        "--tracker", default="tensorboard", metavar="NAME", help="tensorboard (default), wandb, …, or none"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data-loading processes (default 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything but the weights, plan memory, stop; without --data, plan memory only",
    )
    parser.add_argument(
        "--accelerate-configs", action="store_true", help="print the folder of ready launcher configurations and stop"
    )
    group = parser.add_argument_group("settings (default: the preset's)")
    for name, (convert, choices, _) in _flags().items():
        flag = f"--{name.replace('_', '-')}"
        if convert is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            group.add_argument(flag, type=convert, choices=choices, default=None, metavar=None if choices else "X")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0, or 1 where training diverged (the last good checkpoint is kept and named)."""
    if args.accelerate_configs:
        print(Path(__file__).parents[1] / "assets" / "accelerate")
        return 0

    config = resolve_config(args)
    if _is_main_process():
        print(config.to_json())
    if args.print_config:
        return 0
    if not args.data and not args.dry_run:
        raise UserError("--data DIR... and --output DIR are needed (or --print-config, --dry-run)")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda, but this machine has no CUDA device; leave it out or give --device cpu")
    settings = resolve_settings(args)
    if args.dry_run:
        return dry_run(settings, config)
    from tsd.train.optim import DivergenceError

    try:
        if isinstance(config, TrainConfig):
            from tsd.train.student import train

            folder = train(settings, config).lora
            base = f"--model {args.model} " if args.model is not None else ""
            done = f"student written to {folder}; try: tsd restore photo.png -o out/ {base}--lora {folder}"
        else:
            from tsd.train.teacher import train_teacher

            folder = train_teacher(settings, config).lora
            done = f"teacher written to {folder}; distil against it with: tsd train --teacher-lora {folder} …"
    except DivergenceError as error:
        print(f"tsd train: {error}", file=sys.stderr)
        return 1
    if _is_main_process():
        print(done)
    return 0


def resolve_config(args: argparse.Namespace) -> TrainConfig | TeacherConfig:
    """The preset of the stage with the flags' overrides.

    Raises:
        UserError: a flag of the other stage, or an impossible value.
    """

    config = (PRESETS if args.stage == "student" else TEACHER_PRESETS)[args.preset]
    overrides = {name: getattr(args, name) for name in _flags() if getattr(args, name) is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in overrides if args.stage not in _flags()[name][2]]
    if args.stage == "teacher":
        foreign += [flag for flag in ("--init-lora", "--teacher-lora") if getattr(args, flag[2:].replace("-", "_"))]
    if foreign:
        raise UserError(f"{', '.join(foreign)}: not a setting of --stage {args.stage}")
    config = dataclasses.replace(config, **overrides)
    return config if args.max_train_steps is None else config.scaled_to(args.max_train_steps)


def resolve_settings(args: argparse.Namespace) -> RunSettings:
    """Where the run reads and writes, and how it is carried out, by the flags.

    Raises:
        UserError: an impossible value.
    """

    return RunSettings(
        model=args.model if args.model is not None else mini_model_dir(),
        data=args.data or (),
        output=args.output,
        resume=args.resume,
        init_lora=args.init_lora,
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


def dry_run(settings: RunSettings, config: RunConfig) -> int:
    """Everything that can be checked without weights, and the memory plan; prints and returns 0.

    Without data nothing is checked: the plan needs but the model's configuration, which for SD3-medium is built in.
    """
    import os

    from tsd.train.preflight import check_run

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not settings.data:
        _print_plan(settings.model, config, processes)
        return 0
    checked = check_run(settings, config, processes)
    if not _is_main_process():
        return 0
    if isinstance(config, TrainConfig):
        from tsd.algorithm.pixel_loss import load_pixel_loss
        from tsd.train.student import load_pairs

        load_pixel_loss(config.pixel_loss, "cpu")
        load_pairs(settings.val_data, config)
    print("\n".join(checked.summary))
    _print_plan(checked.folder, config, processes)
    return 0


def _print_plan(model: str | Path, config: RunConfig, processes: int) -> None:
    if not _is_main_process():
        return
    if not isinstance(config, TrainConfig):
        print("memory: the teacher's stage has no plan of its own; it needs less than distilling at that batch size")
        return
    from tsd.memory.plan import memory_plan

    print(memory_plan(model, config, processes=processes).to_text())


def _is_main_process() -> bool:
    import os

    return os.environ.get("RANK", "0") == "0"


def _flags() -> dict[str, tuple[Any, tuple[str, ...] | None, tuple[str, ...]]]:
    """Every setting that is one value: its converter, its choices, and the stages that have it."""

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
