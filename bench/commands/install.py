"""`bench install`: makes the checkouts and environments of methods that run in their official repository."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bench.commands.run import add_environments

if TYPE_CHECKING:
    from bench.cards.card import Card
    from bench.options import RunOptions

EPILOG = """\
examples:
  bench install sinsr resshift           repositories from the network, packages from the index
  bench install sinsr --repo-dir clones  from clones/SinSR, clones/SinSR.git or clones/SinSR.bundle
  bench install card:cards/mine.toml --cache /scratch/bench

`bench run` does the same when it reaches a method. Install beforehand on a machine that has a
network but no GPU. What is already there is checked and kept. uv takes packages from the index in
its own settings (UV_INDEX_URL, ...).

exit status: 0 if everything is ready; 1 if a method could not be installed; 2 for bad input
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "install",
        help="check out the official repositories of methods and build their environments",
        description="Checks out the official repository of each METHOD at its pinned commit, applies the patches of\n"
        "its card, and builds its environment with uv.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="names of `bench list methods`, or card:PATH.toml")
    add_environments(parser)
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="folder of weights (default: $TSD_WEIGHTS, else ./weights)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.cards.card import argument_of
    from bench.methods.external.install import install, is_installed
    from bench.options import RunOptions
    from bench.store.store import missing_weights
    from tsd.errors import UserError

    options = RunOptions(repo_dir=args.repo_dir, cache_root=args.cache, weights_root=args.weights_root)
    cards = list({card.name: card for card in map(_card, args.methods)}.values())
    for card in cards:
        print(_plan(card, options), flush=True)
    states: dict[str, str] = {}
    failed = 0
    for card in cards:
        before = is_installed(card, options)
        try:
            install(card, options)
        except UserError as error:
            states[card.name] = f"failed: {error}"
            failed += 1
            continue
        absent = missing_weights(card, options)
        weights = f"; {len(absent)} weights are missing: `bench fetch {argument_of(card)}`" if absent else ""
        states[card.name] = f"{'ready, as it was' if before else 'ready'}{weights}"
    for name, state in states.items():
        print(f"{name}: {state}")
    return 1 if failed else 0


def _card(name: str) -> "Card":
    """The card of a method that runs in an environment of its own.

    Raises:
        UserError: no such method, or one that runs in process.
    """
    from bench.methods import get_method
    from tsd.errors import UserError

    spec = get_method(name)
    if spec.card is None or spec.how != "own environment":
        raise UserError(f"{name} runs in process or as published outputs: there is nothing to install for it")
    return spec.card


def _plan(card: "Card", options: "RunOptions") -> str:
    """Says in two lines what will be done for a method."""
    from bench.methods.external import environment, repository
    from bench.methods.external.repository import checkout_path

    assert card.environment is not None
    count = len(card.environment.requirements)
    made = repository.is_checked_out(card, options)
    state = "checked out" if made else f"from {_source(card, options)}"
    patches = f", {len(card.patches)} patches" if card.patches else ""
    built = "built" if environment.is_built(card, options) else "to be built"
    return (
        f"{card.name}: {card.repository} at {card.commit[:12]}{patches} -> {checkout_path(card, options)} ({state})\n"
        f"{'':{len(card.name)}}  Python {card.environment.python}, {count} requirements -> "
        f"{environment.environment_path(card, options)} ({built})"
    )


def _source(card: "Card", options: "RunOptions") -> str:
    from bench.methods.external.repository import find_origin
    from tsd.errors import UserError

    try:
        return find_origin(card, options).shown
    except UserError:
        return "--repo-dir, which does not have it"
