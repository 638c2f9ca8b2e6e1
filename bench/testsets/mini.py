"""Rebuilds the mini test set from its source photographs and reports whether the result is the same.

The recipe is in `datasets/mini/manifest.json`: which photograph of which package, which corner, which degradation. The
photographs ship inside scikit-image and scikit-learn; both must be installed. The low-resolution images come from the
command `tsd degrade`, run as a subprocess, since this module may import only the ground of `tsd`.

    python -m bench.testsets.mini --out rebuilt/

The new folder holds the images and a manifest with their hashes. To change the set, edit `photographs` and the boxes of
`images` in the manifest, build, look at the result, and replace the old set with it.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.testsets.manifest import DATASETS, HR, LR
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import sha256_file

COMMITTED = DATASETS / "mini"
SIZE = 256
BARE = "bare"
"""Folder of the crops without colour profiles while the set is built."""
ROUNDING = "another processor's rounding"
ROUNDED_SHARE = 0.02
"""Processors differ in the last bit of a convolution, which may change the rounding of one JPEG coefficient; a block of
8 x 8 pixels then differs by one level. This does not explain a difference in a larger share of an image's pixels."""


def main(argv: Sequence[str] | None = None) -> int:
    """Builds and compares. Returns 0 if the pixels are those of the committed set, 1 if not, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.testsets.mini", description="Build the mini test set again and compare."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    out = parser.parse_args(argv).out
    try:
        build(out)
    except UserError as error:
        print(f"bench.testsets.mini: {error}", file=sys.stderr)
        return 2
    different = compare(out, COMMITTED)
    for line in different:
        print(line)
    total = len(json.loads((out / "manifest.json").read_text(encoding="utf-8"))["images"])
    other_pixels = [line for line in different if "same pixels" not in line and ROUNDING not in line]
    print(f"{total} pairs in {out}: {len(other_pixels)} files with other pixels than {COMMITTED}")
    return 1 if other_pixels else 0


def build(out: Path) -> None:
    """Writes `test_HR`, `test_LR` and `manifest.json` into `out`.

    Raises:
        UserError: `out` is not empty, or a package or photograph is missing or of another version.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; name a new one")
    manifest: dict[str, Any] = json.loads((COMMITTED / "manifest.json").read_text(encoding="utf-8"))
    photographs = {photo["id"]: _photograph(photo) for photo in manifest["photographs"]}
    (out / HR).mkdir(parents=True)
    (out / BARE).mkdir()
    for entry in Progress(manifest["images"], desc="crops", unit="image", delay=1, leave=False):
        left, top = entry["corner"]
        crop = photographs[entry["photograph"]].crop((left, top, left + SIZE, top + SIZE))
        crop.save(out / HR / entry["name"], optimize=True)
        crop.info.pop("icc_profile", None)  # `tsd degrade` would keep it; the set's inputs have none
        crop.save(out / BARE / entry["name"])
    recipe = manifest["degradation"]
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        command = [sys.executable, "-m", "tsd.cli", "degrade", str(out / BARE), "-o", scratch]
        command += ["--set", recipe["set"], "--seed", str(recipe["seed"]), "--scale", str(manifest["scale"])]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise UserError(f"`{' '.join(command[1:])}` ended with status {done.returncode}")
        record = json.loads((Path(scratch) / "degrade.json").read_text(encoding="utf-8"))
        (out / LR).mkdir()
        for entry in manifest["images"]:
            (Path(scratch) / entry["name"]).replace(out / LR / entry["name"])
    shutil.rmtree(out / BARE)
    recipe["parameters"] = record["degradation"]
    for entry in manifest["images"]:
        entry["seed"] = record["images"][Path(entry["name"]).stem]["seed"]
        for side, key in ((LR, "lr_sha256"), (HR, "hr_sha256")):
            entry[key] = sha256_file(out / side / entry["name"])
    manifest["count"] = len(manifest["images"])
    manifest["bytes"] = sum(path.stat().st_size for side in (LR, HR) for path in (out / side).iterdir())
    (out / "manifest.json").write_text(_to_json(manifest), encoding="utf-8")


def compare(built: Path, committed: Path) -> list[str]:
    """One line per file that differs only in its bytes (another PNG encoder), or in its pixels, or is absent.

    If another processor's rounding explains the difference of a degraded image (one level in few pixels), the line
    says so.
    """
    lines: list[str] = []
    names = {path.relative_to(root) for root in (built, committed) for path in root.glob("test_?R/*.png")}
    for name in sorted(names):
        new, old = built / name, committed / name
        if not (new.is_file() and old.is_file()):
            lines.append(f"{name}: only in {built if new.is_file() else committed}")
        elif new.read_bytes() != old.read_bytes():
            lines.append(f"{name}: {_difference(new, old)}")
    return lines


def _difference(new: Path, old: Path) -> str:
    a, b = (np.asarray(Image.open(path).convert("RGB")).astype(np.int16) for path in (new, old))
    if a.shape != b.shape:
        return f"{a.shape[1]}x{a.shape[0]} instead of {b.shape[1]}x{b.shape[0]}"
    if np.array_equal(a, b):
        return "same pixels, other bytes"
    gap = np.abs(a - b)
    share, most = (gap > 0).any(axis=2).mean(), int(gap.max())
    degraded = new.parent.name == LR  # a cut of a photograph is a copy: nothing in it is rounded
    cause = f" ({ROUNDING})" if degraded and most == 1 and share <= ROUNDED_SHARE else ""
    return f"{100 * share:.2f} % of the pixels differ, by {most} level{'s' * (most > 1)} at most{cause}"


def _photograph(photo: dict[str, Any]) -> Image.Image:
    spec = importlib.util.find_spec(photo["package"])
    if spec is None or spec.origin is None:
        raise UserError(f"{photo['file']} ships inside {photo['distribution']}: `pip install {photo['distribution']}`")
    path = Path(spec.origin).parent / photo["file"]
    if not path.is_file():
        raise UserError(f"{path} is missing: this version of {photo['distribution']} does not ship it")
    found = sha256_file(path)
    if found != photo["sha256"]:
        raise UserError(f"{path} is another file than the one the set was cut from (sha256 {found[:12]}…)")
    return Image.open(path).convert("RGB")


def _to_json(manifest: dict[str, Any]) -> str:
    """JSON with one line per image and photograph, so that diffs are readable."""
    fields = []
    for key, value in manifest.items():
        if key in ("photographs", "images"):
            rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False) for row in value)
            fields.append(f'  "{key}": [\n{rows}\n  ]')
        else:
            fields.append(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
