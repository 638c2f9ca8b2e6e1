"""`tsd degrade`: low-resolution test inputs from good photographs, each determined by its name and one seed."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsd.batch import Job
from tsd.errors import UserError
from tsd.files import MEGAPIXELS_HELP, READABLE, find_images, real_path, require_writable

DESCRIPTION = """\
Makes low-resolution images the way the training of TSD-SR does: Real-ESRGAN's second-order
degradation (blur, resize, noise and JPEG, twice). Folders are searched recursively, and OUT gets
the same sub-folders. Results are PNG files.
"""
EPILOG = """\
examples:
  tsd degrade photos/ -o low/                        the full parameter set; a quarter of the size
  tsd degrade photos/ -o low/ --set light --seed 7   the milder set DIV2K-Val was made with
  tsd degrade photos/ -o low/ --skip-existing        continue after an interruption

results:
  An image's degradation depends on --seed and on its path inside the given folder, without the
  suffix. So the same photograph gives the same result whatever else is in the folder.
  OUT/degrade.json records the settings and every image's seed. If a side is not a multiple of the
  scale, the image is cut at the right or the bottom, with a warning. Cut the ground truth in the
  same way.
"""
RECORD = "degrade.json"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the verb to `tsd`."""
    parser = subparsers.add_parser(
        "degrade",
        help="make low-resolution test inputs from good images",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="image files or folders")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for the results")
    parser.add_argument("--set", choices=("full", "light"), default="full", help="parameter set (default: full)")
    parser.add_argument(
        "--scale", type=int, default=4, metavar="N", help="how many times smaller the results are (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the degradations (default: 42)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to run (default: cpu)")
    parser.add_argument("--max-megapixels", type=float, metavar="N", help=MEGAPIXELS_HELP)
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace results that exist")
    exists.add_argument("--skip-existing", action="store_true", help="leave results that exist as they are")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Degrades every input; returns 0, or 1 if some inputs could not be degraded."""
    if args.scale < 1:
        raise UserError(f"the scale must be 1 or more, got {args.scale}")
    if args.device != "cpu" and args.device.partition(":")[0] != "cuda":
        raise UserError(f"the device is {args.device!r}; expected cpu, cuda or cuda:N")
    jobs = _plan(args)

    from tsd.console.progress import Progress
    from tsd.files import write_text
    from tsd.images import ImageError

    # Written first, so that settings and seeds are known for everything in the folder after an interruption.
    record = _record(args, jobs)
    write_text(args.output / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    pending = [job for job in jobs if not (args.skip_existing and os.path.exists(job.target))]
    failed: list[str] = []
    with Progress(pending, unit="image") as bar:
        for job in bar:
            bar.set_postfix_str(job.name)
            try:
                notes = _degrade_file(job, args)
            except ImageError as error:
                failed.append(str(error))
                continue
            except Exception as error:  # one bad image never ends a batch
                known = isinstance(error, UserError | OSError)
                failed.append(f"{job.source}: {'' if known else f'{type(error).__name__}: '}{error}")
                continue
            for note in notes:
                bar.write(f"warning: {job.source}: {note}", file=sys.stderr)
    print(f"{len(pending) - len(failed)} of {len(jobs)} images written to {args.output}, settings to {RECORD}")
    if failed:
        print("\n  ".join([f"{len(failed)} images could not be degraded:", *failed]), file=sys.stderr)
        return 1
    return 0


def _degrade_file(job: Job, args: argparse.Namespace) -> tuple[str, ...]:
    """Writes one result, in the colours of the image; returns notes on how it was read and on what was cut."""
    import torch

    from tsd.data.degrade import DEGRADATIONS, degrade
    from tsd.images import ImageError, Picture, read_picture
    from tsd.writing import write_picture

    picture = read_picture(job.source)
    color = picture.color
    height, width = (side - side % args.scale for side in color.shape[:2])
    if not (height and width):
        raise ImageError(f"{job.source}: {color.shape[1]}x{color.shape[0]} is smaller than the scale {args.scale}")
    hr = torch.from_numpy(color[:height, :width]).permute(2, 0, 1).to(args.device)
    lr = degrade(hr, DEGRADATIONS[args.set], _seed(args, job), scale=args.scale)
    profile = None if picture.gray else picture.icc_profile
    write_picture(Picture(lr.permute(1, 2, 0).cpu().numpy(), icc_profile=profile), job.target)
    cut = (height, width) != color.shape[:2]
    return (*picture.notes, *([f"cut from {color.shape[1]}x{color.shape[0]} to {width}x{height}"] if cut else []))


def _seed(args: argparse.Namespace, job: Job) -> int:
    """The seed of an image's degradation."""
    from tsd.seeds import seed_for

    return seed_for(args.seed, "degrade", job.name)


