"""The store of weights, `$TSD_WEIGHTS`: what a card names and lies there is verified before anything loads it.

Three things can vouch for a file: the hash in its card, the hash that the hub states for it, and, for files whose
hash nobody published, the one that `bench fetch` found when it first picked the file up. The last two are kept in
the store's own ledger, `hashes.json`. A file that none of them knows is not loaded.
"""

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bench.card import Card, WeightFile
from bench.errors import UserError
from bench.methods.base import MethodOptions
from bench.missing import Missing
from bench.provenance import sha256_file
from bench.records import write_atomic

LEDGER = "hashes.json"
FIRST_USE = "recorded when first picked up; nobody publishes it"
LEFT_OUT = (".cache", ".gitattributes", ".huggingface", "README.md")  # what the hub's client leaves in a folder


@dataclass(frozen=True)
class Vouched:
    """A hash and who vouches for it."""

    sha256: str
    by: str


class Store:
    """The folder of weights; it need not exist."""

    def __init__(self, options: MethodOptions) -> None:
        self.root = options.weights()

    def path(self, weight: WeightFile) -> Path:
        return self.root / weight.file

    def files(self, weight: WeightFile) -> list[str]:
        """What of `weight` lies in the store: itself, or every file of its folder; names under the store, sorted."""
        path = self.path(weight)
        if not weight.is_folder:
            return [weight.file] if path.is_file() else []
        found = (file for file in path.rglob("*") if file.is_file())
        names = (file.relative_to(path) for file in found)
        return sorted(f"{weight.file}{name.as_posix()}" for name in names if name.parts[0] not in LEFT_OUT)

    def absent(self, weight: WeightFile) -> list[str]:
        """The parts of `weight` that are not there; looks at names only."""
        path = self.path(weight)
        if not weight.is_folder:
            return [] if path.is_file() else [weight.file]
        if not path.is_dir():
            return [weight.file]
        return [f"{weight.file}{pattern}" for pattern in weight.contains or ("*",) if not any(path.glob(pattern))]

    def ledger(self) -> dict[str, Vouched]:
        """The hashes the store vouches for, by name.

        Raises:
            UserError: the ledger is damaged.
        """
        path = self.root / LEDGER
        if not path.is_file():
            return {}
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return {name: Vouched(entry["sha256"], entry["by"]) for name, entry in raw.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}): delete it, and `bench fetch NAME` records the hashes of what is there"
            ) from error

    def vouch(self, hashes: Mapping[str, Vouched]) -> None:
        """Adds to the ledger."""
        entries = self.ledger() | dict(hashes)
        content = {name: {"sha256": entry.sha256, "by": entry.by} for name, entry in sorted(entries.items())}
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.root / LEDGER, (json.dumps(content, indent=2) + "\n").encode())

    def known(self, weight: WeightFile) -> dict[str, Vouched]:
        """What each file of `weight` must hash to, as far as somebody vouches for it."""
        entries = {name: entry for name, entry in self.ledger().items() if name.startswith(weight.file)}
        if weight.sha256 is not None:
            entries[weight.file] = Vouched(weight.sha256, weight.sha256_source or "published")
        return entries


def missing_weights(card: Card, options: MethodOptions) -> list[Missing]:
    """What of the card's weights is not in the store; looks at file names only."""
    store = Store(options)
    found = []
    for weight in card.weights:
        absent = store.absent(weight)
        if absent:
            found.append(
                Missing(
                    name=", ".join(absent),
                    where=options.weights_place(weight.file),
                    source=source(weight),
                    size_bytes=weight.size_bytes,
                    licence=weight.licence or card.licence,
                    needed_by=card.display,
                    fetch=card.name,
                )
            )
    return found


def source(weight: WeightFile) -> str:
    """Where a file comes from, in words: the first address, or what a person has to do."""
    places = [*weight.urls, *(f"hf:{place}" for place in weight.hub)]
    return " or ".join(places) if places else weight.manual


def verified_weights(card: Card, options: MethodOptions) -> dict[str, str]:
    """sha256 of every weight file of the card, by its name in the store.

    Raises:
        UserError: a file is missing, has another content than the one vouched for, or nobody vouches for it.
    """
    absent = missing_weights(card, options)
    if absent:
        raise UserError("\n".join(item.line() for item in absent))
    store = Store(options)
    hashes: dict[str, str] = {}
    faults: list[str] = []
    for weight, name in tqdm(
        list(_files(store, card)), desc="verifying weights", delay=2, leave=False, file=sys.stderr
    ):
        vouched = store.known(weight).get(name)
        found = hash_of(store.root / name)
        if vouched is None:
            faults.append(f"{name}: nobody vouches for it yet; `bench fetch {card.name}` records its hash")
        elif found != vouched.sha256:
            faults.append(
                f"{name}: sha256 {found[:16]}…, expected {vouched.sha256[:16]}… ({vouched.by}): damaged, or another "
                "version. Delete it and fetch it again"
            )
        hashes[name] = found
    if faults:
        raise UserError(f"weights of {card.display} in {store.root} are not used:\n  " + "\n  ".join(faults))
    return hashes


def _files(store: Store, card: Card) -> Iterator[tuple[WeightFile, str]]:
    for weight in card.weights:
        for name in store.files(weight):
            yield weight, name


def hash_of(path: Path) -> str:
    """sha256 of a file, read once per process as long as size and time of change stay the same."""
    status = path.stat()
    return _hash(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    return sha256_file(path)
