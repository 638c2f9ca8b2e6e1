"""The rows of the GANs with cards: what they need, and how they are loaded."""

import importlib.util

from bench.cards.card import Card
from bench.methods.base import MethodSpec, spec_of
from bench.methods.spandrel.gan import GanMethod
from bench.methods.spandrel.random_network import RandomGan
from bench.options import RunOptions
from bench.store.missing import Missing, Obstacle
from bench.store.store import missing_weights
from tsd.errors import UserError

EXTRA_PACKAGE = "spandrel_extra_arches"
IN_EXTRA_PACKAGE = ("FeMaSR",)  # of the architectures that cards name


def gan_spec(card: Card) -> MethodSpec:
    """The row of a card with `run = "spandrel"`."""

    def load(options: RunOptions) -> GanMethod:
        obstacles = _obstacles(card)
        if obstacles:
            raise UserError("\n".join(obstacle.line() for obstacle in obstacles))
        return (RandomGan if options.random_weights else GanMethod)(card, options)

    def missing(options: RunOptions) -> list[Missing | Obstacle]:
        return [*missing_weights(card, options), *_obstacles(card)]

    tiles = card.network is not None and not card.network.padding  # FeMaSR's own code makes tiles
    return spec_of(card, load, missing, random_weights=True, tiles=tiles)


def _obstacles(card: Card) -> list[Obstacle]:
    """Names the package that the architecture needs, if it is not installed."""
    architecture = card.network.architecture if card.network else ""
    if architecture not in IN_EXTRA_PACKAGE or importlib.util.find_spec(EXTRA_PACKAGE) is not None:
        return []
    return [
        Obstacle(
            card.display,
            f"needs the package {EXTRA_PACKAGE}, kept apart for its architectures' licences ({architecture}: "
            f"{card.licence}): `pip install {EXTRA_PACKAGE}`",
        )
    ]
