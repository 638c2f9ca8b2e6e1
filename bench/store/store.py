"""The store of weights, `$TSD_WEIGHTS`: every file that a card names is verified before anything loads it.

A file's hash comes from its card, from the hub, or, if nobody publishes one, from the first time that `bench fetch`
found the file. The store keeps the last two kinds in its ledger, `hashes.json`. A file without a known hash is not
loaded.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cards.card import Card, Weight, argument_of
from bench.cards.schema import LEDGER
from bench.provenance import cached_sha256
from bench.store.download import GIT, digest_of
from bench.store.missing import Missing
from tsd.console.progress import Progress
from tsd.errors import UserError
from tsd.files import write_atomic

if TYPE_CHECKING:
    from bench.options import RunOptions


FIRST_USE = "recorded when it was first picked up, since nobody publishes it"
LEFT_OUT = (".cache", ".gitattributes", "README.md")  # files that the hub's client leaves in a folder


@dataclass(frozen=True)
class KnownHash:
    """What a file must hash to.

    Attributes:
        digest: sha256 in hex, or "git:" and the id of a blob.
        by: where the hash comes from, in words.
    """

    digest: str
    by: str


class Store:
    """The folder of weights; it need not exist."""

    def __init__(self, options: "RunOptions") -> None:
        self.root = options.weights()

    def path(self, weight: Weight) -> Path:
        """The path of `weight` in the store, whether it exists or not: that of an alternative if there is one."""
        return self.root / next((name for name in weight.alternatives if (self.root / name).is_file()), weight.file)

    def files(self, weight: Weight) -> list[str]:
        """The files of `weight` that are in the store, as sorted names under the store's folder."""
        path = self.path(weight)
        if not weight.is_folder:
            return [path.relative_to(self.root).as_posix()] if path.is_file() else []
        found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        return sorted(f"{weight.file}{name.as_posix()}" for name in found if name.parts[0] not in LEFT_OUT)

    def absent(self, weight: Weight) -> list[str]:
        """The parts of `weight` that are not in the store. Only looks at file names."""
        path = self.path(weight)
        if not weight.is_folder:
            return [] if path.is_file() else [weight.file]
        if not path.is_dir():
            return [weight.file]
        return [f"{weight.file}{name}" for name in weight.contains if not any(map(Path.is_file, path.glob(name)))]

    def known(self, weight: Weight) -> dict[str, KnownHash]:
        """The known hashes of the files of `weight`, by their names in the store."""
        entries = {name: entry for name, entry in self._ledger().items() if name.startswith(weight.file)}
        by = weight.sha256_source or "published"
        if weight.sha256 is not None:
            entries[weight.file] = KnownHash(weight.sha256, by)
        if weight.git_sha1 is not None:
            entries[weight.file] = KnownHash(GIT + weight.git_sha1, "the repository at the card's commit")
        entries |= {name: KnownHash(digest, "the card") for name, digest in weight.alternatives.items()}
        return entries | {f"{weight.file}{name}": KnownHash(digest, by) for name, digest in weight.hashes.items()}

    def record(self, hashes: Mapping[str, KnownHash]) -> None:
        """Adds hashes to the ledger, by names in the store."""
        entries = self._ledger() | dict(hashes)
        content = {name: {"hash": entry.digest, "by": entry.by} for name, entry in sorted(entries.items())}
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / LEDGER, (json.dumps(content, indent=2) + "\n").encode())

    def unknown(self, weights: Sequence[Weight]) -> list[str]:
        """The files in the store whose hash is not known."""
        return [name for name, known in self._files_with_hashes(weights) if known is None]

    def verify(self, weights: Sequence[Weight], fetch: str) -> tuple[dict[str, str], list[str]]:
        """Hashes every file in the store. Returns the hashes by name, and one line for each wrong file."""
        hashes: dict[str, str] = {}
        faults: list[str] = []
        files = self._files_with_hashes(weights)
        for name, known in Progress(files, "verifying weights", unit="file", delay=2, leave=False):
            hashes[name] = cached_sha256(self.root / name)
            if known is None:
                faults.append(f"{name}: its hash is not known yet; `bench fetch {fetch}` records it")
                continue
            found = digest_of(self.root / name, known.digest)
            if found != known.digest:
                if known.by == FIRST_USE:
                    advice = (
                        f"Put the first one back, or delete its entry in {LEDGER}: `bench fetch {fetch}` records this"
                    )
                else:
                    advice = f"Move it away: `bench fetch {fetch}` gets the right one, or says where it is"
                faults.append(
                    f"{name}: {_short(found)}, expected {_short(known.digest)} ({known.by}): damaged, or another "
                    f"version. {advice}"
                )
        return hashes, faults

    def _files_with_hashes(self, weights: Sequence[Weight]) -> list[tuple[str, KnownHash | None]]:
        """Every file of `weights` that exists: its name in the store, and its known hash or None."""
        found = [(self.files(weight), self.known(weight)) for weight in weights]
        return [(name, known.get(name)) for files, known in found for name in files]

    def _ledger(self) -> dict[str, KnownHash]:
        """The hashes that this store has recorded, by name.

        Raises:
            UserError: the ledger is damaged.
        """
        path = self.root / LEDGER
        if not path.is_file():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {name: KnownHash(entry["hash"], entry["by"]) for name, entry in raw.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and `bench fetch NAME` records the hashes of what is there"
            ) from error


def missing_files(
    weights: Sequence[Weight], options: "RunOptions", *, licence: str, needed_by: str, fetch: str
) -> list[Missing]:
    """One entry for each of `weights` that is not complete in the store. Only looks at file names."""
    store = Store(options)
    return [
        Missing(
            name=", ".join(absent),
            where="; ".join([options.weights_place(weight.file), *(f"{n} serves too" for n in weight.alternatives)]),
            source=source(weight),
            size_bytes=weight.size_bytes,
            licence=weight.licence or licence or None,
            needed_by=needed_by,
            fetch=fetch if weight.urls or weight.hub else None,
        )
        for weight in weights
        if (absent := store.absent(weight))
    ]


def missing_weights(card: Card, options: "RunOptions") -> list[Missing]:
    """One entry for each of the card's weights that is not complete in the store. Only looks at file names."""
    return missing_files(card.weights, options, licence=card.licence, needed_by=card.display, fetch=argument_of(card))


def source(weight: Weight) -> str:
    """Where a file comes from: its addresses, or what a person has to do."""
    return " or ".join([*weight.urls, *(f"hf:{place}" for place in weight.hub)]) or weight.manual


def verified_weights(card: Card, options: "RunOptions") -> dict[str, str]:
    """sha256 of every weight file of the card, by its name in the store.

    Raises:
        UserError: a file is missing, its hash is not the known one, or no hash is known.
    """
    return verified_files(card.weights, options, licence=card.licence, needed_by=card.display, fetch=argument_of(card))


def verified_files(
    weights: Sequence[Weight], options: "RunOptions", *, licence: str, needed_by: str, fetch: str
) -> dict[str, str]:
    """sha256 of every file of `weights`, by its name in the store; see `verified_weights`."""
    absent = missing_files(weights, options, licence=licence, needed_by=needed_by, fetch=fetch)
    if absent:
        raise UserError("\n".join(item.line() for item in absent))
    hashes, faults = Store(options).verify(weights, fetch)
    if faults:
        raise UserError(f"weights of {needed_by} are not used:\n  " + "\n  ".join(faults))
    return hashes


def _short(digest: str) -> str:
    return f"git blob {digest.removeprefix(GIT)[:12]}…" if digest.startswith(GIT) else f"sha256 {digest[:16]}…"
