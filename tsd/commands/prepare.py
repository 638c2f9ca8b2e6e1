"""`tsd prepare`: crops, degraded crops, captions, embeddings and latents, made once before training."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsd.console.imports import QUANTIZERS, without
from tsd.errors import UserError
from tsd.files import MEGAPIXELS_HELP, free_bytes, human_size, is_mini_model, mini_model_dir, require_writable
from tsd.precision import PRECISIONS

if TYPE_CHECKING:
    from tsd.data.sources import FolderSource, Source

DESCRIPTION = """\
Makes a training set ahead of training: square crops of good images, their degraded versions,
captions with their embeddings, and the targets' latents (mean and log variance, from which
training samples). Training then encodes no targets and reads no text. The result is one data set
of Hugging Face `datasets` (Arrow) with its settings recorded in prepared.json.
"""
EPILOG = """\
examples:
  tsd prepare photos/ --out data/ --model sd3/    no captions: training uses the default prompt
  tsd prepare LSDIR/ DIV2K/ --out data/ --model sd3/ --caption-files --workers 8
  tsd prepare FFHQ/ --out data/ --model sd3/ --device cuda \\
              --caption-model Salesforce/blip-image-captioning-large
  tsd prepare photos/ --out data/ --model sd2/ --caption "a sharp photograph" --crops-per-image 4
  tsd prepare --hub OWNER/NAME --split train --image-column image --caption-column text \\
              --streaming --out data/ --model sd3/ --limit 10000
  tsd prepare LSDIR/ --out data/ --model sd3/ --caption-files --plan    show space needed, stop

interruption:
  Killed at any moment, the same command continues and ends with the same data. At most one file is
  made again. Images that cannot be read, are smaller than the crop or have no caption are left out
  and listed in OUT/skipped.csv.

captions:
  For each crop these are tried in this order: the .txt file beside the image (--caption-files) or
  the data set's column (--caption-column), the model (--caption-model), the fixed text
  (--caption). With --caption-files, a local image without a .txt file is an error before anything
  starts, unless --caption-model or --caption is given too.

space:
  An SD3 caption of 333 x 4096 numbers takes 2,727,936 bytes in fp16, and its pooled vector 4,096.
  95,000 images of 512 x 512 with a caption each take 259.5 GB of embeddings, 24.9 GB of latents
  (262,144 bytes each), some 37 GB of targets and 2 GB of low-quality images: 323 GB in all. Equal
  captions are stored once. SD2: 157,696 bytes a caption, 15 GB for 95,000.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "prepare",
        help="make a training set: crops, captions, embeddings, latents",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", type=Path, metavar="PATH", help="image files or folders")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for the result")
    parser.add_argument(
        "--model", metavar="DIR", help="model that will be trained: folder or hub id (default: the mini model)"
    )
    parser.add_argument(
        "--plan", action="store_true", help="print the settings and the disk space that the result will take, and stop"
    )
    parser.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    hub = parser.add_argument_group("data sets by Hugging Face `datasets`, instead of PATH")
    hub.add_argument("--hub", metavar="NAME", help="hub id, or a folder of images, parquet or Arrow files")
    hub.add_argument("--config", metavar="NAME", help="configuration of the data set")
    hub.add_argument("--split", default="train", metavar="NAME", help="split of the data set (default: train)")
    hub.add_argument("--revision", metavar="REV", help="commit, tag or branch")
    hub.add_argument("--image-column", default="image", metavar="NAME", help="column of images (default: image)")
    hub.add_argument("--caption-column", metavar="NAME", help="column of captions")
    hub.add_argument("--streaming", action="store_true", help="read over the network as needed, keep no copy")
    crops = parser.add_argument_group("crops and degradation")
    crops.add_argument(
        "--crop", type=int, metavar="N",
        help="side of the crops in pixels (default: that of the training's preset: 512, for a mini model 128)",
    )  # fmt: skip
    number = crops.add_mutually_exclusive_group()
    number.add_argument(
        "--crops-per-image", type=int, default=1, metavar="N",
        help="crops of each image, at random places (default: 1)",
    )  # fmt: skip
    number.add_argument("--grid", action="store_true", help="cut each image into a centred grid of crops instead")
    crops.add_argument(
        "--degradation", choices=("full", "light"), default="full",
        help="parameter set of the degradation (default: full)",
    )  # fmt: skip
    crops.add_argument(
        "--usm", action=argparse.BooleanOptionalAction, default=None,
        help="sharpen the target first, as Real-ESRGAN does (default: as the training's preset: yes with --degradation "
        "full, but not for a mini model)",
    )  # fmt: skip
    crops.add_argument(
        "--scale", type=int, default=4, metavar="N", help="how many times smaller the degraded crops are (default: 4)"
    )
    crops.add_argument("--seed", type=int, default=42, metavar="N", help="seed of crops and degradations (default: 42)")
    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--caption-files", action="store_true", help="read captions from .txt files beside the images"
    )
    captions.add_argument(
        "--caption-model", metavar="ID",
        help="make captions with an image-to-text model of transformers: hub id or folder",
    )  # fmt: skip
    captions.add_argument("--caption", metavar="TEXT", help="one caption for every image that has no other")
    captions.add_argument(
        "--t5", action=argparse.BooleanOptionalAction, default=True,
        help="use SD3's third text encoder; --no-t5 puts zeros in its place (default: yes)",
    )  # fmt: skip
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--workers", type=int, default=0, metavar="N",
        help="processes that crop and degrade; 0: the main process does it (default: 0)",
    )  # fmt: skip
    machine.add_argument(
        "--device", metavar="cpu|cuda", help="where the networks run (default: cuda if there is one, else cpu)"
    )
    machine.add_argument(
        "--dtype", choices=PRECISIONS, default="fp32", help="precision of the networks (default: fp32)"
    )
    machine.add_argument(
        "--shard-images", type=int, default=128, metavar="N", help="images in each Arrow file (default: 128)"
    )
    machine.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="captions made or embedded at a time (default: 8)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Prepares; returns 0 even if images were left out: they are listed, and the rest of a long run is still good."""
    folders = _check(args)
    with without(*QUANTIZERS):
        return _work(args, folders)


