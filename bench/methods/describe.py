"""Describes methods: one line each for an overview, and everything about one of them."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace

from bench.cards.card import Card, Weight, argument_of
from bench.methods.base import MethodSpec
from bench.methods.published.published import absent_outputs
from bench.options import RunOptions
from bench.paper.tables import TABLES
from bench.store.missing import Missing
from bench.store.store import Store, source
from bench.testsets.manifest import TESTSETS
from tsd.files import human_size

HEADERS = ("method", "table", "steps", "runs", "weights", "licence", "forbids", "last verified")
TEXT_COLUMNS = (5, 6, 7)  # the columns of sentences, which may be cut
MIN_WIDTH = 12
GAP = 2  # spaces that tabulate puts between columns and beside a title
SEEDING = {
    "image": "every image from a seed of its own",
    "deterministic": "no random number is drawn",
    "none": "unseeded: results differ from run to run",
}


def overview(name: str, spec: MethodSpec, options: RunOptions) -> tuple[str, ...]:
    """One row under `HEADERS`. Looks at file names only."""
    steps = "" if spec.steps is None else str(spec.steps)
    return (
        name,
        " ".join(table.removeprefix("table") for table in tables_of(name)) or "-",
        steps or "-",
        f"own env, {_environment(spec.card, options)}" if spec.how == "own environment" else spec.how,
        _weights(spec, options),
        spec.licence,
        "; ".join(_forbidden(spec)) or "-",
        spec.verified,
    )


def fit_to_width(rows: Sequence[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """Cuts the longest texts of rows under `HEADERS`, so that a line has at most `width` characters if possible.

    Args:
        width: 0 to leave the rows as they are.
    """
    widths = [max(len(title) + GAP, *map(len, texts)) for title, *texts in zip(HEADERS, *rows, strict=True)]
    over = sum(widths) + GAP * (len(widths) - 1) - width if width else 0
    for _ in range(over):
        longest = max(TEXT_COLUMNS, key=lambda column: widths[column])
        widths[longest] = max(widths[longest] - 1, MIN_WIDTH)
    return [tuple(_cut(text, most) for text, most in zip(row, widths, strict=True)) for row in rows]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def tables_of(method: str) -> list[str]:
    """The tables of the paper that have a row of this method, in any profile."""
    return [
        table.name
        for table in TABLES.values()
        if any(row.method == method for profile in table.profiles.values() for row in profile.rows)
    ]


def _forbidden(spec: MethodSpec) -> list[str]:
    """What the method's licence forbids, then what the licences of its files forbid."""
    own = [spec.restriction] if spec.restriction else []
    files = spec.card.weights if spec.card and spec.kind != "published" else ()
    return own + [f"{weight.restriction} ({weight.file})" for weight in files if weight.restriction not in ("", *own)]


def _weights(spec: MethodSpec, options: RunOptions) -> str:
    if spec.kind == "published":
        return _images(spec.card, options)
    missing = [item for item in spec.missing(options) if isinstance(item, Missing)]
    if spec.card is None or not spec.card.weights:
        return "missing" if missing else "here"
    if missing:
        return f"{len(missing)}/{len(spec.card.weights)} missing"
    return "to be picked up" if Store(options).unknown(spec.card.weights) else "here"


def _images(card: Card | None, options: RunOptions) -> str:
    """How many of the published folders are there."""
    if card is None or not card.published:
        return "-"
    absent = absent_outputs(card, options)
    return f"{len(absent)}/{len(card.published)} missing" if absent else "here"


def _environment(card: Card | None, options: RunOptions) -> str:
    if card is None or card.run != "external":
        return "-"
    from bench.methods.external.environment import is_built

    return "ready" if is_built(card, options) else "not built"


def description(name: str, spec: MethodSpec, options: RunOptions) -> str:
    """Everything about one method, for `bench list METHOD`."""
    lines = [f"{name}: {spec.display}", f"  {spec.summary}", ""]
    for title, texts in _facts(name, spec, options):
        for number, text in enumerate(texts):
            lines.append(f"  {'' if number else title:<12} {text}")
    return "\n".join(lines)


