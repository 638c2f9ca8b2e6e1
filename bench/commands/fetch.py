"""`bench fetch`: downloads what metrics, test sets and methods need and this project cannot ship."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.fetch.item import Item
    from bench.options import RunOptions

EPILOG = """\
examples:
  bench fetch --list                                 every NAME with its size, licence and state
  bench fetch lpips musiq                            weights of two metrics
  bench fetch metrics                                weights of all metrics
  bench fetch realsr --data-root data --accept-license
  bench fetch sinsr resshift --weights-root weights --accept-license
  bench fetch card:mine.toml --weights-root weights  a card of your own
  bench fetch ldl --weights-root weights             to record the hash of a file fetched by hand

Weights of metrics go to $TORCH_HOME/hub (default: ~/.cache/torch/hub), where pyiqa and torchvision
look for them. After an interruption the same command continues. Hashes are checked before a file
gets its name. If nobody publishes the hash of a file, the hash of the first one found is recorded
in the store (hashes.json), and any other file is refused from then on.

exit status: 0 if everything is here; 1 if something remains to be done by hand; 2 if a download
failed or a licence has to be accepted
"""
ALL_METRICS = "metrics"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "fetch",
        help="download what a metric, a test set or a method needs",
        description="Downloads what a metric, a test set or a method needs and what is not here yet. Published\n"
        "outputs and shared base models have names of their own; --list shows every NAME.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="what to fetch; `metrics` stands for the weights of all metrics"
    )
    parser.add_argument("--list", action="store_true", help="list what can be fetched, and fetch nothing")
    parser.add_argument(
        "--accept-license", action="store_true", help="you have read and accept the licences of what you name"
    )
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="where test sets go (default: $TSD_DATA)")
    parser.add_argument(
        "--weights-root", type=Path, metavar="DIR", help="where weights go (default: $TSD_WEIGHTS, else ./weights)"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    from bench.fetch.items import items
    from bench.options import RunOptions
    from tsd.errors import UserError

    options = RunOptions(data_root=args.data_root, weights_root=args.weights_root)
    known = items() | _cards_by_path(args.names)
    if args.list:
        for item in known.values():
            _show(item, options)
        return 0
    if not args.names:
        raise UserError(f"name what to fetch: {ALL_METRICS}, {', '.join(known)} (`bench fetch --list` says more)")
    wanted = [known[name] for name in _names(args.names, known)]
    pending = [item for item in wanted if item.missing(options)]
    restricted = [item for item in wanted if item.restricted and (item in pending or item.unknown(options))]
    refused = [] if args.accept_license else restricted
    if refused:
        lines = [f"  {item.name}: {item.licence}" for item in refused]
        raise UserError("\n".join(["read these licences, then repeat the command with --accept-license:", *lines]))
    failures = []
    for item in wanted:
        try:
            if item in pending and item.get is not None:
                print(f"{item.name}: {item.summary} ({item.licence})")
                item.get(options)
            for line in item.record_first_hashes(options):
                print(f"  {line}")
        except UserError as error:  # the other items are still fetched
            failures.append(str(error))
            if not item.missing(options):
                print(f"{item.name}: not to be used as it is")
                continue
        _show_state(item, options)
    if failures:
        raise UserError("\n".join(failures))
    return 1 if any(item.missing(options) for item in wanted) else 0


def _cards_by_path(asked: list[str]) -> "dict[str, Item]":
    """The items of cards that were given by path, by the argument as it was typed.

    Raises:
        UserError: no such card, or it has nothing to fetch.
    """
    from bench.cards.card import read_card
    from bench.fetch.weights import card_item
    from tsd.errors import UserError

    found = {}
    for name in asked:
        form, colon, path = name.partition(":")
        if colon and form == "card":
            card = read_card(Path(path).expanduser())
            if not card.weights:
                raise UserError(f"{name} names no weights: there is nothing to fetch")
            found[name] = card_item(card)
    return found


def _names(asked: list[str], known: "dict[str, Item]") -> list[str]:
    """The names that were asked for, without repetition; `metrics` stands for all of them.

    Raises:
        UserError: an unknown name.
    """
    from bench.metrics import METRICS
    from tsd.errors import UserError, nearest

    names = [name for ask in asked for name in ([n for n in METRICS if n in known] if ask == ALL_METRICS else [ask])]
    for name in names:
        if name in METRICS and name not in known:
            raise UserError(f"{name} needs no weights that are not here: there is nothing to fetch")
        if name not in known:
            near = nearest(name, [*known, ALL_METRICS])
            hint = f", did you mean {near}?" if near else "."
            raise UserError(f"nothing called {name!r} to fetch{hint} Known: {ALL_METRICS}, {', '.join(known)}")
    return list(dict.fromkeys(names))


def _show(item: "Item", options: "RunOptions") -> None:
    from tsd.files import human_size

    state = "missing" if item.missing(options) else "here"
    about = ", ".join(fact for fact in (human_size(item.size_bytes), item.licence) if fact)
    print(f"{item.name:<18} {state:<8} {item.summary}\n{'':<27} {about}")


def _show_state(item: "Item", options: "RunOptions") -> None:
    missing = item.missing(options)
    if not missing:
        print(f"{item.name}: here")
        return
    print(f"{item.name}: {item.by_hand or 'still missing'}")
    for part in missing:
        print(f"  {part.line()}")
