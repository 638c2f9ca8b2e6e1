"""The paper's competitors as rows: each card becomes a method, by what its `run` says."""

from bench.card import Card, cards
from bench.methods.base import MethodSpec
from bench.methods.tsd_rows import release_spec


def card_spec(card: Card) -> MethodSpec:
    """The row of a card."""
    build = {"tsd-sr": release_spec}
    return build[card.run](card)


def card_specs() -> dict[str, MethodSpec]:
    """The rows of the cards that come with the harness, by name."""
    return {name: card_spec(card) for name, card in cards().items() if card.run == "tsd-sr"}
