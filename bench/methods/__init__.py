"""All methods by name, and the check of their contract.

This module lists them by name, in the order of the tables' rows, with the forms that make a method from a path.

To add a published method, write a card in `bench/cards/`, nothing else. To add code of your own, write a module in this
folder with a `MethodSpec`, one line in `METHODS` and one test.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.cards.card import Card, cards, read_card
from bench.methods.base import FolderMethod, Method, MethodSpec
from bench.methods.external.method import external_spec
from bench.methods.function import function_spec
from bench.methods.osediff.row import osediff_spec
from bench.methods.published.folder import folder_spec
from bench.methods.published.published import published_spec, published_specs
from bench.methods.resize import BICUBIC, LANCZOS
from bench.methods.spandrel.network import spandrel_spec
from bench.methods.spandrel.row import gan_spec
from bench.methods.tsd_sr.method import TeacherSettings
from bench.methods.tsd_sr.rows import (
    OSEDIFF_MINI,
    OSEDIFF_MINI_SD2,
    STUDENT_FORM,
    TEACHER_20,
    TSD_SR_MINI,
    TSD_SR_MINI_SD2,
    TSD_SR_MINI_SMALL,
    TSD_SR_SD2,
    TSD_SR_SD21,
    release_spec,
    student_spec,
    teacher_spec,
)
from bench.methods.tsd_sr.weights import ModelFolders
from bench.paper.tables import TABLES
from tsd.config import EXPORT_FILE
from tsd.errors import UserError, nearest
from tsd.files import OWN_FUNCTION, function_named

__all__ = ["FORMS", "METHODS", "FolderMethod", "Method", "MethodSpec", "get_method"]

SPEC_BUILDERS = {"tsd-sr": release_spec, "osediff": osediff_spec, "spandrel": gan_spec, "external": external_spec}
"""The functions that make the spec of a card, by the card's `run`."""


def _card_specs() -> dict[str, MethodSpec]:
    """The specs of the cards that come with the harness, by name, in the order of the paper's tables."""
    order = [row.method for table in TABLES.values() for profile in table.profiles.values() for row in profile.rows]

    def place(card: Card) -> int:
        return order.index(card.name) if card.name in order else len(order)

    return {card.name: SPEC_BUILDERS[card.run](card) for card in sorted(cards().values(), key=place)}


METHODS: dict[str, MethodSpec] = {
    "bicubic": BICUBIC,
    "lanczos": LANCZOS,
    "teacher-20": TEACHER_20,
    "osediff-mini": OSEDIFF_MINI,
    "tsd-sr-mini": TSD_SR_MINI,
    "osediff-mini-sd2": OSEDIFF_MINI_SD2,
    "tsd-sr-mini-sd2": TSD_SR_MINI_SD2,
    "tsd-sr-mini-small-decoder": TSD_SR_MINI_SMALL,
    "tsd-sr-sd2": TSD_SR_SD2,
    "tsd-sr-sd21": TSD_SR_SD21,
    **_card_specs(),
}
METHODS |= {spec.name: spec for spec in published_specs(cards())}


