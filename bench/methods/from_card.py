"""The paper's competitors as rows: each card becomes a method, by what its `run` says."""

from bench.card import Card, cards
from bench.methods.base import MethodSpec
from bench.methods.external import external_spec
from bench.methods.gan import gan_spec
from bench.methods.osediff import osediff_spec
from bench.methods.tsd_rows import release_spec

BUILD = {"tsd-sr": release_spec, "osediff": osediff_spec, "spandrel": gan_spec, "external": external_spec}


def card_spec(card: Card) -> MethodSpec:
    """The row of a card."""
    return BUILD[card.run](card)


def card_specs() -> dict[str, MethodSpec]:
    """The rows of the cards that come with the harness, by name."""
    return {name: card_spec(card) for name, card in cards().items()}
