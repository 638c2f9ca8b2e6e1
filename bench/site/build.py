"""Builds a site: reads the runs, says how large it will be, and writes it whole or not at all."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.site.cards import card_of
from bench.site.collection import Collection, collect
from bench.site.leaderboard import boards_of
from bench.site.originals import Originals, bytes_of, copied_to, originals_of
from bench.site.overview import pages_of
from bench.site.page import MARK, Images, address, render
from bench.site.pictures import Job, Pictures, check_size, estimate_bytes, jobs_of, make, missing_flip
from bench.site.timings import Timings
from tsd.errors import UserError
from tsd.files import human_size, require_room, require_writable, write_atomic

BASE64 = 4 / 3
FOLDER_MB, FILE_MB = 1000, 100
"""The most that a site of a folder, or of a single file, may take unless asked for."""


@dataclass(frozen=True)
class SiteRequest:
    """What a site is made of.

    Attributes:
        runs: output folders of `bench run`.
        out: the folder to write, or with `single_file` the HTML file.
        images: how many images of each test set are shown; None for all, 0 for none.
        quality: of the previews, 1 to 100; None for exact pixels.
        max_mb: the most that the pictures may take; None for `FOLDER_MB` or `FILE_MB`.
        flip: whether there are FLIP maps of the outputs against their ground truths.
        originals: what is done with the files of the images: "" nothing, "link" or "copy".
        timings: seconds of `bench latency`, for quality against seconds.
        labels: what runs are called whose folders' own names say nothing.
    """

    runs: tuple[Path, ...]
    out: Path
    single_file: bool = False
    images: int | None = None
    quality: int | None = None
    max_mb: int | None = None
    data_root: Path | None = None
    flip: bool = False
    originals: Originals = ""
    timings: tuple[Timings, ...] = ()
    labels: Mapping[Path, str] = field(default_factory=dict)


def build(request: SiteRequest) -> Path:
    """Writes the site; returns the HTML file.

    Raises:
        UserError: no records, something that is no site at `out`, or a site larger than allowed.
    """
    _check_place(request)
    if request.flip and (missing := missing_flip()):
        raise UserError(f"--flip: {missing}")
    if request.originals and request.single_file:
        raise UserError("--originals: a single file cannot lie beside other files; leave out --single-file")
    require_writable(request.out.absolute().parent)
    collection = collect(request.runs, request.data_root, images=request.images != 0, labels=request.labels)
    jobs = [jobs_of(found, request.images) for found in collection.sets] if request.images != 0 else []
    if any(jobs):
        estimated = estimate_bytes(jobs, request.quality, request.flip)
        share = BASE64 if request.single_file else 1.0
        most = request.max_mb if request.max_mb is not None else FILE_MB if request.single_file else FOLDER_MB
        copied = bytes_of(jobs) if request.originals == "copy" else 0
        check_size(jobs, estimated, most * 1_000_000, request.quality, share, request.flip, copied)
        needed = round(estimated * share) + copied
        require_room(request.out.parent, needed, "choose another --out, or fewer --images")
        shown = sum(map(len, jobs))
        beside = f", and {human_size(copied)} of originals" if copied else ""
        size = human_size(round(estimated * share))
        _log(f"pictures of {shown} image{'' if shown == 1 else 's'}, about {size}{beside}")
    if request.single_file:
        made = dict(_pictures(jobs, request))
        write_atomic(request.out, _render(collection, Images(made, request.quality, True), request).encode())
        page = request.out
    else:
        page = _write_folder(request, collection, jobs)
    size = sum(path.stat().st_size for path in ([page] if request.single_file else request.out.rglob("*.*")))
    _log(f"written: {page} ({human_size(size)})")
    for line in _absences(collection):
        _log(line)
    return page


def _check_place(request: SiteRequest) -> None:
    """Only a site is replaced by a site."""
    out = request.out
    if request.single_file:
        if out.suffix not in (".html", ".htm"):
            raise UserError(f"--out {out}: with --single-file it names a file that ends in .html")
        if out.is_dir() or (out.exists() and MARK not in out.read_text(encoding="utf-8", errors="replace")):
            raise UserError(f"--out {out} exists and is not a site of `bench site`; choose another file")
        return
    if out.suffix in (".html", ".htm"):
        raise UserError(f"--out {out} looks like a file; --single-file writes one, otherwise name a folder")
    if out.is_file():
        raise UserError(f"--out {out} is a file; expected a folder")
    page = out / "index.html"
    if out.is_dir() and any(out.iterdir()) and not (page.is_file() and MARK in page.read_text(encoding="utf-8")):
        raise UserError(f"--out {out} exists and is not a site of `bench site`; choose another folder")


def _write_folder(request: SiteRequest, collection: Collection, jobs: Sequence[Sequence[Job]]) -> Path:
    """Writes everything into a folder beside `out`, which then takes its place."""
    out = request.out.absolute()
    fresh, old = (out.with_name(f".{out.name}.{os.getpid()}.{word}") for word in ("new", "old"))
    try:
        fresh.mkdir(parents=True)
        made: dict[tuple[int, int], Pictures] = {}
        for (place, index), pictures in _pictures(jobs, request):
            found = collection.sets[place]
            if request.originals == "copy":
                copied_to(fresh, pictures.job)
            for at, preview in enumerate(pictures.previews):
                if preview is not None:
                    _write(fresh / address(found, index, at), preview)
            for at, (content, _) in pictures.maps.items():
                _write(fresh / address(found, index, at, "flip"), content)
            _write(fresh / address(found, index), pictures.strip)
            previews = tuple(None if preview is None else b"" for preview in pictures.previews)
            maps = {at: (b"", mean) for at, (_, mean) in pictures.maps.items()}
            made[place, index] = replace(pictures, previews=previews, strip=b"", maps=maps)  # the bytes are on disk
        for run in collection.runs:
            shutil.copytree(run.records.root, fresh / "records" / run.folder)
        _write(fresh / "index.html", _render(collection, Images(made, request.quality, False), request).encode())
        if out.exists():
            os.replace(out, old)
        os.replace(fresh, out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return request.out / "index.html"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _pictures(jobs: Sequence[Sequence[Job]], request: SiteRequest) -> Iterator[tuple[tuple[int, int], Pictures]]:
    """The pictures of all sets, by place of the set and of the image."""
    for place, of_set in enumerate(jobs):
        title = f"pictures of {of_set[0].testset}" if of_set else ""
        for pictures in make(of_set, request.quality, title, request.flip):
            yield (place, pictures.job.index), pictures


def _render(collection: Collection, images: Images, request: SiteRequest) -> str:
    for (place, _), pictures in images.made.items():
        for at, fault in pictures.faults.items():
            methods = collection.sets[place].methods
            if at < len(methods):
                methods[at].faults[fault] = methods[at].faults.get(fault, 0) + 1
    cards = [card_of(method) for found in collection.sets for method in found.methods]
    beside = [originals_of(found, request.originals, request.out) for found in collection.sets]
    return render(collection, pages_of(collection), boards_of(collection), cards, images, beside, request.timings)


def _absences(collection: Collection) -> list[str]:
    """What the site does not show, one line each."""
    lines = [found.note for found in collection.sets if found.note]
    for found in collection.sets:
        for method in found.methods:
            lines += [
                f"{method.display} on {found.display}: {count} of {len(found.names)} images not shown, {fault}"
                for fault, count in method.faults.items()
            ]
    return lines


def _log(line: str) -> None:
    print(line, file=sys.stderr)