def _work(args: argparse.Namespace, folders: "FolderSource | None") -> int:
    import torch

    from tsd.data.prepare import SKIPPED, prepare
    from tsd.data.prepare_config import settings_of

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and (device.partition(":")[0] != "cuda" or not torch.cuda.is_available()):
        raise UserError(f"the device is {device!r}; expected cpu, or cuda on a machine that has one")
    model = args.model if args.model is not None else mini_model_dir()
    config = _config(args)
    source: Source = folders or _hub(args)
    if args.plan:
        print(_plan(args, source, settings_of(source, model, config)))
        return 0
    record = prepare(source, args.out, model, config, workers=args.workers, device=device)
    counts = record["counts"]
    print(f"{counts['crops']} crops of {counts['images']} images, {counts['captions']} distinct captions in {args.out}")
    for command in _next(model, args.out, record["settings"], on_cpu=device == "cpu"):
        print(f"try: {shlex.join(command)}")
    if record["skipped"]:
        shown = [f"{entry['name']}: {entry['reason']}" for entry in record["skipped"][:20]]
        print("\n  ".join([f"{counts['skipped']} left out (all in {args.out / SKIPPED}):", *shown]), file=sys.stderr)
    return 0


def _next(model: str | Path, out: Path, settings: dict[str, Any], *, on_cpu: bool) -> list[list[str]]:
    """The commands that train on the data, with every flag that they need: first `tsd prompts`, if the model has no
    prompts of the captions' length.
    """
    from tsd.model.loading import detect_family, read_config, resolve_model
    from tsd.model.prompt import load_prompts
    from tsd.train.paths import SCALE

    if settings["scale"] != SCALE:
        print(f"`tsd train` is for x{SCALE}, and these are x{settings['scale']}: no command to train", file=sys.stderr)
        return []
    folder = resolve_model(model)
    family = detect_family(folder)
    widths = family.prompt_widths(read_config(folder / family.denoiser_folder / "config.json"))
    prompts = load_prompts(folder, None, widths)
    lengths = {prompts[name].embeds.shape[1] if name in prompts else None for name in ("default", "null")}
    if settings["prompt_shapes"]:
        lengths.add(settings["prompt_shapes"]["prompt_embeds"][-2])
    preset = "mini" if is_mini_model(model) or on_cpu else "paper"  # the paper's precision needs a GPU
    train = ["tsd", "train", "--preset", preset, "--model", str(model), "--data", str(out), "--output", "run/"]
    train += ["--crop", str(settings["crop"]), "--usm" if settings["usm"] else "--no-usm"]
    train += ["--degradation", settings["degradation"]["name"]]
    if len(lengths) == 1 and None not in lengths:
        return [train]
    make = ["tsd", "prompts", "--model", str(model), "--out", "prompts/"]
    return [make + ([] if settings["captions"]["t5"] else ["--no-t5"]), [*train, "--prompt-embeds", "prompts/"]]


