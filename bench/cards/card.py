"""A competitor's card: everything the harness knows about one published method, as data.

A card is a TOML file, `bench/cards/NAME.toml` or any `card:PATH.toml`: who wrote the method, under what licence, which
commit and weights make the paper's row, and how it is run. `bench/cards/schema.py` documents every key, and
CONTRIBUTING.md walks through one. Keys are checked strictly, since a misspelt key would be a setting that silently does
not apply.

Weights that several methods share (base models, taggers) are described once, in `bench/cards/assets.toml`, and named
by their key. A variant of a method says `like = "NAME"` and only what differs: its keys replace the other card's, its
patches come after them.
"""

import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.cards.faults import faults
from bench.cards.schema import Card, Command, Environment, Network, Patch, Published, Weight
from tsd.errors import UserError, did_you_mean

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
        UserError: no such file, not TOML, unknown keys, missing ones, values of the wrong type, or parts that do not
            fit together; names the file and every fault with its key.
    """
    raw = _with_inherited_keys(path, _read_toml(path))
    found: list[str] = []
    if "name" in raw:
        found.append(f"`name` is the file's name ({path.stem!r}) and is not written in the card")
    card = _build(Card, {**raw, "name": path.stem}, "", found)
    known = assets()
    for asset in card.assets:
        if asset not in known:
            found.append(f"no shared asset {asset!r}{did_you_mean(asset, known)}; {ASSETS} has {', '.join(known)}")
    card = replace(card, weights=(*card.weights, *(known[asset] for asset in card.assets if asset in known)))
    found += faults(card)
    if found:
        raise UserError(_listed(path, found))
    return card


def _listed(path: Path, found: list[str]) -> str:
    """One fault in one line; several below the path, each in a line of its own."""
    if len(found) == 1:
        return f"{path}: {found[0]}"
    return "\n  ".join([f"{path}: {len(found)} faults", *found])


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
    path, found = CARDS / ASSETS, list[str]()
    read = {key: _build(Weight, value, f"[{key}]", found) for key, value in _read_toml(path).items()}
    if found:
        raise UserError(_listed(path, found))
    return read


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

STAND_INS: dict[str, Any] = {
    "commit": "0" * 40, "run": "tsd-sr", "seeding": "none", "python": "3.10", "arguments": ("{lr}", "{sr}"),
    "outputs": "{name}", "file": "file",
}  # fmt: skip
"""What takes the place of a value that is missing or wrong, so that the rest of the card is looked at as well."""


def _build(cls: type[T], raw: Any, where: str, found: list[str]) -> T:
    """Makes a dataclass of a TOML table and of the tables in it. Keys must be known, and values of their types.

    Faults are added to `found`, with the place in the card before them.
    """
    hints = typing.get_type_hints(cls)
    members = fields(cls)  # pyright: ignore[reportArgumentType]
    names = [member.name for member in members]
    at = f"{where}: " if where else ""
    if not isinstance(raw, dict):
        found.append(f"{at}expected a table, found {raw!r}")
        raw = {}
    else:
        found += [f"{at}unknown key {key!r}{did_you_mean(key, names)}; known are {', '.join(names)}"
                  for key in raw if key not in names]  # fmt: skip
        absent = [m.name for m in members if m.name not in raw and _is_required(m)]
        if absent:
            found.append(f"{at}{', '.join(absent)} missing")
    values: dict[str, Any] = {}
    for member in members:
        if member.name in raw:
            below = f"{where}, {member.name}" if where else member.name
            values[member.name] = _value(hints[member.name], raw[member.name], below, found, _stand_in(member, hints))
        elif _is_required(member):
            values[member.name] = _stand_in(member, hints)
    return cls(**values)


def _is_required(member: Field[Any]) -> bool:
    return member.default is MISSING and member.default_factory is MISSING


def _stand_in(member: Field[Any], hints: Mapping[str, Any]) -> Any:
    """The default of a field; of a required one, a value that is no fault."""
    if member.default is not MISSING:
        return member.default
    if member.default_factory is not MISSING:
        return member.default_factory()
    kind = typing.get_origin(hints[member.name]) or hints[member.name]
    return STAND_INS.get(member.name, {str: "", int: 0, tuple: ()}.get(kind, {}))


def _value(kind: Any, value: Any, where: str, found: list[str], stand_in: Any) -> Any:
    """The value in the type of its field; `stand_in` if it has another, which is a fault."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(option for option in arguments if option is not type(None))
        return _value(inner, value, where, found, stand_in)
    if is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where, found)
    if origin is tuple:
        if not isinstance(value, list):
            found.append(f"{where}: expected a list, found {value!r}")
            return stand_in
        items = [_value(arguments[0], item, f"{where} {number}", found, None) for number, item in enumerate(value, 1)]
        return tuple(item for item in items if item is not None)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            found.append(f"{where}: expected a table, found {value!r}")
            return stand_in
        read = {key: _value(arguments[1], item, f"{where}.{key}", found, None) for key, item in value.items()}
        return types.MappingProxyType({key: item for key, item in read.items() if item is not None})
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found.append(f"{where}: expected {kind.__name__}, found {value!r}")
        return stand_in
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
