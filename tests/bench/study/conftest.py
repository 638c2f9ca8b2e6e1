"""A run of two methods on three images with hostile names, and a study of plain data without images."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.methods import METHODS
from bench.options import RunOptions
from bench.paper.tables import TABLES
from bench.records.records import Records
from bench.records.schema import PlanSet, ScoreRow
from bench.run.plan import choose, make_plan
from bench.run.restore import restore_set
from bench.study.design import Plan, draw
from bench.study.study import Study, StudyImage, StudyMethod, StudyMetric, named
from bench.testsets import manifest
from bench.testsets.manifest import load_testset

METHOD_NAMES = ("bicubic", "lanczos")
IMAGE_NAMES = ("__proto__", "<img src=x onerror=alert(1)>", "\"'`&amp; Ünï∕cödé \u2028")
HOSTILE = "</script><script>window.hacked = 1</script> $\\frac{ | x"
"""Ends the name of a method in tables and figures."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, testset_writer: Callable[..., Path]) -> Path:
    """The folder of a run whose images are real; images are `IMAGE_NAMES`, and methods' displays end in `HOSTILE`."""
    testset_writer(tmp_path / "datasets", names=IMAGE_NAMES)
    monkeypatch.setattr(manifest, "DATASETS", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    testset = load_testset("mini")
    options = RunOptions()
    chosen = choose(TABLES["table1"], "mini", options, testsets=None, methods=list(METHOD_NAMES), metrics=["psnr"])
    sets = [PlanSet("mini", "Mini", [image.name for image in testset.images], len(testset.images))]
    plan = make_plan(chosen, sets, seed=42, reference="bicubic", old=None)
    records = Records(tmp_path / "run")
    for name in METHOD_NAMES:
        restore_set(records, testset, METHODS[name], options)
    methods = [replace(method, display=f"{method.display} {HOSTILE}") for method in plan.methods]
    records.write_plan(replace(plan, methods=methods))
    for number, method in enumerate(METHOD_NAMES):
        handle = records.of("mini", method)
        for name, row in handle.images().items():
            value, protocol = 20.0 + number, plan.metrics[0].protocol
            handle.add_score(
                ScoreRow("psnr", name, value, row.sr_sha256 or "", row.hr_sha256, 1, protocol, {}, {}, None)
            )
    return records.out


def study_of(plan: Plan, methods: int = 4, images: int = 6) -> Study:
    """A study in three categories, with a metric that prefers the earlier method, and one that prefers the later."""
    design = draw(methods, images, plan)
    better = [[float(methods - method)] * images for method in range(methods)]
    return named(
        Study(
            id="",
            title="A study",
            criterion="similarity",
            mode=plan.mode,
            show=["hr"],
            seed=plan.seed,
            run="run",
            testset="mini",
            made_by="0",
            methods=[StudyMethod(f"m{method}", f"Method {method}", "") for method in range(methods)],
            images=[
                StudyImage(
                    name=f"image{image}",
                    category=("Animals", "Buildings", "Plants")[image % 3],
                    lr_sha256="",
                    hr_sha256="",
                    sr_sha256=[f"{image}-{method}" for method in range(methods)],
                    pictures=[image * (methods + 2) + method for method in range(methods)],
                    good=image * (methods + 2) + methods,
                    bad=image * (methods + 2) + methods + 1,
                )
                for image in range(images)
            ],
            metrics=[
                StudyMetric("fits", "Fits", True, "", better),
                StudyMetric("opposed", "Opposed", False, "", better),
            ],
            trials=[[[trial.image, trial.kind, *trial.shown] for trial in trials] for trials in design],
        )
    )


@pytest.fixture
def new_study() -> Callable[..., Study]:
    return study_of
