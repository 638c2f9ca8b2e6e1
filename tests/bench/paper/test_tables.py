"""The paper's tables as data, and from a command line to a plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli import main
from bench.methods import METHODS
from bench.metrics import METRICS
from bench.options import RunOptions
from bench.paper.tables import (
    NEWER,
    PAPER_METRICS,
    PRINTED,
    TABLES,
    PaperRow,
    get_profile,
    is_of_the_paper,
    pairs_of,
    paper_figures,
    printed_rows,
)
from bench.records.schema import Plan, PlanSet
from bench.run.plan import choose, make_plan
from bench.run.request import Request
from bench.testsets.manifest import TESTSETS
from tsd.errors import UserError

TABLE1, MINI = get_profile("table1", "mini")
SETS = [PlanSet("mini", "Mini", ["a"], 1)]


def choice(**chosen):
    return choose(TABLE1, "mini", RunOptions(), **({"testsets": None, "methods": None, "metrics": None} | chosen))


def plan(chosen, old: Plan | None = None, **more) -> Plan:
    return make_plan(chosen, SETS, **({"seed": 42, "reference": "bicubic", "old": old} | more))


def test_the_nine_metrics_are_the_papers_in_its_order() -> None:
    assert tuple(METRICS) == PAPER_METRICS
    assert tuple(paper_figures("table1.csv")[0]) == ("dataset", "method", "steps", *PAPER_METRICS)


def test_every_table_has_the_papers_figures_and_every_profile_known_names() -> None:
    assert list(TABLES) == [f"table{number}" for number in range(1, 8)]
    for spec in TABLES.values():
        assert paper_figures(spec.paper)
        for profile in spec.profiles.values():
            assert set(profile.testsets) <= set(TESTSETS)
            assert set(profile.metrics) <= set(METRICS)
            assert profile.reference in [row.method for row in profile.rows]


def test_table_1_can_be_measured_in_both_profiles() -> None:
    assert [row.method for row in MINI.rows] == [
        "bicubic",
        "lanczos",
        "teacher-20",
        "osediff-mini",
        "tsd-sr-mini",
        "tsd-sr-mini-small-decoder",
        "realesrgan-compact",
    ]
    assert all(row.method in METHODS for row in MINI.rows)
    _, paper = get_profile("table1", "paper")
    assert [row.display for row in paper.rows] == ["Bicubic", "OSEDiff", "AddSR", "SinSR", "TSD-SR"]
    assert paper.testsets == ("drealsr", "realsr", "div2k-val")


def test_rows_of_the_paper_profiles_are_those_of_the_papers_tables() -> None:
    for name in ("table1", "table2", "table7"):
        spec, profile = get_profile(name, "paper")
        printed = {(row["method"], row["steps"]) for row in paper_figures(spec.paper)}
        rows = {(row.display, str(row.steps)) for row in profile.rows if row.method != "bicubic"}
        assert rows == printed


@pytest.mark.parametrize(
    ("table", "profile", "says"),
    [
        ("tabel1", "mini", "Did you mean 'table1'?"),
        ("x", "mini", "Known: table1, table2"),
        ("table4", "mini", "`bench paper table4` prints the paper's own figures"),
        ("table6", "mini", "--table table2 --profile paper"),
    ],
)
def test_what_cannot_be_measured_is_said_with_what_can(table: str, profile: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        get_profile(table, profile)
    assert says in str(error.value)


def test_a_run_without_names_is_the_profile() -> None:
    chosen = choice()
    assert chosen.testsets == ("mini",)
    assert [row.name for row in chosen.rows] == [row.method for row in MINI.rows]
    assert tuple(spec.name for spec in chosen.metrics) == PAPER_METRICS


def test_names_are_taken_in_the_order_given_and_once() -> None:
    chosen = choice(methods=["lanczos", "bicubic", "lanczos"], metrics=["ssim", "psnr", "ssim"])
    assert [row.name for row in chosen.rows] == ["lanczos", "bicubic"]
    assert [spec.name for spec in chosen.metrics] == ["ssim", "psnr"]


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"testsets": ["realSR"]}, "unknown test set 'realSR'"),
        ({"methods": ["bicubik"]}, "bicubic"),
        ({"metrics": ["pnsr"]}, "psnr"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_known(chosen: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        choice(**chosen)
    assert says in str(error.value)


def test_missing_weights_are_found_by_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("TSD_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    chosen = choice(methods=["bicubic", "realesrgan-compact", f"net=spandrel:{tmp_path / 'no.pth'}"])
    assert set(chosen.missing_methods) == {("mini", "realesrgan-compact"), ("mini", "net")}
    assert {"psnr", "ssim"}.isdisjoint(chosen.missing_metrics)
    assert set(chosen.missing_metrics) == set(PAPER_METRICS) - {"psnr", "ssim", "niqe"}
    made = plan(chosen)
    reasons = {method.name: method.missing["mini"] for method in made.methods}
    assert reasons["bicubic"] == []
    assert "no.pth" in reasons["net"][0]
    assert any("alexnet" in line for metric in made.metrics if metric.name == "lpips" for line in metric.missing)
    assert len(chosen.missing()) == len(set(chosen.missing()))


def test_a_method_without_an_adapter_keeps_its_row_and_says_so() -> None:
    table, profile = get_profile("table1", "paper")
    newer = replace(profile, rows=(*profile.rows, PaperRow("newer", "Newer", 1)))
    table = replace(table, profiles={"paper": newer})
    chosen = choose(table, "paper", RunOptions(), testsets=["realsr"], methods=None, metrics=["psnr"])
    by_name = {method.name: method for method in plan(chosen).methods}
    assert by_name["newer"].missing == {"realsr": ["Newer: this harness has no adapter for it yet"]}
    assert ("realsr", "newer") not in chosen.missing_methods, "that is nothing a user can fetch"


def test_every_row_of_the_papers_tables_has_a_method() -> None:
    for name in ("table1", "table2", "table5", "table7"):
        for profile in TABLES[name].profiles.values():
            missing = [row.method for row in profile.rows if row.method not in METHODS and "teacher-" not in row.method]
            assert missing == []


def test_what_was_measured_before_stays_in_the_table_in_the_tables_order(tmp_path: Path) -> None:
    first = plan(choice(methods=["lanczos"], metrics=["ssim"]))
    own = tmp_path / "own.pth"
    own.write_bytes(b"")
    second = plan(choice(methods=["bicubic", f"own=spandrel:{own}"], metrics=["psnr"]), old=first)
    assert [method.name for method in second.methods] == ["bicubic", "lanczos", "own"]
    assert [metric.name for metric in second.metrics] == ["psnr", "ssim"]
    assert second.testsets == SETS
    again = plan(choice(methods=["lanczos"], metrics=["ssim"]), old=second)
    assert again == second


def test_reasons_of_other_test_sets_are_kept(tmp_path: Path) -> None:
    chosen = choice(methods=["osediff-published"], metrics=["psnr"])
    first = plan(chosen)
    assert "realsr only" in first.methods[0].missing["mini"][0]
    other = replace(chosen, testsets=("realsr",), missing_methods={})
    assert set(plan(other, old=first).methods[0].missing) == {"mini", "realsr"}


def test_a_folder_holds_one_seed_and_one_profile() -> None:
    first = plan(choice(methods=["bicubic"], metrics=["psnr"]))
    with pytest.raises(UserError, match="--profile mini --seed 42, now --profile mini --seed 7"):
        plan(choice(methods=["bicubic"], metrics=["psnr"]), old=first, seed=7)


def test_a_limited_run_does_not_touch_the_full_table() -> None:
    assert Request().folder() == Path("reports/mini")
    assert Request(limit=3).folder() == Path("reports/mini-first3")


def test_table_2_sets_one_step_against_many_of_the_same_base() -> None:
    _, mini = get_profile("table2", "mini")
    chosen = choose(TABLES["table2"], "mini", RunOptions(), testsets=None, methods=None, metrics=["psnr"])
    assert [(row.name, row.steps) for row in chosen.rows] == [
        ("bicubic", None), ("teacher-20", 20), ("teacher-5", 5), ("teacher-1", 1), ("tsd-sr-mini", 1),
    ]  # fmt: skip
    assert all(row.spec is not None for row in chosen.rows)
    assert [row.display for row in chosen.rows] == [row.display for row in mini.rows]
    assert len({row.display for row in chosen.rows}) == 5, "rows are told apart by their names alone"
    assert pairs_of("table2", "mini") == (("tsd-sr-mini", "teacher-20"), ("tsd-sr-mini", "teacher-1"))


def test_table_7_has_the_four_gans_in_both_profiles() -> None:
    gans = ["bsrgan", "realesrgan", "ldl", "femasr"]
    for profile, last in (("mini", ["realesrgan-compact", "tsd-sr-mini"]), ("paper", ["tsd-sr"])):
        _, found = get_profile("table7", profile)
        assert [row.method for row in found.rows] == ["bicubic", *gans, *last]
    assert get_profile("table7", "mini")[1].allow_missing


def test_without_a_ground_truth_the_columns_are_those_that_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    unreferenced = choice(testsets=["realsrset"])
    assert [spec.name for spec in unreferenced.metrics] == ["niqe", "musiq", "maniqa", "clipiqa"]
    assert set(unreferenced.missing_metrics) == {"musiq", "maniqa", "clipiqa"}
    mixed = choice(testsets=["mini", "realsrset"])
    assert tuple(spec.name for spec in mixed.metrics) == PAPER_METRICS
    asked = choice(testsets=["realsrset"], metrics=["lpips", "musiq"])
    assert [spec.name for spec in asked.metrics] == ["lpips", "musiq"]
    assert set(asked.missing_metrics) == {"musiq"}, "the weights of what cannot be measured are not asked for"


def test_table_5_sets_the_recipes_against_each_other_on_every_base() -> None:
    spec, mini = get_profile("table5", "mini")
    assert pairs_of("table5", "mini") == (("tsd-sr-mini-sd2", "osediff-mini-sd2"), ("tsd-sr-mini", "osediff-mini"))
    assert all(row.method in METHODS for row in mini.rows)
    _, paper = get_profile("table5", "paper")
    figures = paper_figures(spec.paper)
    assert paper.metrics == tuple(key for key in figures[0] if key in PAPER_METRICS)
    assert [row.display for row in paper.rows[1:]] == [f"{row['method']} ({row['base_model']})" for row in figures]
    for profile in (mini, paper):
        names = [row.method for row in profile.rows]
        assert all(name in names for pair in profile.pairs for name in pair)
    assert pairs_of("table1", "mini") == (("tsd-sr-mini-small-decoder", "tsd-sr-mini"),)
    assert pairs_of("of another version", "mini") == ()


def test_two_methods_of_one_name_are_refused_and_none_is_dropped(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "out").mkdir(parents=True)
    methods = [f"folder:{tmp_path}/{folder}/out" for folder in ("a", "b")]
    with pytest.raises(UserError, match="would both be called 'folder-out': put another name before one"):
        choice(methods=["bicubic", *methods])
    named = choice(methods=["bicubic", methods[0], f"b={methods[1]}", methods[0]])
    assert [row.name for row in named.rows] == ["bicubic", "folder-out", "b"]


def test_newer_methods_follow_the_rows_of_table_1_and_of_no_other() -> None:
    _, paper = get_profile("table1", "paper")
    spec, newer = get_profile("table1", "paper", newer=True)
    assert newer.rows == (*paper.rows, *NEWER)
    assert spec.profiles["paper"] is newer
    assert all(METHODS[row.method].display == row.display for row in NEWER)
    for table, profile in (("table1", "mini"), ("table7", "paper")):
        with pytest.raises(UserError, match="newer methods belong to --table table1 --profile paper"):
            get_profile(table, profile, newer=True)


def test_the_papers_own_figures_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(PRINTED)
    for name, (title, _) in PRINTED.items():
        assert main(["paper", name]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"{title}, as printed, not measured here\n\n|")
        for row in printed_rows(name)[1]:
            assert all(text in shown for text in row.values())
    assert main(["paper", "Table 1", "--dataset", "realsr", "--metrics", "psnr", "--csv"]) == 0
    assert capsys.readouterr().out == (
        "dataset,method,steps,psnr\nRealSR,OSEDiff,1,25.15\nRealSR,AddSR,1,24.79\nRealSR,SinSR,1,26.27\n"
        "RealSR,TSD-SR,1,24.81\n"
    )
    for arguments, says in (
        (["figure7"], "Did you mean 'figure8'?"),
        (["table3", "--dataset", "realsr"], "it has no test sets"),
        (["table1", "--metrics", "psnr", "vif"], "table1 prints no vif"),
    ):
        assert main(["paper", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_a_table_of_ones_own_rows_or_images_is_not_the_papers() -> None:
    assert is_of_the_paper("table1", ["bicubic"], ["mini"])
    assert is_of_the_paper("table1", ["bicubic", "osediff-published", "mine"], ["realsr"])
    assert is_of_the_paper("table1", ["bicubic", "s3diff"], ["realsr"])
    assert not is_of_the_paper("table1", ["bicubic", "lanczos", "mine"], ["mini"])
    assert not is_of_the_paper("table7", ["bicubic", "bsrgan-published"], ["realsrset"])
