"""`bench install` on cards of one's own, and the options of `bench run` that go with it."""

import re
from pathlib import Path

import pytest

from bench import cli
from bench.cli import build_parser
from bench.commands.run import request_of
from bench.run.pipeline import Stages


def install(*arguments: object) -> int:
    return cli.main(["install", *map(str, arguments)])


def test_ready_and_then_as_it_was(built, make_card, options, tmp_path, capsys) -> None:
    card = make_card(name="installed")
    path = tmp_path / "cards/installed.toml"
    places = ["--cache", options.cache(), "--weights-root", options.weights()]
    assert install(f"card:{path}", *places) == 0
    plan, _, state = capsys.readouterr().out.strip().split("\n")
    assert plan.startswith(f"installed: {card.repository} at {card.commit[:12]} -> ")
    assert state == "installed: ready"
    link = options.cache() / "repositories" / f"installed-{card.commit[:12]}" / "weights/tiny.bin"
    assert link.read_bytes() == (options.weights() / "tiny.bin").read_bytes()
    (options.weights() / "tiny.bin").unlink()
    assert install(f"card:{path}", *places) == 0
    said = capsys.readouterr().out
    assert "(checked out)" in said
    assert "(built)" in said
    assert said.endswith("installed: ready, as it was; 1 weights are missing: `bench fetch card:installed.toml`\n")


def test_one_that_fails_does_not_keep_the_others_from_it(built, make_card, options, tmp_path, capsys) -> None:
    make_card(name="bad", repository="https://example.org/Bad", commit="0" * 40)
    make_card(name="good")
    clones = tmp_path / "clones"
    clones.mkdir()
    (clones / "Tiny").symlink_to(make_card().repository)
    names = [f"card:{tmp_path}/cards/{name}.toml" for name in ("bad", "good")]
    (clones / "good.git").symlink_to(Path(make_card().repository) / ".git")
    (clones / "Tiny").unlink()
    assert install(*names, "--cache", options.cache(), "--repo-dir", clones) == 1
    last = capsys.readouterr().out.strip().split("\n")[-2:]
    assert re.match(r"bad: failed: --repo-dir holds no repository of Tiny; expected a clone Bad/", last[0])
    assert last[1].startswith("good: ready")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bicubic", "bicubic runs in process or as published outputs: there is nothing to install for it"),
        ("sinsir", "no method is called 'sinsir'"),
        ("card:nowhere.toml", "no card at nowhere.toml"),
    ],
)
def test_what_cannot_be_installed(name: str, message: str, capsys) -> None:
    assert install(name) == 2
    assert message in capsys.readouterr().err


def test_the_options_of_a_run_reach_the_method(tmp_path: Path) -> None:
    given = ["--repo-dir", tmp_path / "r", "--cache", tmp_path / "c", "--time-limit", "90", "--seed", "7"]
    for verb in ("run", "restore"):
        args = build_parser().parse_args(
            [verb, "--methods", "bicubic", "--limit", "1", "--out", str(tmp_path / "out"), *map(str, given)]
        )
        options = Stages.of(request_of(args), scoring=False).options
        assert (options.repo_dir, options.cache()) == (tmp_path / "r", tmp_path / "c")
        assert (options.time_limit_seconds, options.seed) == (90.0, 7)


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "soon"])
def test_no_time_limit_at_all_is_not_one(seconds: str, capsys) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--time-limit", seconds])
    assert "--time-limit" in capsys.readouterr().err
