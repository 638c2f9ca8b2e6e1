"""What a reader of the page may ask about a method: licence, origin, weights with their hashes, settings, machine."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bench.methods import METHODS
from bench.site.collection import Shown

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class MethodCard:
    """One method of one run. `groups` are (heading, facts), each fact a name and a text."""

    display: str
    run: str
    groups: tuple[tuple[str, Facts], ...]


def card_of(shown: Shown) -> MethodCard:
    """The card of a method, from its records and, where this version knows the method, from its specification."""
    provenance = dict(shown.restoration.provenance) if shown.restoration else {}
    environments = shown.restoration.environments if shown.restoration else {}
    about: Facts = [("Name in records", shown.name), *_specification(shown.name)]
    about += [("Remark", str(remark)) for remark in provenance.pop("remarks", ())]
    if shown.restoration:
        about.append(("Seed of the run", str(shown.restoration.seed)))
    weights = provenance.pop("weights", None)
    groups = [("Method", about)]
    if weights:
        groups.append(("Weights (SHA-256)", list(_flat(weights))))
    if provenance:
        groups.append(("Settings", list(_flat(provenance))))
    groups += [("Measured on", list(_flat(content))) for content in environments.values()]
    return MethodCard(shown.display, shown.run.label, tuple(groups))


def _specification(name: str) -> Facts:
    spec = METHODS.get(name)
    if spec is None:
        return [("Licence", "not known to this version: a method of the user's own")]
    facts = [("What it is", spec.summary), ("Licence", spec.licence), ("Licence forbids", spec.restriction)]
    if spec.card is not None:
        facts += [("Citation", spec.card.citation), ("Repository", spec.card.repository), ("Commit", spec.card.commit)]
        facts += [("Setting of the row", line) for line in spec.card.settings]
    facts.append(("Last verified", spec.verified))
    return [(title, text) for title, text in facts if text]


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON as (path, text)."""
    if isinstance(content, Mapping) and content:
        for key, value in content.items():
            yield from _flat(value, f"{name} / {key}" if name else str(key))
    elif isinstance(content, list) and content:
        yield name, ", ".join(str(item) for item in content)
    else:
        yield name or "value", "none" if content in (None, {}, []) else str(content)
