"""Weights: those of the metrics go into torch's folder, those of the methods into the store.

Every file comes with a hash that it must have: the card's, else the one that the hub states for it. Where nobody
states one, the first hash that is found is recorded, and any other content is refused from then on
(bench/store/store.py).
"""

from collections.abc import Sequence
from functools import partial

from bench.cards.card import Card, Weight, argument_of, assets, cards
from bench.fetch.item import Item
from bench.metrics import EXTRA_METRICS, METRICS, MetricSpec
from bench.options import RunOptions
from bench.provenance import cached_sha256
from bench.store import hub
from bench.store.content import content_fault
from bench.store.download import download
from bench.store.missing import Missing
from bench.store.store import FIRST_USE, KnownHash, Store, missing_files
from tsd.errors import UserError


def metric_items() -> list[Item]:
    """The weights of every metric that needs some beyond those of this package, under the metric's name."""
    specs = (METRICS | EXTRA_METRICS).values()
    return [_metric_item(spec) for spec in specs if any(not file.shipped for file in spec.weights)]


def _metric_item(spec: MetricSpec) -> Item:
    def missing(options: RunOptions) -> list[Missing]:
        return [file.missing(spec.display, spec.name) for file in spec.weights if not file.path().is_file()]

    def get(options: RunOptions) -> None:
        for file in spec.weights:
            if not file.path().is_file():
                download(file.urls, file.path(), file.sha256, size_bytes=file.size_bytes)

    return Item(
        name=spec.name,
        summary=f"weights of {spec.display}: {', '.join(file.name for file in spec.weights)}",
        licence="; ".join(dict.fromkeys(file.licence for file in spec.weights)),
        size_bytes=sum(file.size_bytes or 10_000 for file in spec.weights),
        restricted=False,
        missing=missing,
        get=get,
    )


def weight_items() -> list[Item]:
    """Every card's weights under the card's name, and every shared asset under its key."""
    found = [_asset_item(key, weight) for key, weight in assets().items()]
    return found + [card_item(card) for card in cards().values() if card.weights]


def _asset_item(key: str, weight: Weight) -> Item:
    return _item(key, f"{weight.file}, shared by several methods", weight.licence, (weight,), weight.file)


def card_item(card: Card) -> Item:
    """The weights of a card, whether it comes with the harness or not."""
    summary = f"weights of {card.display}: {', '.join(weight.file for weight in card.weights)}"
    return _item(argument_of(card), summary, card.licence, card.weights, card.display, card.restriction)


def _terms(licence: str, restriction: str, weights: Sequence[Weight]) -> str:
    """Names every licence once, the method's first, each with what it forbids."""
    forbidden = {licence: [restriction] if restriction else []}
    for weight in weights:
        found = forbidden.setdefault(weight.licence or licence, [])
        found += [weight.restriction] if weight.restriction and weight.restriction not in found else []
    return "; ".join(f"{name} ({'; '.join(forbids)})" if forbids else name for name, forbids in forbidden.items())


def _item(
    name: str, summary: str, licence: str, weights: Sequence[Weight], needed_by: str, restriction: str = ""
) -> Item:
    sizes = [weight.size_bytes for weight in weights]
    missing = partial(missing_files, weights, licence=licence, needed_by=needed_by, fetch=name)
    by_hand = [f"{weight.file}: {weight.manual}" for weight in weights if not (weight.urls or weight.hub)]
    return Item(
        name=name,
        summary=summary,
        licence=_terms(licence, restriction, weights),
        size_bytes=sum(size for size in sizes if size is not None) if None not in sizes else None,
        restricted=bool(restriction or any(weight.restriction for weight in weights)),
        missing=missing,
        get=partial(get_weights, weights) if any(weight.urls or weight.hub for weight in weights) else None,
        by_hand="by hand, into the weights folder: " + "; ".join(by_hand) if by_hand else None,
        unknown=lambda options: Store(options).unknown(weights),
        record_first_hashes=partial(record_first_hashes, weights, name),
    )


def get_weights(weights: Sequence[Weight], options: RunOptions) -> None:
    """Fetches those of `weights` that are absent and that a program can fetch, even if some fail.

    Raises:
        UserError: some could not be fetched; says for each what was tried.
    """
    store = Store(options)
    failures = []
    for weight in weights:
        if store.absent(weight) and (weight.urls or weight.hub):
            try:
                _get(store, weight)
            except UserError as error:
                failures.append(str(error))
    if failures:
        raise UserError("\n".join(failures))


def _get(store: Store, weight: Weight) -> None:
    """Fetches one weight from the first of its places that has it with the right content."""
    failures = []
    known = store.known(weight)
    if weight.urls and not weight.is_folder:
        expected = known.get(weight.file)
        try:
            digest = expected.digest if expected else None
            return download(weight.urls, store.path(weight), digest, size_bytes=weight.size_bytes)
        except UserError as error:
            failures.append(str(error))
    for place in weight.hub:
        try:
            hashes = hub.get(place, weight, store.path(weight), {name: entry.digest for name, entry in known.items()})
        except UserError as error:
            failures.append(f"{weight.file}: {error}")
            continue
        store.record({name: KnownHash(digest, f"hf:{place}") for name, digest in hashes.items() if name not in known})
        return None
    hint = f"\nBy hand: {weight.manual}" if weight.manual else ""
    raise UserError("\n".join(failures) + hint)


def record_first_hashes(weights: Sequence[Weight], name: str, options: RunOptions) -> list[str]:
    """Verifies the files that are there and records the hashes that were not known.

    Returns:
        One line for each hash that was recorded.

    Raises:
        UserError: a file's hash is not the known one, or a file without one is not what its name says.
    """
    store = Store(options)
    lines = []
    sizes = {weight.file: weight.size_bytes for weight in weights if not weight.is_folder}
    unknown = store.unknown(weights)
    found = {file: content_fault(store.root / file, file, sizes.get(file)) for file in unknown}
    if faults := [f"{file} is {fault}" for file, fault in found.items() if fault]:
        raise UserError(
            "\n  ".join([f"{name}: not recorded and not to be used, move it away and fetch it again:", *faults])
        )
    for file in unknown:
        digest = cached_sha256(store.root / file)
        store.record({file: KnownHash(digest, FIRST_USE)})
        lines.append(f"{file}: sha256 {digest} recorded in the store; nobody publishes one to compare it with")
    _, faults = store.verify(weights, name)
    if faults:
        raise UserError("\n  ".join([f"{name}: not to be used:", *faults]))
    return lines
