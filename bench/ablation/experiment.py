"""Reads the file of a sweep: one question as data. Keys are checked strictly; torch is not imported.

[sweep]
name = "mixture-table4"                 # also names the default output folder, sweeps/NAME
question = "Do TSM and DASM bring the outputs nearer to the prior?"
domain = "mixture"
table = "table4"                        # optional: the paper's figures stand beside the arms
paper = { distance = "fid" }            # optional: the paper's column that a measure is held against
seeds = "0-11"                          # or a list
metrics = ["distance", "mse"]           # measures of the domain, in the order of columns
nightly = false                         # true: too long for a session of minutes
cpu_minutes = 2.5                       # optional: cost of all cells on one core, as measured
checkpoint_every = 50                   # optional, like curve_every: a setting of all arms that the domain knows
matched = { x = "fd", references = "unsharp", metrics = ["lp"], arms = ["full"] }   # optional, see `Matched`

[settings]                              # of all arms; defaults are the domain's
steps = 400

[arms.full]                             # overrides of one arm
label = "full"
paper = "Full"                          # the row of the paper's table
[arms.no-tsm]
label = "w/o TSM"
paper = "w/o TSM"
lambda_tsd = 1.0

[[comparisons]]                         # the difference of − against
of = "full"
against = "no-tsm"
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ablation.domain import Domain, Measure
from bench.provenance import sha256_json
from tsd.errors import UserError, did_you_mean

EXPERIMENTS = Path(__file__).parent / "experiments"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PAPER_TABLES = ("table4", "table6")
SWEEP_KEYS = (
    "name", "question", "domain", "table", "paper", "seeds", "metrics", "nightly", "cpu_minutes", "checkpoint_every",
    "curve_every", "matched",
)  # fmt: skip
SETTINGS_IN_SWEEP = ("checkpoint_every", "curve_every")
"""Keys of `[sweep]` that are settings of all arms."""
TOML_NAMES: dict[type, str] = {dict: "a table", list: "a list", str: "text", bool: "true or false", int: "an integer"}


@dataclass(frozen=True)
class Arm:
    """One way to train. `paper` is the row of the paper's table that it stands for; `overrides` are its settings."""

    name: str
    label: str
    overrides: Mapping[str, Any]
    paper: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The difference `of` − `against`, paired by seed, in the named metrics; None for all of the sweep."""

    of: str
    against: str
    metrics: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Matched:
    """Each arm against a family of references at equal `x`.

    For each seed the curve through the family (x, metric) is interpolated at the arm's x; the paired value is the
    arm's metric minus the curve's.

    Attributes:
        references: prefix of the names of the family.
        arms: which arms; None for all but the references' own.
    """

    x: str
    references: str
    metrics: tuple[str, ...]
    arms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Experiment:
    """One question: the arms, what they share, the seeds, the measures, and the comparisons that answer it.

    Attributes:
        domain: as `open_domain` takes it.
        settings: of all arms, above the domain's defaults.
        table: "table4" or "table6" of the paper, or None.
        paper: the column of that table that a measure is held against, by the measure's name.
        nightly: too long for a session of 15 minutes on two cores.
        cpu_minutes: what all cells cost on one core, as measured; None if nobody has.
    """

    name: str
    question: str
    domain: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...] = ()
    matched: Matched | None = None
    table: str | None = None
    paper: Mapping[str, str] = field(default_factory=dict)
    nightly: bool = False
    cpu_minutes: float | None = None

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def tests(self) -> int:
        """How many tests the file asks for: comparisons times metrics, and those of `matched`."""
        count = sum(len(comparison.metrics or self.metrics) for comparison in self.comparisons)
        if self.matched is not None:
            count += len(self.matched_arms()) * len(self.matched.metrics)
        return count

    def matched_arms(self) -> tuple[str, ...]:
        """The arms that `matched` holds against its references.

        Unless the file names them, these are all but the references' own arm, whose name theirs begin with.
        """
        if self.matched is None:
            return ()
        owner = self.matched.references.partition(":")[0]
        return self.matched.arms or tuple(arm.name for arm in self.arms if arm.name != owner)

    def overrides(self, arm: Arm) -> dict[str, Any]:
        """What the file sets for an arm, common settings included."""
        return {**self.settings, **arm.overrides}


def shipped() -> list[Path]:
    """The experiments that come with the harness."""
    return sorted(EXPERIMENTS.glob("*.toml"))


def find_experiment(spec: str) -> Path:
    """The file of an experiment, given as a path or as the name of a shipped one.

    Raises:
        UserError: there is neither.
    """
    path = Path(spec)
    if path.suffix == ".toml" and path.is_file():
        return path
    names = [file.stem for file in shipped()]
    if spec in names:
        return EXPERIMENTS / f"{spec}.toml"
    raise UserError(
        f"no experiment {spec!r}{did_you_mean(spec, names)}; expected a TOML file, or a name that "
        f"`bench sweep --list` shows"
    )


def read_experiment(path: Path) -> Experiment:
    """Reads and checks a file, as far as that is possible without its domain (see `check_experiment`).

    Raises:
        UserError: not TOML, an unknown or missing key, a value of the wrong type, or parts that do not fit together.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read as an experiment: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    return experiment_from(raw, str(path))


