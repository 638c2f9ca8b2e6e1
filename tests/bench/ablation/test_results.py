"""Verdicts in words, and whether the paper's order holds, from rows made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from line_domain import LineDomain

from bench.ablation.experiment import experiment_from
from bench.ablation.records import Row, SweepRecords
from bench.ablation.report.prose import sentences
from bench.ablation.report.published import Published
from bench.ablation.report.results import Findings, Result, find

NOISE = np.random.default_rng(0).normal(0, 0.01, 40)


def rows(errors: Mapping[str, Sequence[float]], images: Mapping[str, Sequence[Sequence[float]]] | None = None) -> Any:
    found = []
    for name, values in errors.items():
        for seed, value in enumerate(values):
            per_image = {"error": {str(i): v for i, v in enumerate(images[name][seed])}} if images else {}
            scores = {"error": float(value), "slope": 2.0, "inverse": 1 / float(value)}
            found.append(Row(name, None, seed, "key", {}, scores, images=per_image))
    return SweepRecords(tuple(found), {})


def findings(raw: dict[str, Any], records: SweepRecords) -> Findings:
    experiment, domain = experiment_from(raw), LineDomain()
    return find(experiment, domain, records, Published(experiment, domain))


def only(raw: dict[str, Any], full: Sequence[float], slow: Sequence[float]) -> Result:
    raw["sweep"].pop("matched", None)
    raw["comparisons"][0]["metrics"] = ["error"]
    (result,) = findings(raw, rows({"full": full, "slow": slow})).results
    return result


@pytest.mark.parametrize(
    ("shift", "verdict", "standing"),
    [
        (-0.1, "lower", "holds here"),  # LPIPS of the full method is lower in the paper
        (+0.1, "higher", "opposite here"),
        (0.0, "no significant difference", "does not hold here"),  # the paper's −6.5 % would be −.065
    ],
)
def test_verdicts_and_standings(raw: dict[str, Any], shift: float, verdict: str, standing: str) -> None:
    result = only(raw, 1 + shift + NOISE[:10], [1.0] * 10)
    assert (result.verdict, result.standing) == (verdict, standing)
    assert result.paper_difference == pytest.approx(-0.0655, abs=0.001)
    assert result.why_untold() is None
    assert result.seeds_needed_paper is not None


def test_an_interval_that_includes_zero_and_the_papers_effect_decides_nothing(raw: dict[str, Any]) -> None:
    result = only(raw, 0.97 + 10 * (NOISE[:8] - NOISE[:8].mean()), [1.0] * 8)
    assert result.verdict == "no significant difference"
    assert result.standing == "cannot be told"
    assert result.seeds_needed_paper is not None
    assert result.seeds_needed_paper > 8


def test_a_difference_that_only_holm_takes_away_decides_nothing(raw: dict[str, Any]) -> None:
    raw["sweep"].pop("matched")
    raw["sweep"]["metrics"] = ["error", "slope", "inverse"]
    values = np.array([0.98, 0.97, 0.99, 0.96, 0.985, 0.975, 0.965, 1.012])
    result = findings(raw, rows({"full": values, "slow": [1.0] * 8})).results[0]
    assert result.paired.p < 0.05 < result.holm_p
    assert result.paired.high is not None
    assert result.paired.high < 0
    assert (result.verdict, result.standing) == ("no significant difference", "cannot be told")


@pytest.mark.parametrize(
    ("n", "reason"), [(5, "5 seeds cannot reach p < .05 (2/2^5 = 0.062); 6 seeds can"), (1, "1 seed ")]
)
def test_few_seeds_tell_nothing_however_clear_they_are(raw: dict[str, Any], n: int, reason: str) -> None:
    result = only(raw, 0.5 + NOISE[:n], [1.0] * n)
    assert (result.verdict, result.standing) == ("cannot be told", "cannot be told")
    assert reason in (result.why_untold() or "")


def test_a_large_family_needs_more_seeds(raw: dict[str, Any]) -> None:
    raw["sweep"].pop("matched")
    raw["sweep"]["metrics"] = ["error", "slope", "inverse"]
    found = findings(raw, rows({"full": 0.5 + NOISE[:6], "slow": [1.0] * 6})).results
    assert {result.verdict for result in found} == {"cannot be told"}
    assert found[0].paired.p == 2 / 2**6 < 0.05
    assert found[0].why_untold() == (
        "6 seeds cannot reach p < .05 after Holm over 3 tests (3 · 2/2^6 = 0.094); 7 seeds can"
    )
    assert findings(raw, rows({"full": 0.5 + NOISE[:7], "slow": [1.0] * 7})).results[0].verdict == "lower"


def test_without_a_column_the_whole_table_decides_the_papers_order(raw: dict[str, Any]) -> None:
    raw["sweep"]["paper"] = {}
    result = only(raw, 0.9 + NOISE[:10], [1.0] * 10)
    assert result.order is not None
    assert (result.order.ahead, result.order.total, result.order.column) == (12, 12, None)
    assert (result.standing, result.paper_difference) == ("holds here", None)


def test_only_seeds_with_both_arms_are_compared(raw: dict[str, Any]) -> None:
    result = only(raw, 0.9 + NOISE[:10], [1.0] * 7)
    assert result.difference.seeds == tuple(range(7))
    np.testing.assert_allclose(result.difference.differences, NOISE[:7] - 0.1, atol=1e-12)


def test_images_are_a_second_level(raw: dict[str, Any]) -> None:
    raw["sweep"].pop("matched")
    rng = np.random.default_rng(1)
    images = {"full": rng.normal(0.9, 0.2, (8, 30)), "slow": rng.normal(1.0, 0.2, (8, 30))}
    means = {name: values.mean(axis=1) for name, values in images.items()}
    error, slope = findings(raw, rows(means, images)).results  # type: ignore[arg-type]
    assert error.difference.images is not None
    low, high = error.difference.images
    assert low < error.paired.mean < high
    assert slope.difference.images is None  # a measure of the set alone


def test_at_equal_x_each_seed_has_its_own_curve(raw: dict[str, Any]) -> None:
    raw["comparisons"] = []
    arms = [Row("full", None, seed, "", {}, {"slope": 1.5 if seed else 9.0, "error": 3.0}) for seed in range(8)]
    curve = [
        Row(None, f"shrunk {x:g}", seed, "", {}, {"slope": x, "error": x + seed})
        for seed in range(8)
        for x in (1.0, 2.0)
    ]
    others = [Row(None, "sharp 1", 0, "", {}, {"slope": 9.0, "error": 0.0})]
    (result,) = findings(raw, SweepRecords((*arms, *curve, *others), {})).results
    assert result.difference.outside == (0,)
    assert result.difference.seeds == tuple(range(1, 8))
    assert result.difference.differences == pytest.approx([3.0 - (1.5 + seed) for seed in range(1, 8)])
    text = " ".join(sentences(experiment_from(raw), Findings((result,), ())))
    assert "full against shrunk at equal Slope" in text
    assert "outside the curve's range in 1 of 8 seeds" in text


def test_the_sentences_say_what_holds_with_figures(raw: dict[str, Any]) -> None:
    raw["sweep"].pop("matched")
    found = findings(raw, rows({"full": 0.9 + NOISE[:12], "slow": [1.0] * 12}))
    lines = sentences(experiment_from(raw), found)
    assert lines[0] == "Of 1 order of the paper (comparisons × measures), 1 holds here."
    assert lines[1].startswith("full against w/o TSM: Error lower: -0.09978 [-0.10445, -0.09511]")
    assert "12 of 12 seeds, p = 0.00098 after Holm" in lines[1]
    assert "(the paper has it ahead in 2 of 2 LPIPS figures, -6.5 % on average: holds here)" in lines[1]
    assert "Slope no significant difference" in lines[1]


def test_a_comparison_without_common_seeds_is_named(raw: dict[str, Any]) -> None:
    raw["sweep"].pop("matched")
    found = findings(raw, rows({"full": [1.0]}))
    assert found.results == ()
    assert found.unmeasured[0] == "full against w/o TSM, Error: no seed in which both are measured"
