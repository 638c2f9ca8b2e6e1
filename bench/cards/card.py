"""A competitor's card: everything the harness knows about one published method, as data.

A card is a TOML file, `bench/cards/NAME.toml` or any `card:PATH.toml`: who wrote the method, under what licence, which
commit and weights make the paper's row, and how it is run. `bench/cards/schema.py` documents every key, and
CONTRIBUTING.md walks through one. Keys are checked strictly, since a misspelt key would be a setting that silently does
not apply.

Weights that several methods share (base models, taggers) are described once, in `bench/cards/assets.toml`, and named
by their key. A variant of a method says `like = "NAME"` and only what differs: its keys replace the other card's, its
patches come after them.
"""

import difflib
import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.cards.faults import faults
from bench.cards.schema import Card, Command, Environment, Network, Patch, Published, Weight
from tsd.errors import UserError

__all__ = [
    "CARDS",
    "Card",
    "Command",
    "Environment",
    "Network",
    "Patch",
    "Published",
    "Weight",
    "argument_of",
    "assets",
    "cards",
    "read_card",
]

CARDS = Path(__file__).parent
ASSETS = "assets.toml"


def read_card(path: Path) -> Card:
    """Reads the card in a TOML file.

    Raises:
        UserError: no such file, not TOML, an unknown key, a missing one, a value of the wrong type, or parts that do
            not fit together; names the file and the key.
    """
    raw = _with_inherited_keys(path, _read_toml(path))
    if "name" in raw:
        raise UserError(f"{path}: `name` is the file's name ({path.stem!r}) and is not written in the card")
    card = _build(Card, {"name": path.stem, **raw}, str(path))
    known = assets()
    for asset in card.assets:
        if asset not in known:
            raise UserError(f"{path}: no shared asset {asset!r}{_hint(asset, known)}; {ASSETS} has {', '.join(known)}")
    card = replace(card, weights=(*card.weights, *(known[asset] for asset in card.assets)))
    found = list(faults(card))
    if found:
        raise UserError(f"{path}: " + "; ".join(found))
    return card


def _with_inherited_keys(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Completes a card that is `like` another: its own keys count, and its patches come after the other's.

    The outputs that the other's authors published are left out: they are not this method's.
    """
    if "like" not in raw:
        return raw
    name = raw.pop("like")
    beside = {file.stem for file in path.parent.glob("*.toml")}
    if not isinstance(name, str) or name not in beside - {path.stem}:
        raise UserError(f"{path}: like = {name!r}; expected the name of a card beside this one")
    other = _read_toml(path.with_name(f"{name}.toml"))
    if "like" in other:
        raise UserError(f"{path}: like = {name!r}, which is itself like {other['like']!r}; expected a whole card")
    other.pop("published", None)
    patches = [*other.get("patches", ()), *raw.get("patches", ())]
    return other | raw | ({"patches": patches} if patches else {})


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


def argument_of(card: Card) -> str:
    """Returns what commands take for a card: its name, or "card:" and the file's name.

    The folder is left out, since reasons that name a card are published.
    """
    return card.name if cards().get(card.name) == card else f"card:{card.name}.toml"


T = TypeVar("T")


def _build(cls: type[T], raw: Any, where: str) -> T:
    """Makes a dataclass of a TOML table and of the tables in it. Keys must be known, and values of their types."""
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
    except OSError as error:
        raise UserError(f"{path} cannot be read as a card: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own error, bytes that are no text, endless digits
        raise UserError(f"{path} is not TOML: {error}") from error


def _hint(name: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