def _check(args: argparse.Namespace) -> "FolderSource | None":
    """Refuses what is wrong with the arguments and the paths, and completes crop and sharpening from the preset.

    Returns:
        The image folders; None for a data set.
    """
    from tsd.data.sources import FolderSource
    from tsd.model.loading import is_hub_id, resolve_model
    from tsd.presets import MINI, PAPER

    preset = MINI if args.model is None or is_mini_model(args.model) else PAPER
    if args.crop is None:
        args.crop = preset.crop
    if args.usm is None:
        args.usm = preset.usm and args.degradation == "full"
    if bool(args.inputs) == bool(args.hub):
        raise UserError("give either image folders (PATH ...) or one data set (--hub NAME)")
    if args.hub and args.caption_files:
        raise UserError("--caption-files is for image folders; a data set's captions are in --caption-column NAME")
    if args.inputs and (args.caption_column or args.streaming):
        raise UserError("--caption-column and --streaming belong to --hub; for image folders there is --caption-files")
    if args.workers < 0:
        raise UserError(f"the number of workers must be 0 or more, got {args.workers}")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit must be 1 or more, got {args.limit}")
    if args.scale < 1:
        raise UserError(f"the scale must be 1 or more, got {args.scale}")
    if args.caption is not None and not args.caption.strip():
        raise UserError("--caption is empty; leave it out for no captions")
    for name in ("crop", "crops_per_image", "shard_images", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, got {getattr(args, name)}")
    if args.device is not None and args.device.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(f"the device is {args.device!r}; expected cpu, or cuda on a machine that has one")
    if args.out.is_file():
        raise UserError(f"the output {args.out} is a file; give a folder (--out)")
    require_writable(args.out)
    if args.model is not None and not is_hub_id(args.model):
        resolve_model(args.model)
    if args.hub:
        return None
    fallback = args.caption is not None or args.caption_model is not None
    return FolderSource(
        args.inputs, caption_files=args.caption_files, fallback=fallback, limit=args.limit, exclude=args.out
    )


def _config(args: argparse.Namespace) -> Any:
    from tsd.data.crops import CropConfig
    from tsd.data.degrade import DEGRADATIONS
    from tsd.data.prepare_config import CaptionConfig, PrepareConfig

    return PrepareConfig(
        crops=CropConfig(
            crop=args.crop,
            mode="grid" if args.grid else "random",
            per_image=args.crops_per_image,
            degradation=DEGRADATIONS[args.degradation],
            usm=args.usm,
            scale=args.scale,
            seed=args.seed,
        ),
        captions=CaptionConfig(
            from_source=args.caption_files or args.caption_column is not None,
            model=args.caption_model,
            text=args.caption,
            t5=args.t5,
        ),
        dtype=args.dtype,
        shard_images=args.shard_images,
        batch_size=args.batch_size,
    )


def _hub(args: argparse.Namespace) -> "Source":
    from tsd.data.sources import HubSource

    return HubSource(
        args.hub,
        config=args.config,
        split=args.split,
        revision=args.revision,
        image_column=args.image_column,
        caption_column=args.caption_column,
        streaming=args.streaming,
        limit=args.limit,
    )


def _plan(args: argparse.Namespace, source: Any, settings: dict[str, Any]) -> str:
    """The settings, then the space for these images and for the paper's 95,000."""
    import json

    from tsd.data.storage import storage_of

    storage = storage_of(settings)
    parts = [json.dumps(settings, indent=2, ensure_ascii=False)]
    if source.length is not None and not args.grid:
        crops = source.length * args.crops_per_image
        # The number of distinct captions is not known yet: at most one per image, or one per crop from a model.
        per_image = args.crops_per_image if args.caption_model else 1
        captions = source.length * per_image if storage.embeddings else 0
        if not (args.caption_files or args.caption_column or args.caption_model):
            captions = min(captions, 1)
        parts += [f"{source.length:,} images, at most:", storage.to_text(crops, captions)]
    parts += ["95,000 images with one crop and one caption each, the size of the paper's set:"]
    parts += [storage.to_text(95_000, 95_000 if storage.embeddings else 0)]
    parts += [f"free where {args.out} will be: {human_size(free_bytes(args.out))}"]
    return "\n".join(parts)
