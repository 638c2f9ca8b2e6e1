"""Scores one folder of images against another, by file name, for `bench score`.

Files are paired by stem: `a.png` with `a.jpg`. Two files with the same stem in a folder are an error, and so is a file
without a partner. Names may be in either Unicode form, as macOS and others write them. Files that are no images by
`tsd.files.find_images` and sub-folders are ignored. Everything is checked
before anything is scored, and all faults are reported at once, so that no mean is over a part of the images.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.metrics import CannotScoreError, ImageScorer, MetricSpec, SetScorer, missing_metric
from bench.metrics.images import UnusableImageError, read_rgb8
from bench.report.summarize import mean_ci95
from bench.store.missing import Missing
from tsd.errors import UserError, some
from tsd.files import find_images, same_form
from tsd.images import read_picture


class FolderError(UserError):
    """Folders that cannot be scored; `.problems` has one line per fault."""

    def __init__(self, problems: Sequence[str]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"nothing was scored: {count}", *(f"  {problem}" for problem in problems)]))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class FolderPair:
    """One image to score. `name` is the file name in the SR folder; `hr` is None without a ground truth."""

    name: str
    sr: Path
    hr: Path | None


def find_pairs(sr_dir: Path, hr_dir: Path | None = None, limit: int | None = None) -> list[FolderPair]:
    """The images of `sr_dir`, sorted by stem, each with its partner. Every file is read once as a check.

    Args:
        limit: read and return only the first `limit` pairs; all names are checked nevertheless.

    Raises:
        FolderError: lists every fault: no such folder, no images, equal stems, missing partners, images that are
            empty, truncated, unreadable, 16-bit or with alpha, and pairs of different size.
    """
    problems: list[str] = []
    sr = _images_by_stem(sr_dir, problems)
    hr = _images_by_stem(hr_dir, problems) if hr_dir is not None else None
    if hr is not None and sr and hr:
        problems += [f"{sr[stem]}: no partner in {hr_dir}" for stem in sorted(sr.keys() - hr.keys())]
        problems += [f"{hr[stem]}: no partner in {sr_dir}" for stem in sorted(hr.keys() - sr.keys())]
    partners = hr if hr is not None else {}
    stems = sorted(stem for stem in sr if hr is None or stem in hr)[:limit]
    pairs = [FolderPair(sr[stem].name, sr[stem], partners.get(stem)) for stem in stems]
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


def _images_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
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
    shapes: list[tuple[int, ...]] = []
    for path in (pair.sr, pair.hr):
        if path is None:
            continue
        try:
            shapes.append(read_rgb8(path).shape)
            if read_picture(path).has_other_colours():
                profiled.append(path)
        except UnusableImageError as error:
            faults.append(str(error))
    if len(shapes) == 2 and shapes[0] != shapes[1]:
        sizes = [f"{width}x{height}" for height, width, _ in shapes]
        faults.append(f"{pair.sr}: {sizes[0]}, but {pair.hr} is {sizes[1]}")
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
    absent: list[Missing] = missing_metric(spec)
    return "; ".join(item.line() for item in absent) or None


def _score(spec: MetricSpec, pairs: Sequence[FolderPair], device: str) -> dict[str, Any]:
    scorer = spec.load(device)
    if spec.level == "set":
        score_sets = cast(SetScorer, scorer)
        hr = {pair.name: pair.hr for pair in pairs if pair.hr is not None}
        return {"mean": score_sets({pair.name: pair.sr for pair in pairs}, hr), "ci95": None, "per_image": {}}
    score_image = cast(ImageScorer, scorer)
    values = {pair.name: score_image(pair.sr, pair.hr) for pair in _progress(pairs, spec.display)}
    mean, low, high = mean_ci95(list(values.values()))
    return {"mean": mean, "ci95": None if low is None else [low, high], "per_image": values}


def format_scores(result: Mapping[str, Any], get: Callable[[str], MetricSpec]) -> str:
    """`score_pairs`'s result as a table for people; `get` finds a metric's facts by its name."""
    count = result["n"]
    rows = [("metric", "mean", "95 % interval")]
    for name, found in result["metrics"].items():
        spec = get(name)
        digits = spec.decimals
        interval = found["ci95"]
        span = f"{interval[0]:.{digits}f} .. {interval[1]:.{digits}f}" if interval else f"- (N = {count})"
        rows.append((f"{spec.display} {spec.arrow}", f"{found['mean']:.{digits}f}", span))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]}" for row in rows] if len(rows) > 1 else []
    lines.append(f"{count} image{'s' if count != 1 else ''}")
    lines += [f"- {get(name).display}: {reason}" for name, reason in result["missing"].items()]
    return "\n".join(lines)


def _progress(items: Sequence[FolderPair], title: str) -> Iterable[FolderPair]:
    from tqdm import tqdm

    return tqdm(items, title, unit="image", file=sys.stderr, leave=False, delay=2)