def experiment_from(raw: Mapping[str, Any], where: str = "experiment") -> Experiment:
    """The experiment of a file's content; `where` begins its errors, see `read_experiment`."""
    top = _Table(raw, where, ("sweep", "settings", "arms", "comparisons"))
    sweep = _Table(top.value("sweep", dict), f"{where}, [sweep]", SWEEP_KEYS)
    arms = tuple(_arm(name, content, where) for name, content in top.value("arms", dict).items())
    if not arms:
        raise UserError(f"{where}: [arms] is empty; expected at least one [arms.NAME]")
    names = [arm.name for arm in arms]
    metrics = sweep.texts("metrics")
    if not metrics:
        raise UserError(f"{where}, [sweep], metrics: expected the names of one measure or more, found none")
    _refuse_twice(metrics, f"{where}, [sweep], metrics")
    matched = sweep.value("matched", dict, None)
    experiment = Experiment(
        name=_name(sweep.value("name", str), f"{where}, [sweep], name"),
        question=sweep.value("question", str),
        domain=sweep.value("domain", str),
        seeds=seeds_from(sweep.value("seeds", (str, list)), f"{where}, [sweep], seeds"),
        metrics=metrics,
        settings={
            **top.value("settings", dict, {}),
            **{key: sweep.value(key, int) for key in SETTINGS_IN_SWEEP if key in sweep.raw},
        },
        arms=arms,
        comparisons=_comparisons(top.value("comparisons", list, []), names, metrics, where),
        matched=None if matched is None else _matched(matched, names, f"{where}, [sweep], matched"),
        table=_one_of(sweep.value("table", str, None), PAPER_TABLES, f"{where}, [sweep], table"),
        paper=sweep.value("paper", dict, {}),
        nightly=sweep.value("nightly", bool, False),
        cpu_minutes=sweep.value("cpu_minutes", (int, float), None),
    )
    for key in experiment.paper:
        _one_of(key, metrics, f"{where}, [sweep], paper")
    if experiment.table is None and (experiment.paper or any(arm.paper for arm in arms)):
        raise UserError(f"{where}: `paper` names figures of the paper; expected table = one of {_list(PAPER_TABLES)}")
    return experiment


def check_experiment(experiment: Experiment, domain: Domain) -> None:
    """Checks settings and measures against the domain, before anything heavy is imported.

    Raises:
        UserError: an unknown measure or setting, a value that the domain refuses, or two arms with equal settings.
    """
    measures = [measure.name for measure in domain.measures]
    wanted = [*experiment.metrics, *((experiment.matched.x, *experiment.matched.metrics) if experiment.matched else ())]
    for name in wanted:
        if name not in measures:
            raise UserError(
                f"{experiment.name}: the domain {domain.name} has no measure {name!r}{did_you_mean(name, measures)}; "
                f"it has {_list(measures)}"
            )
    known = [name for name in domain.settings() if name != "seed"]
    seen: dict[str, str] = {}
    for arm in experiment.arms:
        overrides = experiment.overrides(arm)
        for key in overrides:
            where = f"[arms.{arm.name}]" if key in arm.overrides else "[settings]"
            if key == "seed":
                raise UserError(f"{experiment.name}, {where}: `seed` is not a setting; [sweep] has `seeds`")
            if key not in known:
                raise UserError(
                    f"{experiment.name}, {where}: unknown setting {key!r}{did_you_mean(key, known)}; "
                    f"the domain {domain.name} knows {_list(known)}"
                )
        settings = resolved_settings(experiment, arm, domain)
        try:
            domain.check(settings)
        except UserError as error:
            raise UserError(f"{experiment.name}, [arms.{arm.name}]: {error}") from error
        twin = seen.setdefault(sha256_json(settings), arm.name)
        if twin != arm.name:
            raise UserError(
                f"{experiment.name}: the arms {twin!r} and {arm.name!r} have equal settings; expected each to differ"
            )


def resolved_settings(experiment: Experiment, arm: Arm, domain: Domain) -> dict[str, Any]:
    """Every setting of an arm: the domain's defaults, then the file's. As JSON has them, with lists for tuples."""
    defaults = domain.settings()
    overrides = experiment.overrides(arm)
    return {key: plain(like(default, overrides.get(key, default))) for key, default in defaults.items()}