def _facts(name: str, spec: MethodSpec, options: RunOptions) -> Iterator[tuple[str, list[str]]]:
    card = spec.card
    yield "tables", [f"{TABLES[table].title}" for table in tables_of(name)] or ["in no table by default: --methods"]
    yield "steps", ["no meaning here" if spec.steps is None else str(spec.steps)]
    yield "runs", [spec.how]
    yield "licence", [spec.licence, *(f"forbids: {line}" for line in _forbidden(spec))]
    if card is not None:
        yield "cite", [card.citation]
        yield "code", [f"{card.repository} at {card.commit}"]
        if spec.kind == "published":
            yield "settings", ["those of the authors, who made the images; `bench list " + card.name + "` has ours"]
        else:
            yield "settings", list(card.settings) or ["the code's own"]
            yield "seeds", [SEEDING[card.seeding]]
            yield "weights", [_weight(weight, card, options) for weight in card.weights] or ["none"]
            yield from _external(card, options)
        for published in card.published:
            yield "published", [f"outputs for {published.testset}: {published.source}"]
    yield "verified", [spec.verified]
    yield "here", _here(spec, options)


def _here(spec: MethodSpec, options: RunOptions) -> list[str]:
    """Whether it can run, or what prevents that; for published outputs, the test sets they are there for."""
    lines = [f"cannot run: {item.line()}" for item in spec.missing(options)]
    if spec.card is not None and spec.kind != "published" and Store(options).unknown(spec.card.weights):
        lines.append(f"cannot run: `bench fetch {argument_of(spec.card)}` has to pick up the weights first")
    if spec.kind == "published" and not lines:
        found = [name for name in spec.testsets or TESTSETS if not spec.missing(replace(options, testset=name))]
        if spec.testsets is None and len(found) == len(TESTSETS):
            return ["a folder; `bench check METHOD --testset NAME` says whether it fits a test set"]
        return [f"for {', '.join(found)}" if found else "for none of the test sets"]
    return lines or ["can run"]


def _weight(weight: Weight, card: Card, options: RunOptions) -> str:
    """File, state, size, hash, source, licence in one line."""
    store = Store(options)
    state = "missing" if store.absent(weight) else "here"
    known = store.known(weight)
    if weight.is_folder and known:
        digest = f"hashes of {len(known)} files known"
    elif weight.file in known:
        digest = f"{_hash(known[weight.file].digest)} ({known[weight.file].by})"
    elif weight.hub:
        digest = "hash stated by the hub when it is fetched"
    else:
        digest = "no hash published: the first `bench fetch` records it"
    facts = [state, human_size(weight.size_bytes) or "size not published", digest, source(weight)]
    forbids = f" ({weight.restriction})" if weight.restriction else ""
    return f"{weight.file}: " + "; ".join([*facts, (weight.licence or card.licence) + forbids])


def _hash(digest: str) -> str:
    return digest if ":" in digest else f"sha256 {digest}"


def _external(card: Card, options: RunOptions) -> Iterator[tuple[str, list[str]]]:
    if card.environment is None or card.command is None:
        return
    pins = ", ".join(card.environment.requirements)
    yield "environment", [f"Python {card.environment.python}, {_environment(card, options)}: {pins}"]
    if card.environment.note:
        yield "", [card.environment.note]
    yield "command", [f"python {shlex.join(card.command.arguments)}"]
    variables = [f"{key}={value}" for key, value in card.command.variables.items()]
    if variables:
        yield "variables", variables
    if card.command.links:
        yield "links", [f"{place} -> {file}" for place, file in card.command.links.items()]
    yield "inputs", [_inputs(card)]
    yield "outputs", [card.command.outputs]
    if card.patches:
        yield "patches", [f"{patch.file}: {patch.reason}" for patch in card.patches]


def _inputs(card: Card) -> str:
    command = card.command
    assert command is not None
    size = f" of {command.lr_size[0]}x{command.lr_size[1]} only" if command.lr_size else " of any size"
    return ("enlarged x4 by bicubic before" if command.upscale else "as they are") + f", PNG{size}"
