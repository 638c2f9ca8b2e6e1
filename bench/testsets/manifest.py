"""Test sets: the images that `datasets/<name>/manifest.json` lists are found on this machine and verified before use.

A manifest names the files of a set with their sha256, where they are published, and under what licence. The images of
`mini` are beside their manifest. Those of the other sets may not be redistributed. They are searched under a data root
(`--data-root`, else `$TSD_DATA`, else `./data`), in their published layout or under our short names:

    <root>/RealSRVal_crop128/{test_LR,test_HR}/    or    <root>/realsr/{test_LR,test_HR}/

A set without ground truth (`"reference": false`) has one folder of images of any size: `lq` in the folder of the set,
or that folder itself, as such sets are published:

    <root>/realsrset/lq/    or    <root>/RealSRSet/
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.missing import Missing, describe
from tsd.console.progress import Progress
from tsd.errors import UserError, did_you_mean
from tsd.files import find_images, is_plain_name, sha256_file

TESTSETS = ("mini", "realsr", "drealsr", "div2k-val", "realsrset", "realset65")
DATASETS = Path(__file__).resolve().parents[2] / "datasets"
LR, HR = "test_LR", "test_HR"
LQ = "lq"


class MissingData(UserError):
    """A test set or a part of it is not on this machine. `missing` says what, where it goes and how to get it."""

    def __init__(self, missing: list[Missing]) -> None:
        super().__init__(describe(missing))
        self.missing = missing


@dataclass(frozen=True)
class TestImage:
    """One image. `name` is the file name without its suffix; `hr` is None if the set has no ground truth."""

    __test__ = False  # tells pytest that this is not a test case

    name: str
    lr: Path
    hr: Path | None
    lr_sha256: str
    hr_sha256: str | None


@dataclass(frozen=True)
class TestSet:
    """A verified test set. `images` are sorted by name; `total` is the size of the full set, also with a limit."""

    __test__ = False

    name: str
    display: str
    images: tuple[TestImage, ...]
    total: int
    licence: str
    source: str
    manifest_sha256: str


def load_testset(name: str, data_root: Path | None = None, limit: int | None = None) -> TestSet:
    """Loads the test set `name`, or its first `limit` images by name. Each file is verified by its sha256.

    If a manifest lists no files (DIV2K-Val), their number, pairing and sizes are verified instead.

    Raises:
        UserError: unknown name, bad limit, files that differ from the manifest.
        MissingData: the set or some of its files are missing.
    """
    manifest, digest = read_manifest(name)
    if limit is not None and limit < 1:
        raise UserError(f"the limit must be at least 1 image, got {limit}")
    missing = missing_testset(name, data_root)
    if missing:
        raise MissingData(missing)
    sides = _find(manifest, _root(data_root))
    assert sides is not None  # `missing_testset` has checked it
    listed: list[dict[str, Any]] | None = manifest["images"]
    if listed is None:
        listed = [{"name": file} for file in _paired_names(manifest, sides)]
    entries = sorted(listed, key=lambda entry: Path(entry["name"]).stem)[:limit]
    images: list[TestImage] = []
    faults: list[str] = []
    for entry in Progress(entries, f"verify {name}", unit="image", delay=1, leave=False):
        paths = {side: folder / entry["name"] for side, folder in sides.items()}
        found = {side: sha256_file(path) for side, path in paths.items()}
        images.append(TestImage(paths["lr"].stem, paths["lr"], paths.get("hr"), found["lr"], found.get("hr")))
        for side, path in paths.items():
            expected = entry.get(f"{side}_sha256")
            if expected is None:
                faults += _size_fault(path, manifest[f"{side}_size"])
            elif found[side] != expected:
                faults.append(f"{path}: sha256 {found[side][:12]}…, expected {expected[:12]}…")
    if faults:
        raise UserError(
            f"{len(faults)} files of {name} are not those of {DATASETS / name / 'manifest.json'} (another version, "
            f"re-encoded or damaged): get them again from {manifest['source']}\n  {_some(faults)}"
        )
    return TestSet(
        name=name,
        display=manifest["display"],
        images=tuple(images),
        total=manifest["count"],
        licence=manifest["licence"],
        source=manifest["source"],
        manifest_sha256=digest,
    )


def missing_testset(name: str, data_root: Path | None = None) -> list[Missing]:
    """Lists what of the test set is missing on this machine; empty if it is complete. Only looks at file names."""
    manifest, _ = read_manifest(name)
    root = _root(data_root)
    sides = _find(manifest, root)
    if sides is None:
        where = f"{root if root is not None else '$TSD_DATA'}/{manifest['folders'][0]}/"
        if root is None:
            where += " (set TSD_DATA to a folder of your choice)"
        count = manifest["count"]
        content = f"{LR}/ and {HR}/, {count} pairs" if _referenced(manifest) else f"{LQ}/, {count} images"
        return [_missing(manifest, content, where, manifest["bytes"])]
    absent = {
        folder: [entry["name"] for entry in manifest["images"] or [] if not (folder / entry["name"]).is_file()]
        for folder in sides.values()
    }
    return [
        _missing(manifest, f"{len(names)} of {manifest['count']} files ({_some(names, ', ')})", f"{folder}/", None)
        for folder, names in absent.items()
        if names
    ]


def has_reference(name: str) -> bool:
    """Whether the test set has a ground truth, according to its manifest."""
    return _referenced(read_manifest(name)[0])


def is_shipped(name: str) -> bool:
    """Whether the repository holds the images. Those of all other test sets may not be handed on."""
    return not read_manifest(name)[0]["folders"]


def folders_of(name: str) -> tuple[str, ...]:
    """The names that the test set's folder may have under the data root, our own first."""
    return tuple(dict.fromkeys((name, *read_manifest(name)[0]["folders"])))


