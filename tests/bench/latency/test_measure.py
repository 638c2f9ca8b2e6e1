"""A whole measurement with cheap methods: taking turns, continuing, refusing, and the command line around it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.latency import measure, rows
from bench.latency.figures import measured_points, paper_points
from bench.latency.measure import input_image, measure_latency
from bench.latency.records import RowRecords
from bench.latency.request import LatencyRequest
from bench.paper.tables import paper_figures
from bench.records.schema import StaleRecords
from tsd.errors import UserError

OWN = """
def restore(lr, seed):
    return lr.repeat_interleave(4, 2).repeat_interleave(4, 3)


def fail(lr, seed):
    raise RuntimeError("no memory")
"""
Bench = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _cheap(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios refer to two ways of resizing, and the code's version is not computed anew for every run."""
    monkeypatch.setattr(rows, "REFERENCES", {"mini": ("bicubic", "lanczos"), "paper": ("bicubic", "lanczos")})
    monkeypatch.setattr(measure, "timed_code_version", lambda: "this code")
    Path("own.py").write_text(OWN)


def request(**changes: object) -> LatencyRequest:
    settings = {"methods": ["bicubic", "own=python:own.py:restore"], "sizes": [64], "rounds": 3, "warmups": 2}
    return LatencyRequest(**(settings | {"device": "cpu", "out": Path("out")} | changes))  # type: ignore[arg-type]


def calls(name: str, size: int = 64) -> list[tuple[str, int]]:
    return list(RowRecords(Path("out"), name, size).calls())


def test_methods_take_turns_and_an_interrupted_measurement_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    order, left = [], 17
    plain = measure.timed_call

    def interrupted(method, lr, device):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        order.append(type(method).__name__)
        return plain(method, lr, device)

    monkeypatch.setattr(measure, "timed_call", interrupted)
    # 3 first calls, of 6 warm-up calls 6 count operations or memory, then rounds of three
    with pytest.raises(KeyboardInterrupt):
        measure_latency(request(rounds=6), print)
    assert set(order[:3]) == {"Bicubic", "Lanczos", "FunctionMethod"}
    assert all(set(order[start : start + 3]) == set(order[:3]) for start in (3, 6, 9))
    done = len(calls("bicubic"))
    assert 4 <= done < 7
    left = 10**6
    plan = measure_latency(request(rounds=6), print)
    assert [row.name for row in plan.rows] == ["bicubic", "lanczos", "own"]
    for name in ("bicubic", "lanczos", "own"):
        of = RowRecords(Path("out"), name, 64)
        assert len(of.timed()) >= 6
        assert len({session for session, _ in calls(name)}) == 2
        run = of.run()
        assert run is not None
        assert run.counted["operations"]["flops"] == {"denoise": 0}
        assert "memory" in run.counted
    order.clear()
    measure_latency(request(rounds=6), print)
    assert order == []


def test_seconds_of_two_kinds_are_refused_and_can_be_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_latency(request(rounds=1), print)
    monkeypatch.setattr(measure, "timed_code_version", lambda: "other code")
    measure_latency(request(rounds=1), print)  # nothing to do
    with pytest.raises(StaleRecords, match=r"settings\.code: recorded 'this code', now 'other code'"):
        measure_latency(request(rounds=2), print)
    measure_latency(request(rounds=2, redo=["all"]), print)
    assert len(calls("own")) == 3
    assert Path("out/superseded/latency/own-64.1/calls.jsonl").is_file()


def test_a_method_that_fails_costs_its_row_alone(bench: Bench) -> None:
    command = ["latency", "--methods", "bad=python:own.py:fail", "--sizes", 64, "--rounds", 2, "--warmups", 2]
    status, out, err = bench(*command, "--device", "cpu", "--out", "out")
    assert status == 1
    assert "bad was not measured (RuntimeError: no memory)" in out
    assert "failed: bad at 64: RuntimeError: no memory" in err
    assert "| Bicubic" in out
    assert Path("out/table3-stages.svg").is_file()
    again, shown, _ = bench("table", "--table", "table3", "--out", "out")
    assert (again, shown) == (0, out)
    assert "bicubic" in Path("out/table3.csv").read_text()


def test_figure_1_joins_quality_and_seconds(bench: Bench) -> None:
    bench("run", "--methods", "bicubic", "lanczos", "--metrics", "psnr", "--no-figure", "--out", "quality")
    bench("latency", "--methods", "bicubic", "--sizes", 64, "--rounds", 2, "--warmups", 2, "--device", "cpu",
          "--out", "out")  # fmt: skip
    points = measured_points(Path("quality"), Path("out"), table="table1", testset="mini", metric="psnr", size=64)
    assert [point.display for point in points] == ["Bicubic", "Lanczos"]
    status, out, _ = bench("figure", 1, "--quality", "quality", "--latency", "out", "--size", 64)
    assert status == 0
    assert out.split() == ["out/figure1.png", "out/figure1.svg", "out/figure1.csv"]
    assert Path("out/figure1.csv").read_text().count("measured,") == 2
    status, _, err = bench("figure", 1, "--quality", "quality", "--latency", "out", "--size", 512)
    assert (status, "has no seconds at 512 pixels; it has 64" in err) == (2, True)


def test_the_papers_points_are_those_of_its_tables() -> None:
    found = {(point.display, point.steps): point for point in paper_points("RealSR", "musiq")}
    assert (found["TSD-SR", 1].seconds, found["TSD-SR", 1].quality) == (0.1362, 71.19)
    assert found["StableSR", 200].seconds == 12.4151


def test_the_input_is_a_photograph_of_the_size_asked_for() -> None:
    image, digest = input_image(96)
    assert image.shape == (1, 3, 24, 24)
    assert image.std() > 0.05
    assert input_image(96)[1] == digest


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": [100]}, "expected a multiple of 32"),
        ({"rounds": 0}, "rounds=0"),
        ({"warmups": 1}, "expected 2 or more"),
        ({"table": "table1"}, "measures table3"),
        ({"methods": ["bicubic@released"]}, "has no form 'released'; its forms: none"),
        ({"methods": ["osediff-published"]}, "there is nothing to time"),
        ({"profile": "paper", "device": "auto"}, "--device cpu asks for the CPU"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        measure_latency(request(**changes), print)


def test_rows_have_their_words_and_the_papers_seconds() -> None:
    found = {row.name: row for row in rows.rows_of("paper", None, True)}
    assert found["tsd-sr-released"].display == "TSD-SR, as released, random weights"
    assert rows.paper_seconds(found["tsd-sr-released"]) == 0.1362
    assert rows.paper_seconds(found["tsd-sr"]) is None
    assert rows.paper_seconds(found["addsr-4"]) == 1.0199
    assert rows.paper_seconds(found["osediff"]) == 0.1650
    seconds = [rows.paper_seconds(row) for row in found.values()]
    printed = [float(figures["seconds"]) for figures in paper_figures("table3.csv")]
    assert [value for value in seconds if value is not None] == printed