def get_method(name: str) -> MethodSpec:
    """The method called `name`: one of `METHODS`, `teacher-N`, or one of the forms in `FORMS`.

    A form may be given a name for records and tables: `my-net=spandrel:weights/net.pth`. Without one, the name is
    made from the form and the file ("spandrel-net"). Nothing is loaded, and no file but a card is opened.

    Raises:
        UserError: no such name or form; lists all of them, and suggests the closest.
    """
    if name in METHODS:
        return METHODS[name]
    teacher = re.fullmatch(r"teacher-([1-9]\d*)", name)
    if teacher:
        steps = int(teacher[1])
        display = f"{TEACHER_20.display}, {steps} step{'s' if steps > 1 else ''}"
        return teacher_spec(TeacherSettings(steps=steps), name, display)
    head, colon, argument = name.partition(":")
    label, equals, form = head.rpartition("=")
    if not colon or form not in FORMS:
        raise UserError(_unknown(name, form if colon else name))
    if equals and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label):
        raise UserError(f"the name {label!r} in {name!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
    _, build = FORMS[form]
    spec = build(argument, label)
    if METHODS.get(spec.name, spec) is not spec:
        raise UserError(f"{name!r} would be called {spec.name!r}, a method already; choose a name: NAME={form}:...")
    return spec


def _spandrel(argument: str, label: str) -> MethodSpec:
    path = _path(argument, "spandrel:PATH")
    return spandrel_spec(path, *_names(label, "spandrel", path.stem))


def _folder(argument: str, label: str) -> MethodSpec:
    place, equals, suffix = argument.rpartition(",suffix=")
    path = _path(place if equals else argument, "folder:PATH[,suffix=_x4]")
    return folder_spec(path, *_names(label, "folder", path.resolve().name), suffix)


def _published(argument: str, label: str) -> MethodSpec:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", argument):
        raise UserError(f"published:{argument} names no folder inside a test set's folder; expected published:METHOD")
    if not label and f"{argument}-published" in METHODS:
        return METHODS[f"{argument}-published"]
    return published_spec(argument, cards().get(argument), label)


def _python(argument: str, label: str) -> MethodSpec:
    named = function_named(f"python:{argument}")
    if named is None:
        raise UserError(f"python:{argument} names no function; expected {OWN_FUNCTION}")
    path, function = named
    return function_spec(path, function, *_names(label, path.stem, function))


def _student(argument: str, label: str) -> MethodSpec:
    parts = [part for part in argument.split(",") if part]
    settings = dict(part.split("=", 1) for part in parts if part.startswith(("decoder=", "quantize=")))
    folders = [Path(part).expanduser() for part in parts if not part.startswith(("decoder=", "quantize="))]
    if len(folders) not in (1, 2, 3):
        raise UserError(f"tsd-sr:{argument} names {len(folders)} folders; expected {STUDENT_FORM}")
    quantization = settings.get("quantize")
    if quantization not in (None, "int8", "fp8"):
        raise UserError(f"tsd-sr:{argument} quantizes to {quantization!r}; expected {STUDENT_FORM}")
    decoder = Path(settings["decoder"]).expanduser() if "decoder" in settings else None
    weights = ModelFolders(*folders, decoder=decoder, quantization=quantization)
    stem = [folders[:2][-1].resolve().name, *([] if decoder is None else [decoder.resolve().name])]
    return student_spec(weights, *_names(label, "tsd-sr", "-".join([*stem, *filter(None, [quantization])])))


def _teacher(argument: str, label: str) -> MethodSpec:
    form = "teacher:steps=20,strength=0.3,guidance=1,model=DIR,prompts=DIR (any of these)"
    settings: dict[str, str] = {}
    for part in filter(None, argument.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in ("steps", "strength", "guidance", "model", "prompts"):
            raise UserError(f"{part!r} is no setting of the teacher; expected {form}")
        settings[key] = value
    default = TeacherSettings()
    try:
        teacher = TeacherSettings(
            int(settings.get("steps", default.steps)),
            float(settings.get("strength", default.strength)),
            float(settings.get("guidance", default.guidance)),
        )
    except ValueError as error:
        raise UserError(f"teacher:{argument}: {error}; expected {form}") from error
    if "prompts" in settings and "model" not in settings:
        raise UserError(f"teacher:{argument}: prompts belong to a model; expected {form}")
    if teacher.steps < 1 or not 0 < teacher.strength <= 1:
        raise UserError(f"teacher:{argument}: expected steps of at least 1 and 0 < strength <= 1")
    model, prompts = (Path(settings[key]).expanduser() if key in settings else None for key in ("model", "prompts"))
    parts = [f"teacher-{teacher.steps}", f"s{teacher.strength:g}", f"g{teacher.guidance:g}"]
    parts += [model.resolve().name] if model else []
    whose = "Mini" if model is None else model.name
    display = label or f"{whose} teacher (σ {teacher.strength:g}, guidance {teacher.guidance:g})"
    weights = None if model is None else ModelFolders(model, prompts=prompts)
    return teacher_spec(teacher, label or _slug("-".join(parts)), display, weights)


def _card(argument: str, label: str) -> MethodSpec:
    card = read_card(_path(argument, "card:PATH.toml"))
    spec = SPEC_BUILDERS[card.run](card)
    return replace(spec, name=label, display=label) if label else spec


# Form -> (how it is written, the function that builds its spec from the text after the colon and the label).
FORMS: dict[str, tuple[str, Callable[[str, str], MethodSpec]]] = {
    "spandrel": ("spandrel:PATH", _spandrel),
    "folder": ("folder:PATH[,suffix=_x4]", _folder),
    "card": ("card:PATH.toml", _card),
    "published": ("published:METHOD", _published),
    "python": (OWN_FUNCTION, _python),
    "tsd-sr": (STUDENT_FORM, _student),
    "teacher": ("teacher:steps=20,strength=0.3,guidance=1,model=DIR,prompts=DIR", _teacher),
}


def _path(argument: str, form: str) -> Path:
    if not argument:
        raise UserError(f"no path given; expected {form}")
    return Path(argument).expanduser()


def _names(label: str, prefix: str, stem: str) -> tuple[str, str]:
    """Name and display of a method made from a path: the user's own, or "<prefix>-<stem>" and the stem."""
    return (label, label) if label else (_slug(f"{prefix}-{stem}"), stem)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")


def _unknown(name: str, wrong: str) -> str:
    meant = _meant(name)
    if meant:
        return f"no method is called {name!r}. Did you mean {meant}?"
    near = nearest(wrong, [*METHODS, *FORMS])
    hint = f" Did you mean {FORMS[near][0] if near in FORMS else near!r}?" if near else ""
    forms = ", ".join(["teacher-N", *(text for text, _ in FORMS.values())])
    return f"no method is called {name!r}.{hint} Methods: {', '.join(METHODS)}. Forms: {forms}."


def _meant(name: str) -> str:
    """The form that a bare path was meant to have, by what lies there; empty for anything else."""
    label, equals, place = name.rpartition("=")
    file, _, function = place.rpartition(":")
    path = Path(file if file.endswith(".py") else place).expanduser()
    before = f"{label}{equals}"
    if ":" in str(path) and not path.exists():  # a form, misspelt
        return ""
    if path.suffix == ".py":
        functions = [function] if function != place else _functions(path)
        return " or ".join(f"{before}python:{path}:{named}" for named in functions[:3] or ["FUNCTION"])
    if path.suffix in (".pth", ".pt", ".ckpt", ".safetensors"):
        return f"{before}spandrel:{path}"
    if path.suffix == ".toml":
        return f"{before}card:{path}"
    if path.is_dir():
        is_model = any((path / part).is_file() for part in ("model_index.json", EXPORT_FILE, "vae/config.json"))
        return f"{before}{'tsd-sr' if is_model else 'folder'}:{path}"
    return ""


def _functions(path: Path) -> list[str]:
    """The functions of two or more arguments in a Python file, `restore` first; nothing is run."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and len(node.args.args) >= 2]
    return sorted((node.name for node in found), key=lambda named: (named != "restore", named.startswith("_")))