def like(default: Any, value: Any) -> Any:
    """A value of TOML in the type of a setting's default: 1 for a fraction is 1.0, so that equal settings are equal."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple) and default:
        return [like(default[0], item) for item in value]
    return value


def plain(value: Any) -> Any:
    """A setting as JSON would give it back."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def seeds_from(given: str | Sequence[Any], where: str) -> tuple[int, ...]:
    """`"0-7"`, `"0-7,12"` or a list of integers.

    Raises:
        UserError: another form, no seed, or one given twice.
    """
    if isinstance(given, str):
        parts = [re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip()) for part in given.split(",")]
        if not all(parts):
            raise UserError(f"{where}: {given!r}; expected seeds such as 0-7 or 0-7,12")
        pairs = [(int(part[1]), int(part[2] or part[1])) for part in parts if part]
        seeds = [seed for low, high in pairs for seed in range(low, high + 1)]
    else:
        seeds = list(given)
        if not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
            raise UserError(f"{where}: {given!r}; expected integers of 0 or more")
    if not seeds:
        raise UserError(f"{where}: {given!r} holds no seed; expected one or more")
    _refuse_twice(seeds, where)
    return tuple(seeds)


def chosen(names: Sequence[str] | None, experiment: Experiment) -> tuple[Arm, ...]:
    """The arms of those names, in the order of the file; all of them for None.

    Raises:
        UserError: one is unknown or given twice.
    """
    if names is None:
        return experiment.arms
    known = [arm.name for arm in experiment.arms]
    for name in names:
        _one_of(name, known, f"{experiment.name}, --arms")
    _refuse_twice(names, f"{experiment.name}, --arms")
    return tuple(arm for arm in experiment.arms if arm.name in names)


def measures_of(names: Iterable[str], domain: Domain) -> tuple[Measure, ...]:
    """The domain's measures of those names, in that order."""
    by_name = {measure.name: measure for measure in domain.measures}
    return tuple(by_name[name] for name in names)


class _Table:
    """A table of the file: its keys are known, and each value is asked for with its type."""

    def __init__(self, raw: Any, where: str, known: Sequence[str]) -> None:
        if not isinstance(raw, Mapping):
            raise UserError(f"{where}: expected a table, found {raw!r}")
        for key in raw:
            if key not in known:
                raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known are {_list(known)}")
        self.raw, self.where = raw, where

    def value(self, key: str, kind: Any, *default: Any) -> Any:
        if key not in self.raw:
            if default:
                return default[0]
            raise UserError(f"{self.where}: `{key}` is missing")
        value = self.raw[key]
        kinds: tuple[type, ...] = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = [TOML_NAMES.get(one, one.__name__) for one in kinds]
            raise UserError(f"{self.where}, {key}: expected {' or '.join(names)}, found {value!r}")
        return value

    def texts(self, key: str, *default: Any) -> Any:
        values = self.value(key, list, *default)
        if values is not None and not all(isinstance(value, str) for value in values):
            raise UserError(f"{self.where}, {key}: expected a list of names, found {values!r}")
        return None if values is None else tuple(values)


def _arm(name: str, raw: Any, where: str) -> Arm:
    where = f"{where}, [arms.{name}]"
    _name(name, where)
    table = _Table(raw, where, list(raw) if isinstance(raw, Mapping) else ())
    overrides = {key: value for key, value in table.raw.items() if key not in ("label", "paper")}
    return Arm(name, table.value("label", str, name), overrides, table.value("paper", str, None))


def _comparisons(raw: list[Any], arms: list[str], metrics: tuple[str, ...], where: str) -> tuple[Comparison, ...]:
    found: list[Comparison] = []
    for number, content in enumerate(raw, 1):
        place = f"{where}, [[comparisons]] {number}"
        table = _Table(content, place, ("of", "against", "metrics"))
        of, against = (_one_of(table.value(key, str), arms, f"{place}, {key}") for key in ("of", "against"))
        if of == against:
            raise UserError(f"{place}: {of!r} is compared with itself; expected two arms")
        if any({of, against} == {other.of, other.against} for other in found):
            raise UserError(f"{place}: {of!r} and {against!r} are compared twice; expected each pair once")
        chosen_metrics = table.texts("metrics", None)
        for name in chosen_metrics or ():
            _one_of(name, metrics, f"{place}, metrics")
        _refuse_twice(chosen_metrics or (), f"{place}, metrics")
        found.append(Comparison(of, against, chosen_metrics))
    return tuple(found)


def _matched(raw: Any, arms: list[str], where: str) -> Matched:
    table = _Table(raw, where, ("x", "references", "metrics", "arms"))
    matched = Matched(
        table.value("x", str), table.value("references", str), table.texts("metrics"), table.texts("arms", None)
    )
    for name in matched.arms or ():
        _one_of(name, arms, f"{where}, arms")
    if matched.x in matched.metrics:
        raise UserError(f"{where}: {matched.x!r} is both x and a metric; at equal {matched.x} it does not differ")
    return matched


def _name(name: str, where: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} cannot name a folder; use letters, digits, '.', '_' and '-'")
    return name


def _one_of(name: Any, known: Sequence[str], where: str) -> Any:
    if name is not None and name not in known:
        raise UserError(f"{where}: unknown {name!r}{did_you_mean(name, known)}; expected one of {_list(known)}")
    return name


def _refuse_twice(items: Iterable[Any], where: str) -> None:
    listed = list(items)
    twice = [item for item in dict.fromkeys(listed) if listed.count(item) > 1]
    if twice:
        raise UserError(f"{where}: {_list(map(str, twice))} given twice; expected each once")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
