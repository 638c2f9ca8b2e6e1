"""A competitor's card: everything the harness knows about one published method, as data.

A card is a TOML file, `bench/cards/NAME.toml` or any `card:PATH.toml`: who wrote the method, under what licence, which
commit and weights make the paper's row, and how it is run. CONTRIBUTING.md walks through one. Keys are checked
strictly, since a misspelt key would be a setting that silently does not apply.

Weights that several methods share (base models, taggers) are described once, in `bench/cards/assets.toml`, and named
by their key.
"""

import difflib
import functools
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.errors import UserError

CARDS = Path(__file__).parent / "cards"
ASSETS = "assets.toml"
RUNS = ("tsd-sr", "osediff", "spandrel", "external")
SEEDINGS = ("image", "none", "deterministic")
PLACEHOLDERS = ("lr", "sr", "weights", "seed")


@dataclass(frozen=True)
class Weight:
    """One file of the weight store, or one folder of it (a name that ends in "/").

    Attributes:
        file: where it lies under the store, with "/" as separator; a folder's name ends in "/".
        urls: addresses in the order to be tried.
        hub: places on the Hugging Face hub in the order to be tried: "owner/name" for a folder, "owner/name:path" for
            a file, both with "@revision" after the name where it is pinned.
        manual: for what only a browser can fetch: where it is and what to do with it; empty where a program can.
        contains: of a folder, the files that must be there; from the hub only these are fetched. Where a browser fetches
            it, "*" may stand for what is not known of their names.
        size_bytes, sha256: as published, or as found by others (`sha256_source` says by whom); None where nobody
            states them: then the first fetch records the hash in the store, and any other content is refused after.
        git_sha1: of a file that lies in a git repository, its blob's id there, instead of `sha256`.
        hashes: of a folder, sha256 by the file's path inside.
        licence: where it differs from the card's.
        restriction: what that licence forbids, or that the file is gated; empty where nothing.
    """

    file: str
    urls: tuple[str, ...] = ()
    hub: tuple[str, ...] = ()
    manual: str = ""
    contains: tuple[str, ...] = ()
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_source: str = ""
    git_sha1: str | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    restriction: str = ""

    @property
    def is_folder(self) -> bool:
        return self.file.endswith("/")


@dataclass(frozen=True)
class Network:
    """How spandrel loads the network (`run = "spandrel"`).

    Attributes:
        file: the weight file, one of the card's.
        key: the entry of the checkpoint that holds the parameters ("params", "params_ema"); "" where the file is the
            state dict itself.
        architecture, parameters: what spandrel must find.
        padding: "" or "femasr", the mirror padding of FeMaSR's own test code.
        drop: prefixes of parameters in the file that the network does not have, as its authors leave them out too.
    """

    file: str
    architecture: str
    parameters: int
    key: str = ""
    padding: str = ""
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    """The pins that `uv` builds an environment from.

    Attributes:
        python: version of the interpreter, "3.10".
        requirements: as for `uv pip install`, every direct dependency pinned.
        before: "2024-02-01": what the pins leave open is taken from what was published before that day
            (`uv --exclude-newer`), so that the environment stays the one its authors had; empty for no bound.
        note: where the pins differ from the repository's own statement, and why.
    """

    python: str
    requirements: tuple[str, ...]
    before: str = ""
    note: str = ""


@dataclass(frozen=True)
class Command:
    """How the repository's own script is run over a folder, with the checkout as working directory.

    In `arguments` and `variables`, {lr} is the folder of inputs (PNG), {sr} an empty folder for outputs, {weights} the
    weight store, {seed} the run's seed. The script is run by the environment's Python.

    Attributes:
        arguments: script and arguments.
        outputs: pattern of an image's output under {sr}, with {name} for the stem of its input: "{name}.png",
            "sample00/{name}.png", "{name}_0.png"; "*" may stand for what cannot be known before.
        flags: where the repository's parser declares each flag of `arguments`: "--seed" = "test.py:31".
        ignore: patterns of further files that the script leaves under {sr}.
        variables: environment variables.
        links: path in the checkout -> file or folder of the store that must lie there.
        upscale: "" where the script takes the input as it is, "bicubic" where it expects it already enlarged x4.
        lr_size: the only input size (width, height) it handles; None for any.
        cuda: whether it needs an NVIDIA GPU.
        startup_seconds, seconds_per_image: generous bounds, from which the time limit is made.
    """

    arguments: tuple[str, ...]
    outputs: str
    flags: Mapping[str, str]
    ignore: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    upscale: str = ""
    lr_size: tuple[int, ...] | None = None
    cuda: bool = True
    startup_seconds: int = 900
    seconds_per_image: int = 60


