"""`tsd distill-decoder`: a small decoder that follows the one of a model, for `tsd restore --decoder`."""

import argparse
from dataclasses import fields
from pathlib import Path

DESCRIPTION = """\
Trains a small decoder (diffusers' AutoencoderTiny) to give the images that a model's frozen decoder
gives, on photographs of your own. tsd restore --decoder then decodes with it: faster, and only
nearly the same image. Without --model it is for the mini model shipped in the package.
"""
EPILOG = """\
examples:
  tsd distill-decoder photos/ --output small/            for tsd restore --decoder small/decoder
  tsd distill-decoder photos/ --output small/ --resume   continue after an interruption
  tsd distill-decoder photos/ --output small/ --model sd3/ --crop 256 --device cuda
  tsd distill-decoder photos/ --output small/ --width 32 --pool 1536 --mixed-precision bf16 \\
                      --crop 64                          minutes on a CPU, as the mini's
"""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = verbs.add_parser(
        "distill-decoder",
        help="train a small, fast decoder that follows a model's own",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", nargs="+", type=Path, metavar="DATA", help="photographs: files or folders")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint in --output")
    parser.add_argument("--model", metavar="DIR", help="model folder or hub id (default: the mini model)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to train (default: cpu)")
    settings = parser.add_argument_group("settings")
    for name, kind, text in (
        ("steps", int, "optimiser steps (default: 5000)"),
        ("batch-size", int, "crops per step (default: 8)"),
        ("crop", int, "side of the crops in pixels (default: 128)"),
        ("width", int, "channels of the decoder (default: 64)"),
        ("blocks", int, "residual blocks at each size (default: 3)"),
        ("lr", float, "peak learning rate (default: 0.001)"),
        ("pool", int, "decode so many crops once and draw from them (default: 0, new crops at every step)"),
        ("seed", int, "seed of crops and initial weights (default: 0)"),
        ("checkpoint-every", int, "steps between checkpoints (default: 200)"),
    ):
        settings.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=text)
    settings.add_argument("--mixed-precision", choices=("no", "bf16"), help="of the small decoder (default: no)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Trains; returns 0, or 130 and 143 if Ctrl-C and SIGTERM stopped it."""
    from tsd.config import DecoderConfig
    from tsd.errors import UserError
    from tsd.files import mini_model_dir, require_writable
    from tsd.model.loading import resolve_model
    from tsd.train.paths import newest_checkpoint
    from tsd.train.stopping import EXIT_STATUS

    given = {field.name: getattr(args, field.name) for field in fields(DecoderConfig)}
    config = DecoderConfig(**{name: value for name, value in given.items() if value is not None})
    model = resolve_model(args.model or mini_model_dir())
    if missing := [path for path in args.data if not path.exists()]:
        raise UserError(f"no such file or folder: {missing[0]}")
    newest_checkpoint(args.output, resume=args.resume)
    require_writable(args.output)
    from tsd.train.decoder import distill_decoder

    done = distill_decoder(model, args.data, args.output, config, device=args.device, resume=args.resume)
    if done.folder is None:
        print(f"stopped after step {done.step} of {config.steps}; the same command with --resume continues")
        return EXIT_STATUS[done.stopped_by or "SIGTERM"]
    print(f"{done.folder}: {done.psnr:.2f} dB from the frozen decoder; try: tsd restore a.png --decoder {done.folder}")
    return 0
