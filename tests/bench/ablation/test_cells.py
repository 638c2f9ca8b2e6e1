"""A cell's key changes with what decides about its result, and cells of another origin are refused by name."""

from pathlib import Path
from typing import Any

import pytest
from line_domain import LineDomain

from bench.ablation.cells import Identity, Job, jobs_of, refuse_stale, remove_stale, write_code_files, write_json
from bench.ablation.code_version import code_files, code_version, without_words
from bench.ablation.domain import Domain, open_domain
from bench.ablation.experiment import experiment_from
from bench.ablation.sweep import on_disk
from tsd.errors import UserError

SOURCE = '''
"""A module."""
RATE = 0.1  # a comment
"""What it is."""

def step(x: float) -> float:
    """A docstring."""
    return x * RATE
'''


def test_the_version_ignores_words_and_layout_but_no_statement(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"

    def version(text: str) -> str:
        source.write_text(text)
        return code_version(code_files([source]))

    first = version(SOURCE)
    assert (
        version(SOURCE.replace("A docstring", "Another").replace("# a comment", "# none").replace("\n\n", "\n"))
        == first
    )
    assert version(SOURCE.replace('"""What it is."""', "")) == first
    assert version(SOURCE.replace("x * RATE", "x + RATE")) != first
    assert version(SOURCE.replace("0.1", "0.2")) != first
    assert without_words('def f():\n    """Nothing."""\n') == "def f():\n    pass"


def test_the_version_covers_the_training_code_and_the_domains(tmp_path: Path) -> None:
    names = set(code_files([]))
    assert {"tsd/config.py", "tsd/seeds.py", "tsd/algorithm/dasm.py", "tsd/train/run.py", "tsd/data/pairs.py"} <= names
    assert not any(name.startswith(("tsd/commands", "tsd/export")) for name in names)
    (tmp_path / "recipe.toml").write_text("a = 1")
    assert "recipe.toml" in code_files([tmp_path / "recipe.toml"])


def jobs(raw: dict[str, Any], domain: Domain, out: Path, seeds: tuple[int, ...] = (0, 1)) -> list[Job]:
    experiment = experiment_from(raw)
    return jobs_of(experiment, domain, Identity.of(domain), out, experiment.arms, seeds)


def test_jobs_come_seed_by_seed_and_share_nothing_but_the_seed(raw: dict[str, Any], tmp_path: Path) -> None:
    found = jobs(raw, LineDomain(), tmp_path)
    assert [job.name() for job in found] == [
        f"{arm}, seed {seed}" for seed in (0, 1) for arm in ("full", "slow", "references")
    ]
    assert len({job.key for job in found}) == len(found)
    assert [job.key for job in jobs(raw, LineDomain(references=()), tmp_path)] == [job.key for job in found if job.cell]


def test_the_key_changes_with_settings_base_and_code_alone(raw: dict[str, Any], tmp_path: Path) -> None:
    def key(domain: LineDomain) -> str:
        return jobs(raw, domain, tmp_path)[0].key

    source = tmp_path / "mine.py"
    source.write_text("a = 1")
    first = key(LineDomain(source=source))
    raw["arms"]["full"]["label"] = "the full method"
    raw["sweep"]["checkpoint_every"] = 2  # changes what is kept, not the result
    raw["arms"]["third"] = {"lr": 0.2}
    assert key(LineDomain(source=source)) == first
    assert key(LineDomain(source=source, base="base-2")) != first
    source.write_text("a = 2")
    assert key(LineDomain(source=source)) != first
    source.write_text("a = 1")
    raw["settings"]["steps"] = 16
    assert key(LineDomain(source=source)) != first


def begun(raw: dict[str, Any], domain: LineDomain, out: Path) -> None:
    """Every cell as if its training had begun."""
    identity = Identity.of(domain)
    write_code_files(identity, out)
    for job in jobs(raw, domain, out):
        write_json(job.folder / "cell.json", dict(job.origin))


def refusal(raw: dict[str, Any], domain: LineDomain, out: Path) -> str:
    identity = Identity.of(domain)
    found = on_disk(experiment_from(raw), domain, identity, out)
    with pytest.raises(UserError) as caught:
        refuse_stale(found, identity, out)
    return str(caught.value)


def test_what_changed_since_is_named(raw: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text("a = 1")
    domain, out = LineDomain(source=source), tmp_path / "out"
    begun(raw, domain, out)
    identity = Identity.of(domain)
    refuse_stale(on_disk(experiment_from(raw), domain, identity, out), identity, out)  # nothing changed

    raw["arms"]["slow"]["lr"] = 0.25
    text = refusal(raw, domain, out)
    assert "2 of 6 cells" in text
    assert "slow (2 cells): the settings changed (lr 0.1 → 0.25)" in text
    assert "--redo-stale" in text
    assert "another --out" in text
    raw["arms"]["slow"]["lr"] = 0.1

    assert "the base was base-1, now base-2" in refusal(raw, LineDomain(source=source, base="base-2"), out)
    source.write_text("a = 2")
    assert "the training code changed (mine.py)" in refusal(raw, domain, out)


def test_more_arms_and_seeds_do_not_touch_what_is_there(raw: dict[str, Any], tmp_path: Path) -> None:
    begun(raw, LineDomain(), tmp_path)
    raw["arms"]["third"] = {"lr": 0.2}
    raw["sweep"]["seeds"] = "0-20"
    identity = Identity.of(LineDomain())
    found = on_disk(experiment_from(raw), LineDomain(), identity, tmp_path)
    assert {job.state() for job in found} == {"begun"}
    assert len(found) == 6


def test_stale_cells_are_removed_on_request_and_no_others(raw: dict[str, Any], tmp_path: Path) -> None:
    begun(raw, LineDomain(), tmp_path)
    raw["arms"]["slow"]["lr"] = 0.25
    assert remove_stale(jobs(raw, LineDomain(), tmp_path)) == 2
    assert {job.arm: job.state() for job in jobs(raw, LineDomain(), tmp_path)} == {
        "full": "begun",
        "slow": "new",
        "references": "begun",
    }


def test_an_unknown_domain_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no domain 'texts'; expected one of"):
        open_domain("texts")


def test_a_changed_file_of_ones_own_makes_its_cells_stale(
    raw: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def f(): return 1\n")
    raw["arms"]["full"]["act"] = "python:mine.py:f"
    domain, out = LineDomain(), tmp_path / "out"
    for job in jobs(raw, domain, out):
        write_json(job.folder / "cell.json", dict(job.origin))
    assert {job.state() for job in jobs(raw, domain, out)} == {"begun"}
    Path("mine.py").write_text("def f(): return 2\n")
    found = jobs(raw, domain, out)
    assert {job.arm for job in found if job.state() == "stale"} == {"full"}
    with pytest.raises(UserError, match=r"full \(2 cells\): mine.py changed"):
        refuse_stale(found, Identity.of(domain), out)
