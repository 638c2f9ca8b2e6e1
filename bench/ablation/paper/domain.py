"""The domain `paper`: one `tsd train` run a cell, scored on real test sets with the metrics of the paper's tables.

A measure is a metric on a test set, `drealsr-lpips`; the file of the experiment names those that it wants. Torch is
imported when a cell runs.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ablation.cells import write_lines
from bench.ablation.domain import Cell, Measure, Stopped
from bench.ablation.experiment import Experiment
from bench.ablation.paper.files import Files, prepared_hash, student_hashes
from bench.ablation.paper.settings import config_of, default_settings, restoration_of
from bench.ablation.paper.training import train_cell
from bench.metrics import get_metric
from bench.provenance import sha256_json
from bench.testsets.manifest import has_reference, read_manifest
from tsd.config import ADAPTER_CONFIG, RECOMMENDED_FILE, RestoreConfig
from tsd.errors import UserError
from tsd.files import atomic_folder

TABLE_SETS = ("drealsr", "realsr")
TABLE_METRICS = ("lpips", "dists", "fid", "musiq", "maniqa", "clipiqa")
UNITS = {"psnr": "dB"}
MODEL_PARTS = ("transformer", "unet", "vae", "scheduler", "prompts")
"""The folders of a base that decide about a cell: text encoders do not."""


@dataclasses.dataclass(frozen=True)
class PaperDomain:
    """A large base, or any other in diffusers layout, and real test sets; a `Domain`.

    Attributes:
        measures: what is scored, see `measuring`.
        files: what is read.
        deadline: when a cell stops, by the clock of `time.time`; None for no limit.
    """

    measures: tuple[Measure, ...]
    files: Files = dataclasses.field(default_factory=Files)
    deadline: float | None = None
    references: tuple[str, ...] = ()
    name: str = "paper"

    def measuring(self, names: Sequence[str]) -> "PaperDomain":
        """The domain with the measures of these names, TESTSET-METRIC.

        Raises:
            UserError: a name of another form, an unknown test set or metric, or one that the set has no images for.
        """
        return dataclasses.replace(self, measures=tuple(map(measure_of, names)))

    def settings(self) -> dict[str, Any]:
        return default_settings()

    def check(self, settings: Mapping[str, Any]) -> None:
        config_of(settings, seed=0)
        RestoreConfig(**restoration_of(settings))

    def fingerprint(self) -> str:
        from tsd.train.fingerprint import of_folder

        files = self.files
        parts = {"prompts": files.prompt_embeds, "teacher": files.teacher_lora}
        return sha256_json(
            {
                "model": of_folder(files.model_folder(), MODEL_PARTS),
                "data": prepared_hash(files.data),
                **{name: None if folder is None else of_folder(folder) for name, folder in parts.items()},
            }
        )

    def code(self) -> Sequence[Path]:
        """How settings become a run; images and scores have records of their own, which know when they are stale."""
        folder = Path(__file__).parent
        return [folder / "settings.py", folder / "training.py", folder.with_name("flat_settings.py")]

    def run(self, cell: Cell, folder: Path, *, device: str, stop: Callable[[], bool]) -> None:
        given = self.files.student(cell.arm)
        if given is None:
            config = config_of(cell.settings, cell.seed)
            trained = train_cell(config, self.files, folder, device=device, stop=stop, deadline=self.deadline)
        elif student_hashes(given) != cell.settings["student"]:
            raise UserError(f"the student in {given} has changed since the sweep began")
        else:
            trained = given
        student = folder / "student"
        _copy_student(trained, student, restoration_of(cell.settings))
        self._score(cell, student, folder, device, stop)

    def score_references(self, seed: int, folder: Path) -> None:
        """There are none."""

    def _score(self, cell: Cell, student: Path, folder: Path, device: str, stop: Callable[[], bool]) -> None:
        from bench.ablation.paper.scoring import score_student

        prompts = self.files.prompts(student)
        parts = [self.files.model_folder(), student, *([prompts] if prompts is not None else [])]
        rows: list[dict[str, Any]] = []
        of_set: dict[str, Any] = {"image": None}
        for testset, metrics in self.wanted().items():
            if stop() or (self.deadline is not None and time.time() >= self.deadline):
                raise Stopped("the time limit")
            scores = score_student(
                f"tsd-sr:{','.join(map(str, parts))}",
                testset,
                metrics,
                folder / "measured",
                seed=cell.seed,
                device=device,
                data_root=self.files.data_root,
            )
            images = dict.fromkeys(name for values in scores.images.values() for name in values)
            for image in images:
                row = {f"{testset}-{m}": values[image] for m, values in scores.images.items() if image in values}
                rows.append({"image": f"{testset}/{image}", **row})
            of_set |= {f"{testset}-{metric}": value for metric, value in scores.of_set.items()}
        write_lines(folder / "scores.jsonl", [*rows, of_set])

    def wanted(self) -> dict[str, list[str]]:
        """The metrics of the measures, by test set."""
        found: dict[str, list[str]] = {}
        for measure in self.measures:
            testset, metric = split_measure(measure.name)
            found.setdefault(testset, []).append(metric)
        return found


def open_domain(argument: str) -> PaperDomain:
    """The domain with the twelve measures of the paper's Table 4; `measuring` changes them. It takes no argument.

    Raises:
        UserError: an argument was given.
    """
    if argument:
        raise UserError(f'the domain paper takes no argument, found {argument!r}; write domain = "paper"')
    return PaperDomain(tuple(measure_of(f"{testset}-{m}") for testset in TABLE_SETS for m in TABLE_METRICS))


def split_measure(name: str) -> tuple[str, str]:
    """("div2k-val", "lpips") for "div2k-val-lpips"."""
    testset, _, metric = name.rpartition("-")
    return testset, metric


def measure_of(name: str) -> Measure:
    """The measure TESTSET-METRIC, such as `drealsr-lpips`.

    Raises:
        UserError: see `PaperDomain.measuring`.
    """
    testset, metric = split_measure(name)
    if not testset:
        raise UserError(f"the domain paper has no measure {name!r}; expected TESTSET-METRIC, such as drealsr-lpips")
    manifest, _ = read_manifest(testset)
    spec = get_metric(metric)
    if spec.needs_reference and not has_reference(testset):
        raise UserError(f"the measure {name!r} needs a ground truth, and the test set {manifest['display']} has none")
    label = f"{manifest['display']} {spec.display}"
    return Measure(name, label, UNITS.get(metric, ""), spec.higher_is_better, spec.level == "image", spec.decimals)


def on_testsets(experiment: Experiment, testsets: Sequence[str]) -> Experiment:
    """The experiment with its metrics on other test sets; the paper's figures stay with those that it has.

    Raises:
        UserError: a test set given twice.
    """
    if len(set(testsets)) < len(testsets):
        raise UserError(f"--testsets {' '.join(testsets)}: a test set given twice; expected each once")
    metrics = dict.fromkeys(split_measure(name)[1] for name in experiment.metrics)
    names = tuple(f"{testset}-{metric}" for testset in testsets for metric in metrics)
    paper = {name: column for name, column in experiment.paper.items() if name in names}
    return dataclasses.replace(experiment, metrics=names, paper=paper)


def with_students(experiment: Experiment, files: Files, seeds: Sequence[int]) -> Experiment:
    """The experiment with the hashes of the finished students among the settings of their arms.

    Args:
        seeds: one, that of the students; none for a report of what has been measured, which is not checked again.

    Raises:
        UserError: an arm that the experiment does not have, several seeds for one student, or a student that was
            trained with other settings or another seed, as far as its run folder says.
    """
    if not files.students:
        return experiment
    arms = [arm.name for arm in experiment.arms]
    for name, _ in files.students:
        if name not in arms:
            raise UserError(f"--student {name}=…: {experiment.name} has no such arm; it has {', '.join(arms)}")
    if len(seeds) > 1:
        raise UserError(
            f"--student: a finished student is one seed, and {len(seeds)} are asked for; give --seeds N, the seed that "
            "it was trained with, and one --out for all"
        )
    replaced = []
    for arm in experiment.arms:
        folder = files.student(arm.name)
        if folder is not None:
            for seed in seeds:
                _refuse_other_run(folder, experiment.overrides(arm), seed, arm.name)
            arm = dataclasses.replace(arm, overrides={**arm.overrides, "student": student_hashes(folder)})
        replaced.append(arm)
    return dataclasses.replace(experiment, arms=tuple(replaced))


HOW_A_RUN_IS_CARRIED_OUT = (
    "batch_size", "gradient_accumulation", "gradient_checkpointing", "checkpoint_every", "validate_every",
    "mixed_precision", "base_dtype", "optimizer", "gain_every", "degrade_anew",
)  # fmt: skip
"""Settings in which a student may differ from its arm."""


def _refuse_other_run(student: Path, overrides: Mapping[str, Any], seed: int, arm: str) -> None:
    """Compares the settings beside a student, `config.json` of its run, with those of its arm."""
    path = student.parent / "config.json"
    if not path.is_file():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    expected = json.loads(config_of(default_settings() | dict(overrides), seed).to_json())
    odd = [
        f"{name} {json.dumps(found.get(name))}, expected {json.dumps(expected[name])}"
        for name in sorted(expected)
        if name not in HOW_A_RUN_IS_CARRIED_OUT and name in found and found[name] != expected[name]
    ]
    place = f"--student {arm}={student}"
    if odd:
        raise UserError(f"{place}: its run had other settings than the arm ({path}): {'; '.join(odd)}")
    log = student.parent / "log.jsonl"
    steps = len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else None
    total = config_of(default_settings() | dict(overrides), seed).total_steps
    if steps is not None and steps < total:
        raise UserError(
            f"{place}: its run is not finished, {steps} of {total} steps; `tsd train --resume` continues it"
        )


def _copy_student(student: Path, target: Path, restoration: Mapping[str, Any]) -> None:
    """Copies the weights and prompts of a student, with the settings by which all arms restore."""
    with atomic_folder(target) as folder:
        for path in student.rglob("*"):
            if path.suffix in (".safetensors", ".pt") or path.name == ADAPTER_CONFIG:
                copy = folder / path.relative_to(student)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
        (folder / RECOMMENDED_FILE).write_text(json.dumps(restoration, indent=1) + "\n", encoding="utf-8")
