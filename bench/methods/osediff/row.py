"""The row of OSEDiff: what it needs, and how it is loaded."""

import functools

from bench.cards.card import Card
from bench.methods.base import MethodSpec, spec_of
from bench.methods.osediff.method import OSEDiffMethod
from bench.methods.osediff.random_model import RandomOSEDiff
from bench.options import RunOptions
from bench.store.store import missing_weights


def osediff_spec(card: Card) -> MethodSpec:
    """The row of a card with `run = "osediff"`."""

    def load(options: RunOptions) -> OSEDiffMethod:
        return (RandomOSEDiff if options.random_weights else OSEDiffMethod)(card, options)

    return spec_of(card, load, functools.partial(missing_weights, card), random_weights=True)
