"""Scores one folder of images against another by file name, or one image against another, for `bench score`.

Files are paired by stem: `a.png` with `a.jpg`, and with `a_x4.png` where all names of that folder end so. Two files
with the same stem in a folder are an error, and so is a file without a partner. Names may be in either Unicode form, as
macOS and others write them. Files that are no images by `tsd.files.find_images` and sub-folders are ignored. Everything
is checked before anything is scored, and all faults are reported at once, so that no mean is over a part of the images.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.metrics import CannotScoreError, ImageScorer, MetricSpec, SetScorer, missing_metric
from bench.metrics.images import UnusableImageError, read_checked
from bench.report.summarize import within
from bench.store.missing import Missing
from tsd.errors import UserError, some
from tsd.files import common_suffix, find_images, same_form


class FolderError(UserError):
    """Folders that cannot be scored; `.problems` has one line per fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"nothing was scored: {count}", *(f"  {problem}" for problem in problems)]))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class FolderPair:
    """One image to score. `name` is the file name in the SR folder; `hr` and `lr` are None where not given."""

    name: str
    sr: Path
    hr: Path | None
    lr: Path | None = None


def find_pairs(
    sr_dir: Path, hr_dir: Path | None = None, limit: int | None = None, lr_dir: Path | None = None
) -> list[FolderPair]:
    """The images of `sr_dir`, sorted by stem, each with its partners. Every file is read once as a check.

    All may be files instead, which are then a pair whatever their names.

    Args:
        hr_dir, lr_dir: folders of the ground truth and of the inputs.
        limit: only the first `limit` names of the ground truth count, or of `sr_dir` where there is none.

    Raises:
        FolderError: lists every fault: no such folder, a file beside a folder, no images, equal stems, missing
            partners, images that are empty, truncated, unreadable, 16-bit or with alpha, and pairs of different size.
    """
    problems: list[str] = []
    folders = {"sr": sr_dir, "hr": hr_dir, "lr": lr_dir}
    given = {side: folder for side, folder in folders.items() if folder is not None}
    if all(path.is_file() for path in given.values()):
        pairs = [FolderPair(sr_dir.name, sr_dir, hr_dir, lr_dir)]
    else:
        pairs = _paired_by_stem(given, limit, problems)
    profiled: list[Path] = []
    for pair in _progress(pairs, "reading"):
        problems += _faults(pair, profiled)
    if problems:
        raise FolderError(problems)
    if profiled:
        print(
            f"{some(profiled)}: in a colour profile other than sRGB; values are compared as stored, so both images of "
            f"a pair must be in the same",
            file=sys.stderr,
        )
    return pairs


def _paired_by_stem(given: Mapping[str, Path], limit: int | None, problems: list[str]) -> list[FolderPair]:
    found = {side: _images_by_stem(folder, problems) for side, folder in given.items()}
    _take_suffixes_off(found, limit)
    reference = found.get("hr") or found.get("lr") or found["sr"]
    names = sorted(reference)[:limit] if limit is not None else sorted(set().union(*found.values()))
    if all(found.values()):
        for side, folder in given.items():
            absent = [name for name in names if name not in found[side]]
            there = [next(images[name] for images in found.values() if name in images) for name in absent]
            if absent:
                problems.append(f"{some(there)}: no partner in {folder}")
    sr, hr, lr = (found.get(side, {}) for side in ("sr", "hr", "lr"))
    return [
        FolderPair(sr[name].name, sr[name], hr.get(name), lr.get(name))
        for name in names
        if all(name in images for images in found.values())
    ]


def _take_suffixes_off(found: dict[str, dict[str, Path]], limit: int | None) -> None:
    """Takes off the names of each folder what follows the names of another in all of them, and says so."""
    for side in found:
        for other in found.values():
            images = found[side]
            suffix = common_suffix(images, sorted(other)[:limit])
            if suffix:
                longer = min(stem for stem in images if stem.endswith(suffix))
                print(f"names are taken without {suffix}, as in {longer}", file=sys.stderr)
                found[side] = {stem.removesuffix(suffix): path for stem, path in images.items()}


def _images_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    if not folder.is_dir():
        kind = "a file beside a folder; expected two folders or two files" if folder.is_file() else "no such folder"
        problems.append(f"{folder}: {kind}")
        return {}
    files = find_images(folder, recursive=False)
    if not files.images:
        passed_over = files.passed_over()
        problems.append(f"{folder}: no images{f', but {passed_over}' if passed_over else ''}")
    found: dict[str, Path] = {}
    for path in files.images:
        stem = same_form(path.stem)
        if stem in found:
            problems.append(f"{path}: same stem as {found[stem].name}")
        found.setdefault(stem, path)
    return found


