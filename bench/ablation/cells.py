"""The cells of a sweep on disk: what each is made from, what is done, and what does not fit the present file or code.

Under the output folder of a sweep:

    cells/ARM/seed-0003/cell.json          what the cell is made from; written first
    cells/ARM/seed-0003/…                  what the domain leaves, see `Domain.run`
    cells/ARM/seed-0003/spent.json         costs of the calls that were interrupted
    cells/ARM/seed-0003/error.json         the last failure; the next call tries again
    cells/ARM/seed-0003/done.json          costs and environment; written last
    references/seed-0003/…                 the same for the rows that need no training
    sweep.json, cells.jsonl, images.npz    what a report needs, see bench/ablation/records.py

A key is a hash of everything that decides about a cell: its settings with the files that they name, its seed, the
base, and the training code. A folder with another key is never continued and never reported beside the others.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.ablation.code_version import code_files, code_version
from bench.ablation.domain import Cell, Domain, Measure
from bench.ablation.experiment import Arm, Experiment, resolved_settings
from bench.provenance import sha256_json
from tsd.errors import UserError
from tsd.files import function_named, sha256_file, write_text

UNKEYED = ("checkpoint_every",)
"""Settings that change what is kept for resumption, never a result."""
COSTS = ("seconds", "cpu_seconds", "peak_mib", "calls")
"""Keys of done.json and spent.json."""
State = Literal["new", "begun", "done", "stale"]


@dataclass(frozen=True)
class Identity:
    """What all cells of a sweep have in common besides settings: the hashes of base and code, and of each file."""

    domain: str
    base: str
    code: str
    files: Mapping[str, str]

    @staticmethod
    def of(domain: Domain) -> "Identity":
        files = code_files(domain.code())
        return Identity(domain.name, domain.fingerprint(), code_version(files), files)


@dataclass(frozen=True)
class Job:
    """One unit of work: a cell, or the references of a seed where `cell` is None.

    Attributes:
        origin: content of cell.json.
    """

    folder: Path
    seed: int
    cell: Cell | None
    origin: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.origin["key"]

    @property
    def arm(self) -> str:
        """The arm's name; "references" for those."""
        return self.cell.arm if self.cell else "references"

    def name(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    def state(self) -> State:
        found = read_json(self.folder / "cell.json")
        if found is None:
            return "new"
        if found.get("key") != self.key:
            return "stale"
        return "done" if (self.folder / "done.json").is_file() else "begun"


def jobs_of(
    experiment: Experiment, domain: Domain, identity: Identity, out: Path, arms: Sequence[Arm], seeds: Sequence[int]
) -> list[Job]:
    """Everything to be done, seed by seed: an interrupted sweep has whole seeds, which are paired."""
    jobs: list[Job] = []
    common = {"experiment": experiment.name, **_identity(identity)}
    settings = {arm.name: resolved_settings(experiment, arm, domain) for arm in arms}
    for seed in seeds:
        for arm in arms:
            own = own_files(settings[arm.name])
            key = _key({**common, "settings": _keyed(settings[arm.name]), **own}, seed)
            cell = Cell(experiment.name, arm.name, seed, settings[arm.name], key)
            folder = out / "cells" / arm.name / f"seed-{seed:04d}"
            jobs.append(Job(folder, seed, cell, {**asdict(cell), **_identity(identity), **own}))
        if domain.references:
            origin = {**common, "seed": seed, "references": list(domain.references)}
            folder = out / "references" / f"seed-{seed:04d}"
            jobs.append(Job(folder, seed, None, {**origin, "key": _key(origin, seed)}))
    return jobs


def own_files(settings: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """{"own_files": SHA-256 by path} of the files that settings name as python:FILE.py:FUNCTION; empty without any."""
    named = [function_named(value) for value in settings.values() if isinstance(value, str)]
    found = {str(own[0]): sha256_file(own[0]) for own in named if own is not None and own[0].is_file()}
    return {"own_files": found} if found else {}


def refuse_stale(jobs: Sequence[Job], identity: Identity, out: Path) -> None:
    """Makes sure that what is in the folder may stand beside what is made now.

    Raises:
        UserError: some cells were made with other settings, another base or other code; says which and what differs.
    """
    stale = [job for job in jobs if job.state() == "stale"]
    if not stale:
        return
    reasons: dict[str, list[Job]] = {}
    for job in stale:
        reasons.setdefault(_difference(job, identity, out), []).append(job)
    lines = [f"{_some(found)}: {reason}" for reason, found in reasons.items()]
    raise UserError(
        f"{len(stale)} of {len(jobs)} cells in {out} were made otherwise. {'; '.join(lines)}. Nothing is mixed: "
        "give another --out, or --redo-stale to remove these cells and make them again"
    )


def remove_stale(jobs: Sequence[Job]) -> int:
    """Removes the folders of stale cells; returns how many."""
    stale = [job for job in jobs if job.state() == "stale"]
    for job in stale:
        shutil.rmtree(job.folder)
    return len(stale)


def reopen(jobs: Sequence[Job], measures: Sequence[Measure]) -> int:
    """Makes done cells that lack the score of a measure undone; returns how many. Their costs so far are kept.

    A domain that finds the training in a cell finished only scores it again.
    """
    reopened = 0
    for job in jobs:
        if job.state() != "done" or job.cell is None:
            continue
        lines = (job.folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()
        if {measure.name for measure in measures} <= json.loads(lines[-1]).keys():
            continue
        done = read_json(job.folder / "done.json") or {}
        write_json(job.folder / "spent.json", {name: done[name] for name in COSTS})
        (job.folder / "done.json").unlink()
        reopened += 1
    return reopened


def write_code_files(identity: Identity, out: Path) -> None:
    """Writes the digests of the files of this code version, from which a later call says which file changed."""
    path = out / "code" / f"{identity.code}.json"
    if not path.exists():
        write_json(path, dict(identity.files))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None if there is no file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); remove its folder, and the cell is made again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no object; remove its folder, and the cell is made again")
    return found


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; empty without the file.

    A torn last line (a kill in the middle of a write) is left out; any other that is not JSON is an error.
    """
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(f"{path}, line {number} is not JSON: {error}") from error
    return found


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], *, allow_nan: bool = True) -> None:
    """Writes a JSONL file atomically.

    Raises:
        ValueError: a number is not finite, and that is not allowed.
    """
    write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False, allow_nan=allow_nan)}\n" for row in rows))


def _identity(identity: Identity) -> dict[str, Any]:
    return {"domain": identity.domain, "base": identity.base, "code": identity.code}


def _key(origin: Mapping[str, Any], seed: int) -> str:
    content = {key: value for key, value in origin.items() if key != "experiment"} | {"seed": seed}
    return sha256_json(content)[:16]


def _keyed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in UNKEYED}


def _difference(job: Job, identity: Identity, out: Path) -> str:
    """Why a cell is stale, in one phrase: the settings, base or files that differ from then to now."""
    then = read_json(job.folder / "cell.json") or {}
    parts = []
    old, new = then.get("settings", {}), job.origin.get("settings", {})
    changed = [name for name in sorted({*old, *new}) if name not in UNKEYED and old.get(name) != new.get(name)]
    if changed:
        changes = [f"{name} {_value(old, name)} → {_value(new, name)}" for name in changed]
        parts.append(f"the settings changed ({', '.join(changes)})")
    if then.get("domain") != identity.domain:
        parts.append(f"the domain was {then.get('domain')}, now {identity.domain}")
    if then.get("base") != identity.base:
        parts.append(f"the base was {str(then.get('base'))[:12]}, now {identity.base[:12]}")
    if then.get("code") != identity.code:
        files = read_json(out / "code" / f"{then.get('code')}.json") or {}
        names = [name for name in sorted({*files, *identity.files}) if files.get(name) != identity.files.get(name)]
        shown = f" ({', '.join(names[:4])}{' and others' if len(names) > 4 else ''})" if files else ""
        parts.append(f"the training code changed{shown}")
    mine, now = then.get("own_files", {}), job.origin.get("own_files", {})
    altered = [name for name in sorted({*mine, *now}) if name in mine and name in now and mine[name] != now[name]]
    if altered:
        parts.append(f"{', '.join(altered)} changed")
    if then.get("references") != job.origin.get("references"):
        parts.append("the domain has other references")
    return ", ".join(parts) or "cell.json has another key"


def _value(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "(none)"


def _some(jobs: Sequence[Job]) -> str:
    names = dict.fromkeys(job.arm for job in jobs)
    shown = ", ".join(list(names)[:4]) + (" and others" if len(names) > 4 else "")
    return f"{shown} ({len(jobs)} cell{'s' if len(jobs) > 1 else ''})"
