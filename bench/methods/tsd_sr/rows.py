"""The rows of this project's own models: what `bench list` says of them, what they need, how they are loaded."""

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from bench.cards.card import Card, assets
from bench.methods.base import MethodSpec, spec_of
from bench.methods.tsd_sr.forms import FORMS
from bench.methods.tsd_sr.method import OneStepMethod, TeacherMethod, TeacherSettings
from bench.methods.tsd_sr.weights import (
    SD2_BASES,
    SD3_BASE,
    SD3_HUB_ID,
    ModelFolders,
    SD2Base,
    Shape,
    missing_sd2_student,
    release_folders,
    sd2_student_folders,
)
from bench.options import RunOptions
from bench.store.missing import Missing, Obstacle, describe
from bench.store.store import missing_weights, source, verified_files, verified_weights
from tsd.config import EXPORT_FILE
from tsd.errors import UserError
from tsd.files import MiniModel, mini_model_dir

FORM_WORDS = {name: words for name, (words, _) in FORMS.items()}
STUDENT_FORM = "tsd-sr:MODEL[,LORA[,PROMPTS]][,decoder=DIR][,quantize=int8|fp8]"
SMALL_DECODER = "decoder"
"""Folder of the small decoder in the first mini model's."""


def load_student(
    weights: ModelFolders, options: RunOptions, row_settings: Mapping[str, object] = MappingProxyType({})
) -> OneStepMethod:
    for folder in (weights.model, weights.lora, weights.prompts, weights.decoder):
        if folder is not None and not folder.is_dir():
            raise UserError(f"no folder at {folder}; expected {STUDENT_FORM}")
    if weights.lora is None and not (weights.model / EXPORT_FILE).is_file():
        raise UserError(
            f"{weights.model} is no merged student of `tsd export` (no {EXPORT_FILE} in it): name its LoRA folder, "
            f"tsd-sr:MODEL,LORA"
        )
    return make_student(weights, options, row_settings)


def make_student(
    weights: ModelFolders | Shape, options: RunOptions, row_settings: Mapping[str, object]
) -> OneStepMethod:
    """The student in the form that the options name."""
    options.require_dtype()
    return (FORMS[options.form][1] if options.form else OneStepMethod)(weights, options, row_settings)


def load_mini(
    adapters: str, options: RunOptions, base: MiniModel = "mini", decoder: str | None = None
) -> OneStepMethod:
    folder = mini_model_dir(base)
    small = None if decoder is None else folder / decoder
    return load_student(ModelFolders(folder, folder / "lora" / adapters, decoder=small), options)


def load_sd2(base: SD2Base, options: RunOptions) -> OneStepMethod:
    if options.random_weights:
        return make_student(Shape(base.hub_id), options, {"color": "adain"})
    absent = missing_sd2_student(base, options)
    if absent:
        raise UserError(f"TSD-SR on {base.display} cannot run here:\n{describe(absent)}")
    verified_files((base.weight,), options, licence="", needed_by=f"TSD-SR ({base.display})", fetch=base.asset)
    return load_student(sd2_student_folders(base, options), options, {"color": "adain"})


def load_release(card: Card, options: RunOptions) -> OneStepMethod:
    if options.random_weights:
        return make_student(Shape(SD3_HUB_ID), options, {"color": "adain"})
    verified_weights(card, options)
    return load_student(release_folders(options), options, {"color": "adain"})


def load_teacher(weights: ModelFolders | None, settings: TeacherSettings, options: RunOptions) -> TeacherMethod:
    options.require_dtype()
    weights = weights or ModelFolders(mini_model_dir())
    if not weights.model.is_dir():
        raise UserError(f"no model folder at {weights.model}")
    return TeacherMethod(weights, options, settings)


def _missing_mini(folder: str, needed_by: str, options: RunOptions, base: MiniModel = "mini") -> list[Missing]:
    """The mini models are part of the package; a checkout before training, or a damaged install, may lack one."""
    if (mini_model_dir(base) / folder).is_dir():
        return []
    source = f"`nox -s train_{base.replace('-', '_')}`, which makes it"
    return [Missing(f"{folder}/", f"tsd/assets/{base}/{folder}/", source, None, "Apache-2.0", needed_by)]