def _plan(args: argparse.Namespace) -> list[Job]:
    """Names and seeds the images, and refuses bad input before any work."""
    out = args.output
    if out.exists() and not out.is_dir():
        raise UserError(f"the output {out} is a file; give a folder")
    require_writable(out)
    jobs: list[Job] = []
    for given in args.inputs:
        if given.is_dir():
            found = find_images(given, exclude=out)
            if not found.images:
                raise UserError(f"no images in {given}; looked for {', '.join(READABLE)}")
            if passed_over := found.passed_over():
                print(f"{given}: passed over what is no image: {passed_over}", file=sys.stderr)
            named = [(path, path.relative_to(given).with_suffix("").as_posix()) for path in found.images]
        elif given.is_file() or given.is_symlink():
            named = [(given, given.stem)]
        else:
            raise UserError(f"no such file or folder: {given}")
        jobs += [Job(path, name, out / f"{name}.png") for path, name in named]
    by_name: dict[str, Path] = {}
    for job in jobs:
        if job.name in by_name:
            raise UserError(f"{by_name[job.name]} and {job.source} would both become {job.target}; rename one")
        by_name[job.name] = job.source
    sources = {real_path(job.source) for job in jobs}
    if replaced := [job.target for job in jobs if real_path(job.target) in sources]:
        raise UserError(f"{replaced[0]} is one of the inputs and would be replaced; choose another output (-o)")
    existing = [job.target for job in jobs if os.path.exists(job.target)]
    if existing and not (args.overwrite or args.skip_existing):
        raise UserError(
            f"{len(existing)} of {len(jobs)} results exist, e.g. {existing[0]}; give --overwrite to replace them, "
            f"--skip-existing to do only what is missing, or another output (-o)"
        )
    if existing and args.skip_existing:
        _require_same_settings(args)
    return jobs


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    from tsd.data.degrade import DEGRADATIONS

    # Through JSON and back, so that it can be compared with the settings in a file (tuples become lists).
    return json.loads(
        json.dumps({"seed": args.seed, "scale": args.scale, "degradation": asdict(DEGRADATIONS[args.set])})
    )


def _require_same_settings(args: argparse.Namespace) -> None:
    old = _read_record(args.output)
    changed = [key for key, value in _settings(args).items() if old.get(key) != value]
    if changed:
        raise UserError(
            f"the images in {args.output} were made with another {', '.join(changed)} (see {RECORD} there) or by hand; "
            f"give --overwrite to replace them, or another output (-o)"
        )


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder / RECORD} is not JSON ({error}); remove it or choose another output (-o)") from error


def _record(args: argparse.Namespace, jobs: list[Job]) -> dict[str, Any]:
    """The settings, versions and seeds to record; images of earlier runs with the same settings stay listed."""
    import torch
    import torchvision

    settings = _settings(args)
    old = _read_record(args.output)
    kept = old.get("images", {}) if all(old.get(key) == value for key, value in settings.items()) else {}
    images = kept | {job.name: {"source": job.source.name, "seed": _seed(args, job)} for job in jobs}
    return {
        **settings,
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "device": args.device,
        "images": dict(sorted(images.items())),
    }
