"""`tsd train`: distil a base model into a one-step student."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

EPILOG = """\
examples:
  tsd train --preset mini --data photos/ --output run/ --val-data held-out/
  tsd train --preset mini --data photos/ --output run/ --resume          continue after a kill, bit for bit on the CPU
  tsd train --preset paper --model stable-diffusion-3-medium-diffusers/ --prompt-embeds prompts/ \\
            --data LSDIR/ DIV2K/ --output run/
  tsd train --preset mini --data photos/ --output x --print-config       show every setting and stop
  tensorboard --logdir run/logs
"""


def add_parser(verbs: Any) -> None:
    """Adds the verb; every scalar field of `TrainConfig` becomes a flag that overrides the preset."""
    parser = verbs.add_parser(
        "train",
        help="distil a base model into a one-step student (Algorithm 1)",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=("paper", "release", "mini"), default="mini", help="default: mini")
    parser.add_argument("--data", nargs="+", type=Path, metavar="DIR", help="folders of high-quality images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder")
    parser.add_argument(
        "--model", metavar="DIR", help="base model in diffusers layout, or hub id (default: mini model)"
    )
    parser.add_argument("--prompt-embeds", type=Path, metavar="DIR", help="folder with default/ and null/ prompts")
    parser.add_argument("--init-lora", type=Path, metavar="DIR", help="start from an existing student")
    parser.add_argument("--val-data", type=Path, metavar="DIR", help="held-out photographs, validated as it goes")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    parser.add_argument("--max-train-steps", type=int, metavar="N", help="scale all phases to N steps in all")
    parser.add_argument("--stop-after", type=int, metavar="N", help="stop cleanly after step N, to be resumed")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="data-loading processes (default 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    group = parser.add_argument_group("settings (default: the preset's)")
    for name, convert, choices in _scalar_fields():
        flag = f"--{name.replace('_', '-')}"
        if convert is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        else:
            group.add_argument(flag, type=convert, choices=choices, default=None, metavar=None if choices else "X")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0, or 1 where training diverged (the last good checkpoint is kept and named)."""
    from tsd.backbone import mini_model_dir
    from tsd.config import PRESETS
    from tsd.errors import UserError

    config = PRESETS[args.preset]
    overrides = {name: getattr(args, name) for name, _, _ in _scalar_fields() if getattr(args, name) is not None}
    config = dataclasses.replace(config, **overrides)
    if args.max_train_steps is not None:
        config = config.scaled_to(args.max_train_steps)
    print(config.to_json())
    if args.print_config:
        return 0
    if not args.data or args.output is None:
        raise UserError("--data DIR... and --output DIR are needed (or --print-config)")
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError("--device cuda, but this machine has no CUDA device; leave it out or give --device cpu")
    from tsd.train import DivergenceError, train

    try:
        student = train(
            args.model if args.model is not None else mini_model_dir(),
            args.data,
            args.output,
            config,
            resume=args.resume,
            init_lora=args.init_lora,
            prompt_embeds=args.prompt_embeds,
            val_data=args.val_data,
            workers=args.workers,
            stop_after=args.stop_after,
            cpu=args.device == "cpu",
        )
    except DivergenceError as error:
        print(f"tsd train: {error}", file=sys.stderr)
        return 1
    print(f"student written to {student}; try: tsd restore photo.png -o out/ --lora {student}")
    return 0


def _scalar_fields() -> list[tuple[str, Any, tuple[str, ...] | None]]:
    """(name, converter, choices) of every field of `TrainConfig` that is one value."""
    from tsd.config import TrainConfig

    fields: list[tuple[str, Any, tuple[str, ...] | None]] = []
    for name, hint in get_type_hints(TrainConfig).items():
        if get_origin(hint) is Literal:
            fields.append((name, str, get_args(hint)))
        elif hint in (int, float, str, bool):
            fields.append((name, hint, None))
    return fields