def _faults(pair: FolderPair, profiled: list[Path]) -> list[str]:
    """What is wrong with a pair; files in a colour profile other than sRGB are added to `profiled`."""
    faults: list[str] = []
    sizes: dict[Path, tuple[int, int]] = {}
    for path in (pair.sr, pair.hr, pair.lr):
        if path is None:
            continue
        try:
            picture = read_checked(path)
            sizes[path] = picture.color.shape[:2]
            if picture.has_other_colours():
                profiled.append(path)
        except UnusableImageError as error:
            faults.append(str(error))
    if pair.sr not in sizes:
        return faults
    height, width = sizes[pair.sr]
    if pair.hr in sizes and sizes[pair.hr] != (height, width):
        faults.append(f"{pair.sr}: {width}x{height}, but {pair.hr} is {'x'.join(map(str, sizes[pair.hr][::-1]))}")
    if pair.lr in sizes:
        small_height, small_width = sizes[pair.lr]
        if height % small_height or height * small_width != width * small_height:
            small = f"{small_width}x{small_height}"
            faults.append(f"{pair.sr}: {width}x{height}, no whole multiple of its input {pair.lr}, {small}")
    return faults


def score_pairs(pairs: Sequence[FolderPair], specs: Iterable[MetricSpec], device: str = "cpu") -> dict[str, Any]:
    """Computes every metric over every pair.

    Returns:
        {"n": …, "metrics": {name: {"mean": …, "ci95": [low, high] or None, "per_image": {file name: value}}},
        "missing": {name: reason}}. A metric of two sets (FID, KID) has its value as the mean, no interval and no
        per-image values. If a metric fails on one image, it is missing altogether.

    Raises:
        UserError: a weight file is not the published one, or an image changed since it was checked.
    """
    metrics: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for spec in specs:
        reason = _reason_missing(spec, pairs)
        if reason is not None:
            missing[spec.name] = reason
            continue
        try:
            metrics[spec.name] = _score(spec, pairs, device)
        except CannotScoreError as error:
            missing[spec.name] = str(error)
    return {"n": len(pairs), "metrics": metrics, "missing": missing}


def _reason_missing(spec: MetricSpec, pairs: Sequence[FolderPair]) -> str | None:
    if spec.needs_reference and any(pair.hr is None for pair in pairs):
        return f"{spec.display} compares with a ground truth: give its folder with --hr"
    if spec.needs_input and any(pair.lr is None for pair in pairs):
        return f"{spec.display} compares with the inputs: give their folder with --lr"
    absent: list[Missing] = missing_metric(spec)
    return "; ".join(item.line() for item in absent) or None


def _score(spec: MetricSpec, pairs: Sequence[FolderPair], device: str) -> dict[str, Any]:
    scorer = spec.load(device)
    if spec.level == "set":
        score_sets = cast(SetScorer, scorer)
        hr = {pair.name: pair.hr for pair in pairs if pair.hr is not None}
        return {"mean": score_sets({pair.name: pair.sr for pair in pairs}, hr), "ci95": None, "per_image": {}}
    score_image = cast(ImageScorer, scorer)
    other = {pair.name: pair.lr if spec.needs_input else pair.hr for pair in pairs}
    values = {pair.name: score_image(pair.sr, other[pair.name]) for pair in _progress(pairs, spec.display)}
    found = within(spec.bounds, list(values.values()))
    return {"mean": found.value, "ci95": None if found.low is None else [found.low, found.high], "per_image": values}


def format_scores(result: Mapping[str, Any], get: Callable[[str], MetricSpec]) -> str:
    """`score_pairs`'s result as a table for people; `get` finds a metric's facts by its name."""
    count = result["n"]
    rows = [("metric", "mean", "95 % interval")]
    for name, found in result["metrics"].items():
        spec = get(name)
        digits = spec.decimals
        interval = found["ci95"]
        span = f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else f"- (N = {count})"
        rows.append((f"{spec.display} {spec.arrow}", f"{found['mean']:.{digits}f}", span))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}" for row in rows] if len(rows) > 1 else []
    lines.append(f"{count} image{'s' if count != 1 else ''}")
    lines += [f"- {get(name).display}: {reason}" for name, reason in result["missing"].items()]
    return "\n".join(lines)


def _progress(items: Sequence[FolderPair], title: str) -> Iterable[FolderPair]:
    from tsd.console.progress import Progress

    return Progress(items, title, unit="image", leave=False, delay=2)
