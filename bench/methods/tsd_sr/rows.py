"""The rows of this project's own models: what `bench list` says of them, what they need, how they are loaded."""

import functools

from bench.cards.card import Card, assets
from bench.methods.base import MethodSpec, spec_of
from bench.methods.tsd_sr.forms import FORMS
from bench.methods.tsd_sr.method import (
    TeacherSettings,
    load_mini,
    load_release,
    load_sd2,
    load_student,
    load_teacher,
)
from bench.methods.tsd_sr.weights import SD2_BASES, SD3_BASE, ModelFolders, SD2Base, missing_sd2_student
from bench.options import RunOptions
from bench.store.missing import Missing
from bench.store.store import missing_weights, source
from tsd.files import MiniModel, mini_model_dir

FORM_WORDS = {name: words for name, (words, _) in FORMS.items()}


def _missing_mini(folder: str, needed_by: str, options: RunOptions, base: MiniModel = "mini") -> list[Missing]:
    """The mini models are part of the package; a checkout before training, or a damaged install, may lack one."""
    if (mini_model_dir(base) / folder).is_dir():
        return []
    source = f"`nox -s train_{base.replace('-', '_')}`, which makes it"
    return [Missing(f"{folder}/", f"tsd/assets/{base}/{folder}/", source, None, "Apache-2.0", needed_by)]


def student_spec(weights: ModelFolders, name: str, display: str) -> MethodSpec:
    """The row of `tsd-sr:MODEL,LORA[,PROMPTS]`."""

    def missing(options: RunOptions) -> list[Missing]:
        folders = [folder for folder in (weights.model, weights.lora, weights.prompts) if folder is not None]
        return [
            Missing(folder.name, str(folder), "your own training run", None, None, display)
            for folder in folders
            if not folder.is_dir()
        ]

    return MethodSpec(
        name=name,
        display=display,
        steps=1,
        kind="diffusion",
        summary=f"one-step student {weights.lora.name + ' on ' if weights.lora else ''}{weights.model.name}",
        licence="that of the weights",
        load=functools.partial(load_student, weights),
        missing=missing,
        forms=FORM_WORDS if weights.lora else {},
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
TSD_SR_SD2, TSD_SR_SD21 = (_sd2_spec(base) for base in SD2_BASES.values())


def release_spec(card: Card) -> MethodSpec:
    """The row of the authors' own weights."""
    load, missing = functools.partial(load_release, card), functools.partial(missing_weights, card)
    return spec_of(card, load, missing, random_weights=True, forms=FORM_WORDS)
