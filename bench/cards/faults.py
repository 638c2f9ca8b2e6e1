"""Finds what does not fit together in a card whose keys and types are right.

Above all, nothing that a card names may lie outside the place it is meant for: the weight store, the checkout, the
folder of outputs.
"""

import datetime
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from bench.cards.schema import LEDGER, Card, Command, Environment, Weight
from tsd.files import is_plain_name

RUNS = ("tsd-sr", "osediff", "spandrel", "external")
SEEDINGS = ("image", "none", "deterministic")
PLACEHOLDERS = ("lr", "sr", "weights", "seed")
UNWRITTEN = "TODO"
"""What the skeleton of a card has where a person has to decide (bench/methods/external/skeleton.py)."""


def faults(card: Card) -> Iterator[str]:
    """Yields one line for each fault; none where the card can be used."""
    unwritten = [where for where, text in _texts(card) if UNWRITTEN in text]
    if unwritten:
        yield f"still to be written: {', '.join(unwritten)}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", card.name):
        yield f"the file name {card.name!r} cannot be a method's name: use small letters, digits, '.', '_' and '-'"
    if card.run not in RUNS:
        yield f"run = {card.run!r}; expected one of {', '.join(RUNS)}"
    if card.seeding not in SEEDINGS:
        yield f"seeding = {card.seeding!r}; expected one of {', '.join(SEEDINGS)}"
    if not re.fullmatch(r"[0-9a-f]{40}", card.commit):
        yield f"commit = {card.commit!r}; expected the 40 hex digits of a commit"
    for weight in card.weights:
        yield from _weight_faults(weight)
    for published in card.published:
        if not is_plain_name(f"name{published.suffix}"):
            yield f"published: suffix = {published.suffix!r} leads out of the folder of {published.testset}"
    files = {weight.file for weight in card.weights}
    if card.run == "spandrel" and (card.network is None or card.network.file not in files):
        yield "run = 'spandrel' needs [network] with the name of one of the card's weight files"
    if card.network is not None and card.network.key == "*" and (card.network.drop or card.network.padding):
        yield "network: with key = '*' spandrel alone decides what is read; expected neither drop nor padding"
    if card.network is not None and card.network.key != "*" and card.network.tags:
        yield "network: tags are compared only where spandrel finds the entry; expected key = '*', or no tags"
    if card.run == "external":
        if card.environment is None or card.command is None:
            yield "run = 'external' needs [environment] and [command]"
        else:
            yield from _environment_faults(card.environment)
            yield from _command_faults(card.command)
            yield from _checkout_faults(card, card.command, files)


def _texts(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a card with its place, as the messages name it."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, f"{where}.{key}")
    elif isinstance(value, tuple):
        for number, item in enumerate(value, 1):
            yield from _texts(item, f"{where} {number}")
    elif is_dataclass(value):
        for member in fields(value):
            yield from _texts(getattr(value, member.name), f"{where}, {member.name}" if where else member.name)


def used_flags(command: Command) -> list[str]:
    """The flags among a command's arguments, without their values."""
    return [argument.split("=")[0] for argument in command.arguments if re.match(r"--?[A-Za-z]", argument)]


def _weight_faults(weight: Weight) -> Iterator[str]:
    for file in (weight.file, *weight.alternatives):
        if not _lies_inside(file.removesuffix("/")) or file == LEDGER:
            yield f"the weight file {file!r} does not lie in the store"
    for part in dict.fromkeys((*weight.contains, *weight.hashes)):
        if not _lies_inside(part):
            yield f"{part!r} does not lie in the folder {weight.file!r}"
    if weight.alternatives and weight.file.endswith("/"):
        yield f"the folder {weight.file!r} has alternatives; expected them for single files only"
    if weight.hub and any("*" in part for part in weight.contains):
        yield f"contains of {weight.file!r}: the hub is asked for names, not patterns"


def _environment_faults(environment: Environment) -> Iterator[str]:
    if not re.fullmatch(r"3\.\d+(\.\d+)?", environment.python):
        yield f"python = {environment.python!r}; expected a version, like '3.10'"
    if environment.before and not _is_day(environment.before):
        yield f"before = {environment.before!r}; expected a day, like '2024-02-01'"
    for pin in environment.requirements:
        if not re.match(r"[A-Za-z0-9]", pin) or "file:" in pin:
            yield f"requirements: {pin!r} is an option or a file of one machine; expected NAME==VERSION"


def _command_faults(command: Command) -> Iterator[str]:
    for text in (*command.arguments, *command.variables.values()):
        for name in re.findall(r"\{(\w*)\}", text):
            if name not in PLACEHOLDERS:
                yield f"unknown placeholder {{{name}}} in {text!r}; known are {{{'}, {'.join(PLACEHOLDERS)}}}"
        if re.search(r"(^|=)[/~]", text):
            yield f"{text!r} is a path of one machine; use {{weights}}, or [command.links]"
    for needed in ("{lr}", "{sr}"):
        if not any(needed in argument for argument in command.arguments):
            yield f"the command never names {needed}"
    if "{name}" not in command.outputs:
        yield f"outputs = {command.outputs!r} has no {{name}}: images are matched by name, never by order"
    elif not _lies_inside(command.outputs):
        yield f"outputs = {command.outputs!r} does not lie under {{sr}}"
    for flag in used_flags(command):
        if flag not in command.flags:
            yield f"[command.flags] does not say where the repository declares {flag}"
    for flag, place in command.flags.items():
        if not re.fullmatch(r"[^:]+:\d+", place):
            yield f"flags: {flag} = {place!r}; expected FILE:LINE"
    if command.upscale not in ("", "bicubic"):
        yield f"upscale = {command.upscale!r}; expected '' or 'bicubic'"
    if command.lr_size is not None and len(command.lr_size) != 2:
        yield f"lr_size = {list(command.lr_size)}; expected [width, height]"
    for key in ("startup_seconds", "seconds_per_image"):
        if getattr(command, key) < 1:
            yield f"{key} = {getattr(command, key)}; expected 1 or more"


def _checkout_faults(card: Card, command: Command, files: set[str]) -> Iterator[str]:
    for place, source in command.links.items():
        if not _lies_inside(place) or place.split("/")[0] == ".git":
            yield f"links: {place!r} does not lie in the checkout"
        if source not in files and f"{source}/" not in files:
            yield f"links: {source!r} is no weight of the card"
    for patch in card.patches:
        if not _lies_inside(patch.file) or patch.file.split("/")[0] == ".git":
            yield f"patches: {patch.file!r} does not lie in the checkout"
    if card.seeding == "image" and not any("bench_seed" in patch.replace for patch in card.patches):
        yield "seeding = 'image' needs a patch that calls bench_seed"
    if bool(card.timing) != any("bench_time" in patch.replace for patch in card.patches):
        yield "timing says what the patches with bench_time count; expected both or neither"


def _lies_inside(path: str) -> bool:
    """Whether a path is that of a file under some folder, written plainly: no "/" before it, no "." or ".." in it."""
    return all(map(is_plain_name, path.split("/")))


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
