"""A call of `bench sweep` for the domain `paper`: its files and limits, what is missing, and the plan of a dry run."""

import time
from collections.abc import Sequence
from pathlib import Path

from bench.ablation.experiment import Arm, Experiment, check_experiment, chosen
from bench.ablation.paper.budget import arm_budgets, to_text, write_commands
from bench.ablation.paper.domain import PaperDomain, on_testsets, split_measure, with_students
from bench.ablation.paper.files import Files
from bench.ablation.paper.settings import config_of, default_settings
from bench.store.missing import Missing, Obstacle, describe
from tsd.errors import UserError
from tsd.train.stopping import seconds_from_text


def opened(
    experiment: Experiment, files: Files, *, testsets: Sequence[str] | None = None, time_limit: str | None = None
) -> tuple[Experiment, PaperDomain]:
    """The experiment on the test sets that are asked for, and the domain with its measures, files and deadline.

    Args:
        testsets: in place of the file's.
        time_limit: HH:MM, HH:MM:SS or minutes from now.

    Raises:
        UserError: an unknown test set, or a time limit of another form.
    """
    if testsets is not None:
        experiment = on_testsets(experiment, testsets)
    deadline = None if time_limit is None else time.time() + seconds_from_text(time_limit)
    domain = PaperDomain((), files, deadline).measuring(experiment.metrics)
    check_experiment(experiment, domain)
    return experiment, domain


def require(
    experiment: Experiment,
    domain: PaperDomain,
    arms: Sequence[str] | None,
    seeds: Sequence[int],
    device: str,
    *,
    running: bool = True,
) -> Experiment:
    """Makes sure that nothing is missing; returns the experiment with the hashes of its finished students.

    Args:
        running: False if only a report is wanted, which needs none of the files.

    Raises:
        UserError: lists everything that is missing; or a student does not fit its arm, see `with_students`.
    """
    if running:
        lacking = missing(experiment, domain, chosen(arms, experiment), device)
        if lacking:
            raise UserError(
                f"{experiment.name} needs what is not on this machine:\n{describe(lacking)}\n"
                "Nothing is downloaded unasked: `bench fetch NAME` gets what says so. --dry-run plans memory and GPU "
                "hours without any of it."
            )
    return with_students(experiment, domain.files, seeds)


def missing(experiment: Experiment, domain: PaperDomain, arms: Sequence[Arm], device: str) -> list[Missing | Obstacle]:
    """What the arms need and what is not here, see `Files.missing`."""
    trained = [
        config_of(default_settings() | experiment.overrides(arm), seed=0)
        for arm in arms
        if domain.files.student(arm.name) is None
    ]
    return domain.files.missing(trained, [split_measure(measure.name) for measure in domain.measures], device)


def dry_run(
    experiment: Experiment,
    domain: PaperDomain,
    arms: Sequence[str] | None,
    seeds: Sequence[int],
    out: Path,
    device: str,
) -> str:
    """The plan as text; writes the settings of the arms to `out`/configs, for the commands in it.

    Raises:
        UserError: the configuration of the base is neither on disk nor known.
    """
    selected = chosen(arms, experiment)
    lacking = missing(experiment, domain, selected, device)
    budgets = arm_budgets(experiment, selected, domain.files, seeds[0])
    commands = write_commands(budgets, domain.files, out)
    text = to_text(budgets, commands, domain.files.planned_model(), len(seeds))
    if not lacking:
        return f"{text}\nNothing is missing.\n"
    return f"{text}\nMissing on this machine:\n{describe(lacking)}\n"
