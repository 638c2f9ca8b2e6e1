"""The store of weights, `$TSD_WEIGHTS`: what a card names and lies there is verified before anything loads it.

Three things can vouch for a file: the hash in its card, the hash that the hub states for it, and, for files whose
hash nobody published, the one that `bench fetch` found when it first picked the file up. The last two are kept in
the store's own ledger, `hashes.json`. A file that none of them knows is not loaded.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from bench.card import Card, Weight, argument_of
from bench.card_schema import LEDGER
from bench.download import GIT, digest_of
from bench.errors import UserError
from bench.missing import Missing
from bench.provenance import cached_sha256
from bench.records import write_atomic

if TYPE_CHECKING:
    from bench.options import RunOptions


FIRST_USE = "recorded when it was first picked up, since nobody publishes it"
LEFT_OUT = (".cache", ".gitattributes", "README.md")  # what the hub's client leaves in a folder


@dataclass(frozen=True)
class Vouched:
    """A hash (sha256, or "git:" and a blob id) and who vouches for it."""

    digest: str
    by: str


class Store:
    """The folder of weights; it need not exist."""

    def __init__(self, options: "RunOptions") -> None:
        self.root = options.weights()

    def path(self, weight: Weight) -> Path:
        """Where `weight` lies or will lie: at the place of an alternative if that is there."""
        return self.root / next((name for name in weight.alternatives if (self.root / name).is_file()), weight.file)

    def files(self, weight: Weight) -> list[str]:
        """What of `weight` lies in the store: itself, or every file of its folder; names under the store, sorted."""
        path = self.path(weight)
        if not weight.is_folder:
            return [path.relative_to(self.root).as_posix()] if path.is_file() else []
        found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
        return sorted(f"{weight.file}{name.as_posix()}" for name in found if name.parts[0] not in LEFT_OUT)

    def absent(self, weight: Weight) -> list[str]:
        """The parts of `weight` that are not there; looks at names only."""
        path = self.path(weight)
        if not weight.is_folder:
            return [] if path.is_file() else [weight.file]
        if not path.is_dir():
            return [weight.file]
        return [f"{weight.file}{name}" for name in weight.contains if not any(map(Path.is_file, path.glob(name)))]

    def known(self, weight: Weight) -> dict[str, Vouched]:
        """What each file of `weight` must hash to, as far as somebody vouches for it."""
        entries = {name: entry for name, entry in self._ledger().items() if name.startswith(weight.file)}
        by = weight.sha256_source or "published"
        if weight.sha256 is not None:
            entries[weight.file] = Vouched(weight.sha256, by)
        if weight.git_sha1 is not None:
            entries[weight.file] = Vouched(GIT + weight.git_sha1, "the repository at the card's commit")
        entries |= {name: Vouched(digest, "the card") for name, digest in weight.alternatives.items()}
        return entries | {f"{weight.file}{name}": Vouched(digest, by) for name, digest in weight.hashes.items()}

    def vouch(self, hashes: Mapping[str, Vouched]) -> None:
        """Adds to the ledger."""
        entries = self._ledger() | dict(hashes)
        content = {name: {"hash": entry.digest, "by": entry.by} for name, entry in sorted(entries.items())}
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / LEDGER, (json.dumps(content, indent=2) + "\n").encode())

    def unknown(self, weights: Sequence[Weight]) -> list[str]:
        """The files that are there and that nobody vouches for."""
        return [name for name, vouched in self._vouched(weights) if vouched is None]

    def verify(self, weights: Sequence[Weight], fetch: str) -> tuple[dict[str, str], list[str]]:
        """sha256 of every file that is there, by name, and what is wrong with them, one line each."""
        hashes: dict[str, str] = {}
        faults: list[str] = []
        files = self._vouched(weights)
        for name, vouched in tqdm(files, "verifying weights", unit="file", delay=2, leave=False, file=sys.stderr):
            hashes[name] = cached_sha256(self.root / name)
            if vouched is None:
                faults.append(f"{name}: nobody vouches for it yet; `bench fetch {fetch}` records its hash")
                continue
            found = digest_of(self.root / name, vouched.digest)
            if found != vouched.digest:
                if vouched.by == FIRST_USE:
                    advice = (
                        f"Put the first one back, or delete its entry in {LEDGER}: `bench fetch {fetch}` records this"
                    )
                else:
                    advice = f"Move it away: `bench fetch {fetch}` gets the right one, or says where it is"
                faults.append(
                    f"{name}: {_short(found)}, expected {_short(vouched.digest)} ({vouched.by}): damaged, or another "
                    f"version. {advice}"
                )
        return hashes, faults

    def _vouched(self, weights: Sequence[Weight]) -> list[tuple[str, Vouched | None]]:
        """Every file that is there, with what it must hash to, as far as somebody vouches for it."""
        found = [(self.files(weight), self.known(weight)) for weight in weights]
        return [(name, known.get(name)) for files, known in found for name in files]

    def _ledger(self) -> dict[str, Vouched]:
        """The hashes the store vouches for, by name.

        Raises:
            UserError: the ledger is damaged.
        """
        path = self.root / LEDGER
        if not path.is_file():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {name: Vouched(entry["hash"], entry["by"]) for name, entry in raw.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and `bench fetch NAME` records the hashes of what is there"
            ) from error


def missing_files(
    weights: Sequence[Weight], options: "RunOptions", *, licence: str, needed_by: str, fetch: str
) -> list[Missing]:
    """What of `weights` is not in the store; looks at file names only."""
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
    """What of the card's weights is not in the store; looks at file names only."""
    return missing_files(card.weights, options, licence=card.licence, needed_by=card.display, fetch=argument_of(card))


def source(weight: Weight) -> str:
    """Where a file comes from, in words: its addresses, or what a person has to do."""
    return " or ".join([*weight.urls, *(f"hf:{place}" for place in weight.hub)]) or weight.manual


def verified_weights(card: Card, options: "RunOptions") -> dict[str, str]:
    """sha256 of every weight file of the card, by its name in the store.

    Raises:
        UserError: a file is missing, has another content than the one vouched for, or nobody vouches for it.
    """
    return verified_files(card.weights, options, licence=card.licence, needed_by=card.display, fetch=argument_of(card))


def verified_files(
    weights: Sequence[Weight], options: "RunOptions", *, licence: str, needed_by: str, fetch: str
) -> dict[str, str]:
    """As `verified_weights`, of any weights."""
    absent = missing_files(weights, options, licence=licence, needed_by=needed_by, fetch=fetch)
    if absent:
        raise UserError("\n".join(item.line() for item in absent))
    hashes, faults = Store(options).verify(weights, fetch)
    if faults:
        raise UserError(f"weights of {needed_by} are not used:\n  " + "\n  ".join(faults))
    return hashes


def _short(digest: str) -> str:
    return f"git blob {digest.removeprefix(GIT)[:12]}…" if digest.startswith(GIT) else f"sha256 {digest[:16]}…"
