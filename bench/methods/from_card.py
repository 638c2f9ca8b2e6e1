"""The paper's competitors as rows: each card becomes a method, by what its `run` says."""

from bench.card import Card, cards
from bench.methods.base import MethodSpec
from bench.methods.external import external_spec
from bench.methods.gan import gan_spec
from bench.methods.osediff import osediff_spec
from bench.methods.tsd_rows import release_spec
from bench.tables import TABLES

BUILD = {"tsd-sr": release_spec, "osediff": osediff_spec, "spandrel": gan_spec, "external": external_spec}


def card_spec(card: Card) -> MethodSpec:
    """The row of a card."""
    return BUILD[card.run](card)


def card_specs() -> dict[str, MethodSpec]:
    """The rows of the cards that come with the harness, by name, in the order in which the paper's tables have them."""
    order = [row.method for table in TABLES.values() for profile in table.profiles.values() for row in profile.rows]
    known = sorted(cards().values(), key=lambda card: order.index(card.name) if card.name in order else len(order))
    return {card.name: card_spec(card) for card in known}