def lr_size_of(name: str) -> tuple[int, int] | None:
    """(width, height) of all inputs of the test set; None if its manifest states no single size."""
    size = read_manifest(name)[0].get("lr_size")
    return (size[0], size[1]) if size else None


def names_of(name: str) -> tuple[str, ...] | None:
    """The names (stems) of the test set's images, sorted; None if its manifest lists none."""
    listed = read_manifest(name)[0]["images"]
    return None if listed is None else tuple(sorted(Path(entry["name"]).stem for entry in listed))


def read_manifest(name: str) -> tuple[dict[str, Any], str]:
    """Reads the manifest of the test set `name`; returns it and the sha256 of its file."""
    if name not in TESTSETS:
        raise UserError(f"unknown test set {name!r}{did_you_mean(name, TESTSETS)}; known: {', '.join(TESTSETS)}")
    path = DATASETS / name / "manifest.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(
            f"no manifest at {path}: the test sets are in the folder datasets/ of the repository. Run from a checkout, "
            f"installed with `pip install -e .`"
        ) from error
    try:
        manifest = json.loads(data)
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest of a test set ({error!r}); get it again with the repository") from error
    return manifest, hashlib.sha256(data).hexdigest()


def _check(manifest: dict[str, Any]) -> None:
    """Checks that a manifest has what is read of it, and that nothing it names lies outside the folder of the set.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it does not.
    """
    texts = [manifest[key] for key in ("name", "display", "source", "licence")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(manifest["count"], int):
        raise ValueError("name, display, source and licence are texts, count is a number")
    names = [*manifest["folders"], manifest["name"]]
    sides = ("lr_sha256", "hr_sha256") if _referenced(manifest) else ("lr_sha256",)
    for entry in manifest["images"] or ():
        names.append(entry["name"])
        if any(len(entry.get(side) or "0" * 64) != 64 for side in sides):
            raise ValueError(f"a hash of {entry['name']} has not 64 digits")
    for name in names:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} leads out of its folder")
    if manifest["images"] is None and not all(len(manifest[f"{side}_size"]) == 2 for side in ("lr", "hr")):
        raise ValueError("it states neither images nor their size")


def _root(data_root: Path | None) -> Path | None:
    """--data-root, else $TSD_DATA, else ./data if it exists, since `bench fetch` puts its files there."""
    if data_root is not None:
        return Path(data_root)
    if os.environ.get("TSD_DATA"):
        return Path(os.environ["TSD_DATA"])
    return Path("data") if Path("data").is_dir() else None


def _referenced(manifest: dict[str, Any]) -> bool:
    return manifest.get("reference", True)


def _find(manifest: dict[str, Any], root: Path | None) -> dict[str, Path] | None:
    """The folder of the inputs ("lr") and, if the set has one, that of the ground truth ("hr")."""
    if not manifest["folders"]:  # the images are beside the manifest
        candidates = [DATASETS / manifest["name"]]
    else:
        candidates = [root / folder for folder in manifest["folders"]] if root is not None else []
    for folder in candidates:
        if _referenced(manifest):
            if (folder / LR).is_dir() and (folder / HR).is_dir():
                return {"lr": folder / LR, "hr": folder / HR}
        elif (folder / LQ).is_dir():
            return {"lr": folder / LQ}
        elif any((folder / entry["name"]).is_file() for entry in manifest["images"]):
            return {"lr": folder}
    return None


def _missing(manifest: dict[str, Any], name: str, where: str, size_bytes: int | None) -> Missing:
    return Missing(
        name=name,
        where=where,
        source=manifest["source"],
        size_bytes=size_bytes,
        licence=manifest["licence"],
        needed_by=f"the test set {manifest['display']}",
        fetch=manifest["name"] if manifest["folders"] else None,
    )


def _paired_names(manifest: dict[str, Any], sides: dict[str, Path]) -> list[str]:
    """File names of a set whose manifest lists none; checks their number, and that both folders have the same names."""
    lr, hr = (
        {path.name for path in find_images(sides[side], recursive=False).images if path.suffix.lower() == ".png"}
        for side in ("lr", "hr")
    )
    if lr != hr or len(lr) != manifest["count"]:
        alone = f"; without a partner: {_some(sorted(lr ^ hr), ', ')}" if lr ^ hr else ""
        raise UserError(
            f"{sides['lr'].parent} holds {len(lr)} images in {LR} and {len(hr)} in {HR}, expected "
            f"{manifest['count']} of the same names in both{alone}. Get the whole set from {manifest['source']}"
        )
    return sorted(lr)


def _size_fault(path: Path, expected: list[int]) -> list[str]:
    from tsd.images import ImageError, picture_size

    try:
        size = picture_size(path)
    except ImageError as error:
        return [str(error)]
    return [] if list(size) == expected else [f"{path}: {size[0]}x{size[1]}, expected {expected[0]}x{expected[1]}"]


def _some(items: list[str], separator: str = "\n  ", most: int = 5) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])
