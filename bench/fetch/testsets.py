"""Images that go into the data root: test sets, and the outputs that authors published for them."""

import os
import stat
import sys
import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from bench.cards.card import Card, cards
from bench.fetch.item import Item
from bench.methods.published.published import absent_outputs, fetch_published
from bench.options import RunOptions
from bench.store import hub
from bench.store.content import ZIP_ERRORS, bomb_fault
from bench.store.download import HUB, download, mirrored
from bench.testsets.manifest import HR, LQ, LR, TESTSETS, missing_testset, read_manifest
from tsd.errors import UserError
from tsd.files import is_plain_name

TESTSETS_REPO = "Iceclear/StableSR-TestSets"
TESTSETS_ARCHIVE = "StableSR_testsets.zip"
SIDES = {"test_LR": LR, "lq": LR, "test_HR": HR, "gt": HR}
OSEDIFF = "https://raw.githubusercontent.com/cswry/OSEDiff/fcc4f09c7ed66a9bc0ba9433940d76b343142426/preset/datasets"
OSEDIFF_MIRRORS = {"realsr": "benchmark_realsr", "drealsr": "benchmark_drealsr"}


def testset_items() -> list[Item]:
    """Every test set under its name; the images of `mini` are in the repository."""
    return [_testset_item(name) for name in TESTSETS if name != "mini"]


def published_items() -> list[Item]:
    """The published outputs that cards know of, under "METHOD-published"."""
    return [_published_item(card) for card in cards().values() if card.published]


def _testset_item(name: str) -> Item:
    manifest, _ = read_manifest(name)
    unit = "pairs" if manifest.get("reference", True) else "images without ground truth"
    return Item(
        name=name,
        summary=f"test set {manifest['display']}, {manifest['count']} {unit}: {manifest['source']}",
        licence=manifest["licence"],
        size_bytes=manifest.get("bytes"),
        restricted=True,
        missing=lambda options: missing_testset(name, options.data_root),
        get=partial(_get_testset, name),
    )


def _published_item(card: Card) -> Item:
    sets = ", ".join(published.testset for published in card.published)

    def get(options: RunOptions) -> None:
        _data_root(options)
        fetch_published(card, options)

    return Item(
        name=f"{card.name}-published",
        summary=f"{card.display}'s published outputs for {sets}, from its repository",
        licence=card.licence,
        size_bytes=None,
        restricted=bool(card.restriction),
        missing=partial(absent_outputs, card),
        get=get,
    )


def _data_root(options: RunOptions) -> Path:
    if options.data_root is None and not os.environ.get("TSD_DATA"):
        raise UserError("say where test sets are to be kept: --data-root DIR, or the variable TSD_DATA")
    return options.data()


def _get_testset(name: str, options: RunOptions) -> None:
    """Fetches one test set.

    The hub has one archive of all sets. It is read in place, so that only this set's folder is transferred. Where the
    hub cannot be reached, RealSR and DRealSR come from the copies in the OSEDiff repository. Sets without
    ground truth come image by image from the repository that publishes them.
    """
    manifest, _ = read_manifest(name)
    target = _data_root(options) / manifest["folders"][0]
    if "address" in manifest:
        for entry in manifest["images"]:
            path = target / LQ / entry["name"]
            if not path.is_file():
                download([f"{manifest['address']}/{entry['name']}"], path, entry["lr_sha256"])
        return
    try:
        _from_hub(manifest["hub"]["folder"], target)
    except UserError as error:
        if name not in OSEDIFF_MIRRORS:
            raise
        print(f"{error}\n{name}: trying the copies at {OSEDIFF}", file=sys.stderr)
        for entry in manifest["images"]:
            for side, digest in ((LR, entry["lr_sha256"]), (HR, entry["hr_sha256"])):
                path = target / side / entry["name"]
                if not path.is_file():
                    download([f"{OSEDIFF}/{OSEDIFF_MIRRORS[name]}/{side}/{entry['name']}"], path, digest)


def _from_hub(folder: str, target: Path) -> None:
    hub.check_online()
    try:
        with _open_hub_archive() as archive:
            extract_testset(archive, folder, target)
    except UserError:
        raise
    except Exception as error:  # while it reads, the hub's client raises whatever its transport raises
        raise UserError(f"hf:datasets/{TESTSETS_REPO}: {error}; the same command continues") from error


def _open_hub_archive() -> IO[bytes]:
    from huggingface_hub import HfFileSystem

    files = HfFileSystem(endpoint=mirrored(HUB))
    return cast(IO[bytes], files.open(f"datasets/{TESTSETS_REPO}/{TESTSETS_ARCHIVE}", "rb"))


def extract_testset(archive: IO[bytes], folder: str, target: Path) -> None:
    """Writes the images of `folder` in a zip file into `target`/test_LR and `target`/test_HR.

    Only the last component of a member's path is used, so that no archive can write elsewhere. An image that is
    there with the size of the archive's is left alone; zipfile checks the CRC of every other.

    Raises:
        UserError: the archive is damaged, cannot be read, has no such folder, or has something else in it than files:
            links, or data that unpacks to hundreds of times its size.
    """
    from tsd.console.progress import Progress

    try:
        with zipfile.ZipFile(archive) as content:
            members = [(member, path) for member in content.infolist() if (path := _place(member, folder, target))]
            if not members:
                raise UserError(f"the archive has no images in a folder {folder}/; it has changed")
            if fault := bomb_fault(content, archive.seek(0, os.SEEK_END)):
                raise UserError(f"not unpacked: {fault}")
            for member, path in Progress(members, desc=target.name, unit="file"):
                if path.is_file() and path.stat().st_size == member.file_size:
                    continue
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise UserError(f"not unpacked: {member.filename} is a link; expected files alone")
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                data = content.read(member)
                if len(data) != member.file_size:
                    raise zipfile.BadZipFile(f"{member.filename} has {len(data)} bytes, expected {member.file_size}")
                part.write_bytes(data)
                os.replace(part, path)
    except UserError:
        raise
    except ZIP_ERRORS as error:
        raise UserError(f"the archive of test sets could not be read: {error}; the same command continues") from error


def _place(member: zipfile.ZipInfo, folder: str, target: Path) -> Path | None:
    parts = PurePosixPath(member.filename).parts
    if len(parts) < 3 or parts[-3] != folder or parts[-2] not in SIDES:
        return None
    if member.is_dir() or not is_plain_name(parts[-1]):
        return None
    return target / SIDES[parts[-2]] / parts[-1]
