"""Outputs that authors published, as a row `METHOD-published`; nothing is run for it.

The images of test set T lie in <data root>/<folder of T>/METHOD/, where <folder of T> is its name ("realsr") or one of
the names it is published under ("RealSRVal_crop128"). A card says where they come from, how its authors name the
files, and the hash over all of them: an altered folder is an error, never a row. `published:METHOD` is the same for a
method without a card, and for a test set that its card does not know: then only names and sizes can be checked.
"""

import functools
import os
from collections.abc import Mapping
from pathlib import Path

from bench.cards.card import Card, Published
from bench.methods.base import MethodSpec
from bench.methods.published.folder import PublishedOutputs, images_by_stem, sha256_of_files
from bench.options import RunOptions
from bench.store.missing import Missing
from bench.testsets.manifest import folders_of, names_of
from tsd.errors import UserError

GITHUB = "https://github.com/"
RAW = "https://raw.githubusercontent.com/"


def published_specs(cards: Mapping[str, Card]) -> list[MethodSpec]:
    """One spec for every card that lists published outputs."""
    return [published_spec(card.name, card) for card in cards.values() if card.published]


def published_spec(method: str, card: Card | None = None, label: str = "") -> MethodSpec:
    """The row of a method's published outputs.

    Args:
        method: name of the folder inside a test set's folder.
        card: the card that describes them; None if there is none.
        label: the user's own name for the row.
    """
    name = label or f"{method}-published"
    display = label or f"{card.display if card else method} (published)"
    known = card.published if card else ()
    sets = tuple(published.testset for published in known)
    return MethodSpec(
        name=name,
        display=display,
        steps=card.steps if card else None,
        kind="published",
        summary=f"the authors' own images for {', '.join(sets)}" if sets else f"finished images in TESTSET/{method}/",
        licence=card.licence if card else "that of the images",
        restriction=card.restriction if card else "",
        load=functools.partial(_load, method, card, display),
        missing=functools.partial(missing_published, method, card, display),
        testsets=sets or None,
        how="published outputs",
        verified="one hash over all images" if known and all(p.images_sha256 for p in known) else "names and sizes",
        card=card,
    )


def missing_published(method: str, card: Card | None, display: str, options: RunOptions) -> list[Missing]:
    """Names the folder of outputs that is absent.

    Without a test set in `options`, it names all folders of the card, unless one of them is there.
    """
    known = {published.testset: published for published in card.published} if card else {}
    sets = [options.testset] if options.testset is not None else list(known)
    absent = [testset for testset in sets if _folder(method, testset, options) is None]
    if options.testset is None and len(absent) < len(sets):
        return []
    return [_missing(method, card, display, testset, known.get(testset)) for testset in absent]


def absent_outputs(card: Card, options: RunOptions) -> list[Missing]:
    """Names every absent folder of the card's published outputs."""
    display = f"{card.display} (published)"
    return [_missing(card.name, card, display, item.testset, item) for item in _absent(card, options)]


def fetch_published(card: Card, options: RunOptions) -> None:
    """Fetches the card's published outputs that are absent, image by image, from its repository into the data root.

    The images are collected in a folder beside the final one and get its name once the hash over all of them is right.
    The next call continues there.

    Raises:
        UserError: they are not in a GitHub repository, cannot be fetched, or are not the published ones.
    """
    for published in _absent(card, options):
        names = names_of(published.testset)
        if not _in_repository(published) or not card.repository.startswith(GITHUB) or names is None:
            raise UserError(f"{card.name} for {published.testset}: to be fetched by hand from {published.source}")
        base = f"{RAW}{card.repository.removeprefix(GITHUB)}/{card.commit}/{published.source}"
        target = options.data() / published.testset / card.name
        _fetch_images(base, [f"{name}{published.suffix}.png" for name in names], published, target)


def _fetch_images(base: str, files: list[str], published: Published, target: Path) -> None:
    from bench.store.download import download

    part = target.with_name(f"{target.name}.part")
    for file in files:
        if not (part / file).is_file():
            download([f"{base}/{file}"], part / file, None)
    found = sha256_of_files(images_by_stem(part, published.suffix))
    if published.images_sha256 not in (None, found):
        raise UserError(f"the images in {part} are not the published ones (or damaged); delete it and fetch again")
    os.replace(part, target)


def _absent(card: Card, options: RunOptions) -> list[Published]:
    return [item for item in card.published if _folder(card.name, item.testset, options) is None]


def _folder(method: str, testset: str, options: RunOptions) -> Path | None:
    """The folder with a method's images for a test set; None where there is none."""
    candidates = (options.data() / folder / method for folder in folders_of(testset))
    return next((folder for folder in candidates if folder.is_dir()), None)


def _load(method: str, card: Card | None, display: str, options: RunOptions) -> PublishedOutputs:
    testset = options.testset or _only_set(method, card)
    folder = _folder(method, testset, options)
    known = next((item for item in card.published if item.testset == testset), None) if card else None
    if folder is None:
        raise UserError(_missing(method, card, display, testset, known).line())
    if card is None or known is None:
        return PublishedOutputs(folder, testset, suffix=_usual_suffix(card))
    return PublishedOutputs(
        folder, testset, _origin(card, known), known.suffix, known.images_sha256, names_of(testset) or ()
    )


def _only_set(method: str, card: Card | None) -> str:
    if card is None or not card.published:
        raise UserError(f"the published outputs of {method} belong to a test set: name it with --testset")
    return card.published[0].testset


def _usual_suffix(card: Card | None) -> str:
    """The suffix of the authors' file names, for the first test set that the card knows."""
    return card.published[0].suffix if card and card.published else ""


def _origin(card: Card, published: Published) -> dict[str, str]:
    if _in_repository(published):
        return {"repository": card.repository, "commit": card.commit, "path": published.source}
    return {"source": published.source}


def _in_repository(published: Published) -> bool:
    """Whether `source` is a folder of the card's repository, not words or an address."""
    return "://" not in published.source and not any(letter.isspace() for letter in published.source)


def _missing(method: str, card: Card | None, display: str, testset: str, known: Published | None) -> Missing:
    place = f"$TSD_DATA/{testset}/{method}/"
    if known is None or card is None:
        sets = ", ".join(item.testset for item in card.published) if card else ""
        return Missing(
            name=f"published images for {testset}",
            where=f"{place} (this harness knows of {f'those for {sets} only' if sets else 'none'})",
            source="the method's authors, or your own run of it",
            size_bytes=None,
            licence=None,
            needed_by=display,
        )
    by_hand = (
        f"{card.repository} at {card.commit[:7]}, folder {known.source}" if _in_repository(known) else known.source
    )
    return Missing(
        name=f"{testset}/{method}/",
        where=f"{place} (or under --data-root)",
        source=by_hand,
        size_bytes=None,
        licence=card.licence,
        needed_by=display,
        fetch=f"{card.name}-published",
    )