def student_spec(weights: ModelFolders, name: str, display: str) -> MethodSpec:
    """The row of `tsd-sr:MODEL,LORA[,PROMPTS]`, with what its form says besides."""
    approximate = weights.decoder is not None or weights.quantization is not None

    def missing(options: RunOptions) -> list[Missing | Obstacle]:
        folders = (weights.model, weights.lora, weights.prompts, weights.decoder)
        found: list[Missing | Obstacle] = [
            Missing(folder.name, str(folder), "your own training run", None, None, display)
            for folder in folders
            if folder is not None and not folder.is_dir()
        ]
        if weights.quantization is not None and importlib.util.find_spec("torchao") is None:
            found.append(Obstacle(display, "needs torchao: pip install 'tsd-sr-bench[quantize]'"))
        return found

    return MethodSpec(
        name=name,
        display=display,
        steps=1,
        kind="diffusion",
        summary=f"one-step student {weights.lora.name + ' on ' if weights.lora else ''}{weights.model.name}",
        licence="that of the weights",
        load=functools.partial(load_student, weights),
        missing=missing,
        forms=FORM_WORDS if weights.lora and not approximate else {},
    )


def teacher_spec(settings: TeacherSettings, name: str, display: str, weights: ModelFolders | None = None) -> MethodSpec:
    """The row of `teacher-N` or `teacher:…`; without `weights`, on the mini base."""

    def missing(options: RunOptions) -> list[Missing]:
        if weights is None:
            return _missing_mini("transformer", display, options)
        folders = [folder for folder in (weights.model, weights.prompts) if folder is not None]
        return [
            Missing(folder.name, str(folder), source(assets()[SD3_BASE]), None, None, display)
            for folder in folders
            if not folder.is_dir()
        ]

    return MethodSpec(
        name=name,
        display=display,
        steps=settings.steps,
        kind="diffusion",
        summary=f"{'mini base' if weights is None else weights.model.name} as image-to-image sampler in "
        f"{settings.steps} steps from noise level {settings.strength:g}, guidance {settings.guidance:g}",
        licence="Apache-2.0" if weights is None else "that of the model",
        load=functools.partial(load_teacher, weights, settings),
        missing=missing,
    )


TEACHER_20 = teacher_spec(TeacherSettings(), "teacher-20", "Mini teacher")


def _mini_spec(name: str, recipe: str, adapters: str, how: str, base: MiniModel = "mini") -> MethodSpec:
    base_name = {"mini": "mini base", "mini-sd2": "mini SD2 base"}[base]
    display = f"{recipe}, {base_name}"
    return MethodSpec(
        name=name,
        display=display,
        steps=1,
        kind="diffusion",
        summary=f"one-step student distilled by {how} on the {base_name}",
        licence="Apache-2.0",
        load=functools.partial(load_mini, adapters, base=base),
        missing=functools.partial(_missing_mini, f"lora/{adapters}", display, base=base),
        forms=FORM_WORDS,
    )


def _sd2_spec(base: SD2Base) -> MethodSpec:
    return MethodSpec(
        name=f"tsd-sr-{base.name}",
        display=f"TSD-SR ({base.display})",
        steps=1,
        kind="diffusion",
        summary=f"a student you trained on {base.display}, AdaIN colour; none was published",
        licence="CreativeML Open RAIL++-M (base)",
        load=functools.partial(load_sd2, base),
        missing=functools.partial(missing_sd2_student, base),
        random_weights=True,
        forms=FORM_WORDS,
    )


OSEDIFF_MINI = _mini_spec("osediff-mini", "OSEDiff recipe (VSD only)", "vsd", "VSD alone")
TSD_SR_MINI = _mini_spec("tsd-sr-mini", "TSD-SR", "tsdsr", "TSD")
OSEDIFF_MINI_SD2 = _mini_spec("osediff-mini-sd2", "OSEDiff recipe (VSD only)", "vsd", "VSD alone", "mini-sd2")
TSD_SR_MINI_SD2 = _mini_spec("tsd-sr-mini-sd2", "TSD-SR", "tsdsr", "TSD", "mini-sd2")
TSD_SR_MINI_SMALL = replace(
    TSD_SR_MINI,
    name="tsd-sr-mini-small-decoder",
    display=f"{TSD_SR_MINI.display}, small decoder",
    summary=f"{TSD_SR_MINI.summary}, decoded by a small network in the VAE's place: faster, nearly the same image",
    load=functools.partial(load_mini, "tsdsr", decoder=SMALL_DECODER),
    missing=functools.partial(_missing_mini, SMALL_DECODER, f"{TSD_SR_MINI.display}, small decoder"),
    forms={},
)
TSD_SR_SD2, TSD_SR_SD21 = (_sd2_spec(base) for base in SD2_BASES.values())


def release_spec(card: Card) -> MethodSpec:
    """The row of the authors' own weights."""
    load, missing = functools.partial(load_release, card), functools.partial(missing_weights, card)
    return spec_of(card, load, missing, random_weights=True, forms=FORM_WORDS)