@dataclass(frozen=True)
class Patch:
    """A small change to the checkout: `find`, which must stand in `file` exactly once, becomes `replace`."""

    file: str
    find: str
    replace: str
    reason: str


@dataclass(frozen=True)
class Published:
    """Outputs that the authors published for one test set.

    Attributes:
        source: a folder of the repository at the card's commit, or where they are, as an address or in words.
        suffix: what follows the image's name in their file names ("_BSRGAN").
        images_sha256: over the lines "<sha256>  <name>" of all images; None where it is not known.
    """

    testset: str
    source: str
    suffix: str = ""
    images_sha256: str | None = None


@dataclass(frozen=True)
class Card:
    """One method.

    Attributes:
        name: on the command line and in records; the card's file name.
        display, steps, kind, summary: as in `bench.methods.base.MethodSpec`.
        run: "tsd-sr", "osediff", "spandrel" (these three in process) or "external" (the official repository in an
            environment of its own).
        licence: of the code and, where nothing else is said, of the weights.
        restriction: what the licence forbids ("noncommercial"); empty where nothing. Weights of such a method are
            fetched only with `--accept-license`.
        citation: authors, title, venue, arXiv number.
        repository, commit: the official code.
        settings: what makes it the paper's row, and what the tables leave open; one line each.
        verified: how the card was last checked, with the date.
        seeding: "image" where every image is made from a seed of its own (by the script, or by a patch that calls
            `bench_seed`), "deterministic" where no random number is drawn, "none" where the seed cannot be set.
        assets: keys of `assets.toml`; `weights` holds those files too once the card is read.
    """

    name: str
    display: str
    steps: int
    kind: str
    run: str
    summary: str
    licence: str
    citation: str
    repository: str
    commit: str
    verified: str
    seeding: str
    restriction: str = ""
    settings: tuple[str, ...] = ()
    assets: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()
    network: Network | None = None
    environment: Environment | None = None
    command: Command | None = None
    patches: tuple[Patch, ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def argument(self) -> str:
        """What commands take for it: its name, or "card:" and its file; without folder, as reasons are published."""
        return self.name if cards().get(self.name) == self else f"card:{self.name}.toml"


def read_card(path: Path) -> Card:
    """The card in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key, a missing one, a value of the wrong type, or parts that do
            not fit together; names the file and the key.
    """
    raw = _read_toml(path)
    if "name" in raw:
        raise UserError(f"{path}: `name` is the file's name ({path.stem!r}) and is not written in the card")
    card = _build(Card, {"name": path.stem, **raw}, str(path))
    known = assets()
    for asset in card.assets:
        if asset not in known:
            raise UserError(f"{path}: no shared asset {asset!r}{_hint(asset, known)}; {ASSETS} has {', '.join(known)}")
    card = replace(card, weights=(*card.weights, *(known[asset] for asset in card.assets)))
    faults = list(_faults(card))
    if faults:
        raise UserError(f"{path}: " + "; ".join(faults))
    return card


@functools.cache
def assets() -> dict[str, Weight]:
    """Weights that several methods share, by their key in `assets.toml`."""
    path = CARDS / ASSETS
    return {key: _build(Weight, value, f"{path}, [{key}]") for key, value in _read_toml(path).items()}


@functools.cache
def cards() -> dict[str, Card]:
    """The cards that come with the harness, by name."""
    found = [read_card(path) for path in sorted(CARDS.glob("*.toml")) if path.name != ASSETS]
    return {card.name: card for card in found}


def _faults(card: Card) -> typing.Iterator[str]:
    """What does not fit together in a card whose keys and types are right."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", card.name):
        yield f"the file name {card.name!r} cannot be a method's name: use small letters, digits, '.', '_' and '-'"
    if card.run not in RUNS:
        yield f"run = {card.run!r}; expected one of {', '.join(RUNS)}"
    if card.seeding not in SEEDINGS:
        yield f"seeding = {card.seeding!r}; expected one of {', '.join(SEEDINGS)}"
    if not re.fullmatch(r"[0-9a-f]{40}", card.commit):
        yield f"commit = {card.commit!r}; expected the 40 hex digits of a commit"
    files = {weight.file for weight in card.weights}
    for file in files:
        if file.startswith("/") or ".." in file.split("/") or "\\" in file:
            yield f"the weight file {file!r} does not lie in the store"
    if card.run == "spandrel" and (card.network is None or card.network.file not in files):
        yield "run = 'spandrel' needs [network] with the name of one of the card's weight files"
    if card.run == "external":
        if card.environment is None or card.command is None:
            yield "run = 'external' needs [environment] and [command]"
        else:
            if not re.fullmatch(r"(\d{4}-\d{2}-\d{2})?", card.environment.before):
                yield f"before = {card.environment.before!r}; expected a day, like '2024-02-01'"
            yield from _command_faults(card, card.command, files)


def _command_faults(card: Card, command: Command, files: set[str]) -> typing.Iterator[str]:
    for text in (*command.arguments, *command.variables.values()):
        for name in re.findall(r"\{(\w*)\}", text):
            if name not in PLACEHOLDERS:
                yield f"unknown placeholder {{{name}}} in {text!r}; known are {{{'}, {'.join(PLACEHOLDERS)}}}"
    for needed in ("{lr}", "{sr}"):
        if not any(needed in argument for argument in command.arguments):
            yield f"the command never names {needed}"
    if "{name}" not in command.outputs:
        yield f"outputs = {command.outputs!r} has no {{name}}: images are matched by name, never by order"
    for flag in used_flags(command):
        if flag not in command.flags:
            yield f"[command.flags] does not say where the repository declares {flag}"
    for flag, place in command.flags.items():
        if not re.fullmatch(r"[^:]+:\d+", place):
            yield f"flags: {flag} = {place!r}; expected FILE:LINE"
    for source in command.links.values():
        if source not in files and f"{source}/" not in files:
            yield f"links: {source!r} is no weight of the card"
    if command.upscale not in ("", "bicubic"):
        yield f"upscale = {command.upscale!r}; expected '' or 'bicubic'"
    if command.lr_size is not None and len(command.lr_size) != 2:
        yield f"lr_size = {list(command.lr_size)}; expected [width, height]"
    if card.seeding == "image" and not any("bench_seed" in patch.replace for patch in card.patches):
        yield "seeding = 'image' needs a patch that calls bench_seed"


def used_flags(command: Command) -> list[str]:
    """The flags among a command's arguments, without their values."""
    return [argument.split("=")[0] for argument in command.arguments if re.match(r"--?[A-Za-z]", argument)]


T = TypeVar("T")


def _build(cls: type[T], raw: Any, where: str) -> T:
    """A dataclass from a TOML table: its keys only, every value of its type, tables inside likewise."""
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected a table, found {raw!r}")
    hints = typing.get_type_hints(cls)
    members = fields(cls)  # pyright: ignore[reportArgumentType]
    names = [member.name for member in members]
    for key in raw:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}{_hint(key, names)}; known are {', '.join(names)}")
    absent = [m.name for m in members if m.name not in raw and m.default is MISSING and m.default_factory is MISSING]
    if absent:
        raise UserError(f"{where}: {', '.join(absent)} missing")
    return cls(**{key: _value(hints[key], value, f"{where}, {key}") for key, value in raw.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _value(next(option for option in arguments if option is not type(None)), value, where)
    if is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where}: expected a list, found {value!r}")
        return tuple(_value(arguments[0], item, f"{where} {number}") for number, item in enumerate(value, 1))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected a table, found {value!r}")
        return types.MappingProxyType(
            {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
        )
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where}: expected {kind.__name__}, found {value!r}")
    return value


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no card at {path}; expected a TOML file (CONTRIBUTING.md shows one)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error


def _hint(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
