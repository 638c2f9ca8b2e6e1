"""The mixture: its closed forms against finite differences and Monte Carlo, its training, and its cells."""

import dataclasses
import json
import math
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

import bench.ablation.mixture.training as training
from bench.ablation.domain import Cell
from bench.ablation.mixture.domain import MixtureDomain, held_out, open_domain
from bench.ablation.mixture.prior import Mixture
from bench.ablation.mixture.scores import set_scores, sliced_w2
from bench.ablation.mixture.settings import MixtureSettings
from bench.ablation.mixture.training import DEGRADATION, PRIOR, PROCESS, Distillation, as_latents, teacher
from tsd.algorithm.objective import time_weight
from tsd.config import Phase, TrainConfig
from tsd.errors import UserError
from tsd.seeds import generator_for

EXPERIMENTS = sorted((Path(training.__file__).parents[1] / "experiments").glob("mixture-*.toml"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 0.7, 0.95])
def test_velocity_is_the_score_of_the_noised_density(sigma: float) -> None:
    """∇ log p(z_t) = −E[ε | z_t] / σ and E[ε | z_t] = z_t + (1 − σ) v; the gradient is autograd's."""
    x = (3 * torch.randn(200, 2, generator=generator())).requires_grad_()
    (score,) = torch.autograd.grad(PRIOR.log_density(x, 1 - sigma, sigma).sum(), x)
    x = x.detach()
    velocity = PRIOR.velocity(x, torch.full((200, 1), sigma))
    torch.testing.assert_close(x + (1 - sigma) * velocity, -sigma * score, rtol=2e-3, atol=2e-3)


def test_the_noised_density_is_what_finite_differences_and_an_integral_say() -> None:
    """The density integrates to 1, and differences over .002 agree with the score that the velocity implies."""
    sigma, width = 0.4, 0.05
    axis = torch.arange(-6, 6, width)
    grid = torch.cartesian_prod(axis, axis)
    assert math.isclose(PRIOR.log_density(grid, 1 - sigma, sigma).exp().sum() * width**2, 1, rel_tol=1e-3)
    x = 2.5 * torch.randn(100, 2, generator=generator(1)).double()
    exact = Mixture(PRIOR.components, PRIOR.radius, PRIOR.sd)
    exact.__dict__["means"] = PRIOR.means.double()
    step = torch.tensor([[1e-3, 0.0], [0.0, 1e-3]], dtype=torch.float64)
    difference = torch.stack(
        [
            (exact.log_density(x + h, 1 - sigma, sigma) - exact.log_density(x - h, 1 - sigma, sigma)) / 2e-3
            for h in step
        ],
        dim=1,
    )
    epsilon = x.float() + (1 - sigma) * PRIOR.velocity(x.float(), torch.full((100, 1), sigma))
    torch.testing.assert_close(epsilon / -sigma, difference.float(), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("sigma", [0.5, 0.8])
def test_posterior_mean_and_velocity_are_what_monte_carlo_finds(sigma: float) -> None:
    """Many draws of the prior, weighted by the likelihood of one x."""
    z = PRIOR.sample(400_000, generator())
    for x in torch.tensor([[1.5, 0.5], [0.0, -1.0]]):
        weight = torch.softmax(-(x - (1 - sigma) * z).square().sum(dim=1) / (2 * sigma**2), dim=0)
        mean = weight @ z
        epsilon = (x - (1 - sigma) * mean) / sigma
        torch.testing.assert_close(PRIOR.posterior_mean(x[None], 1 - sigma, sigma)[0], mean, rtol=0, atol=0.03)
        found = PRIOR.velocity(x[None], torch.tensor([[sigma]]))[0]
        torch.testing.assert_close(found, epsilon - mean, rtol=0, atol=0.06)


def test_the_teacher_transports_noise_to_the_prior() -> None:
    """Two hundred Euler steps of the process with the teacher's velocity end in the modes, equally often in each."""
    t = torch.linspace(1000, 0, 201)
    z_t = torch.randn(2000, 2, 1, 1, generator=generator())
    for now, later in pairwise(t):
        z_t = PROCESS.step(z_t, teacher(z_t, now.expand(2000), now.expand(2000)), now[None], later[None])
    points = z_t.flatten(1)
    assert PRIOR.distance_to_mode(points).mean() < 0.25
    counts = torch.cdist(points, PRIOR.means).argmin(dim=1).bincount(minlength=8)
    assert counts.min() > 150


def test_posterior_samples_are_distributed_as_the_prior_at_twice_the_least_mse() -> None:
    z, z_L, fresh = held_out(0)
    draw = PRIOR.posterior_sample(z_L, 1.0, DEGRADATION, generator())
    mean = PRIOR.posterior_mean(z_L, 1.0, DEGRADATION)
    scores, best = set_scores(PRIOR, draw, z, fresh), set_scores(PRIOR, mean, z, fresh)
    assert scores["distance"] == pytest.approx(0.188, abs=0.01)  # a Rayleigh mean: .15 √(π / 2)
    assert scores["mse"] == pytest.approx(2 * best["mse"], rel=0.15)
    assert scores["sliced_w2"] < best["sliced_w2"]


def test_sliced_w2_of_a_shifted_set_and_of_scipys_distance() -> None:
    points = torch.randn(500, 2, generator=generator())
    shift = torch.tensor([0.6, 0.8])
    assert sliced_w2(points, points + shift) == pytest.approx(math.sqrt(0.5), rel=1e-4)  # mean of cos² is ½
    assert sliced_w2(points, points[torch.randperm(500)]) == 0
    other = points * torch.tensor([1.5, 0.5])
    w1 = np.mean(
        [wasserstein_distance(points @ d, other @ d) for d in torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8], [0.8, -0.6]])]
    )
    assert sliced_w2(points, other) > w1  # W2 ≥ W1


def run_cell(folder: Path, seed: int = 0, **settings: object) -> list[dict]:
    domain = MixtureDomain()
    cell = Cell("test", "arm", seed, {**domain.settings(), **settings}, "key")
    domain.run(cell, folder, device="cpu", stop=lambda: False)
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_a_cell_leaves_scores_curve_and_log(tmp_path: Path) -> None:
    rows = run_cell(tmp_path, steps=20)
    names = {measure.name for measure in MixtureDomain.measures}
    assert len(rows) == 257
    assert set(rows[0]) == {"image"} | {m.name for m in MixtureDomain.measures if m.per_image}
    assert rows[-1]["image"] is None
    assert set(rows[-1]) == {"image"} | names
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == list(range(0, 21, 2))
    assert {name: curve[-1][name] for name in names} == {name: rows[-1][name] for name in names}
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [10, 20]
    assert {"critic_gain", "data_grad_rms", "tsd_grad_rms", "grad_cosine"} <= set(log[0])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 40_000


def test_a_cell_is_the_same_bytes_again_and_others_for_another_seed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    run_cell(tmp_path / "a", steps=6)
    torch.manual_seed(2)  # no draw comes from the global state
    run_cell(tmp_path / "b", steps=6)
    run_cell(tmp_path / "c", seed=1, steps=6)
    for name in ("scores.jsonl", "curve.jsonl", "log.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_a_stopped_cell_leaves_no_scores(tmp_path: Path) -> None:
    domain = MixtureDomain()
    cell = Cell("test", "arm", 0, domain.settings() | {"steps": 5}, "key")
    domain.run(cell, tmp_path, device="cpu", stop=lambda: True)
    assert list(tmp_path.iterdir()) == []


def test_references_bound_the_measures(tmp_path: Path) -> None:
    domain = MixtureDomain()
    domain.score_references(3, tmp_path)
    rows = {
        name: json.loads((tmp_path / name / "scores.jsonl").read_text().splitlines()[-1]) for name in domain.references
    }
    assert rows["posterior mean"]["mse"] < rows["start"]["mse"]
    assert rows["posterior sample"]["distance"] < rows["posterior mean"]["distance"] < rows["start"]["distance"]
    students = run_cell(tmp_path / "cell", seed=3, steps=40)
    assert students[-1]["mse"] > rows["posterior mean"]["mse"]


def draws(monkeypatch: pytest.MonkeyPatch, seed: int, **settings: object) -> dict[tuple, bytes]:
    """Every draw of a run by what it is drawn for, as bytes of the first numbers of its generator."""
    found = {}

    def recording(*parts: int | str) -> torch.Generator:
        found[parts[1:]] = torch.randn(8, generator=generator_for(*parts)).numpy().tobytes()
        return generator_for(*parts)

    monkeypatch.setattr(training, "generator_for", recording)
    for _ in Distillation(MixtureSettings.from_mapping({"steps": 4, **settings}), seed).train(4):
        pass
    return found


def test_arms_of_a_seed_draw_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """λ, N, weighting, warm-up, critic steps and average change no draw of a student's step."""
    first = draws(monkeypatch, 0)
    arms = [
        {"lambda_tsd": 1.0, "point_weights": [1.0]},
        {"critic_steps": 3, "critic_ema_decay": 0.5, "weighting": "uniform"},
        {"critic_warmup_steps": 2, "random_bias": True, "residual": "epsilon"},
    ]
    for settings in arms:
        found = draws(monkeypatch, 0, **settings)
        assert first.items() <= found.items()
    assert {key: draw for key, draw in draws(monkeypatch, 1).items() if first[key] == draw} == {}
    assert draws(monkeypatch, 0, gamma2=0.0).items() <= first.items()


def test_arms_of_a_seed_begin_with_the_same_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ẑ and its trajectory's start are equal in two arms: paired in fact, not in the keys of draws alone."""
    seen: list[Tensor] = []
    original = training.trajectory

    def recording(process, psi, phi, z_hat, z, noise, t, **keywords):
        seen.append(torch.cat([z_hat, z, noise, t.view(-1, 1, 1, 1).expand_as(z)]))
        return original(process, psi, phi, z_hat, z, noise, t, **keywords)

    monkeypatch.setattr(training, "trajectory", recording)
    for settings in ({"lambda_tsd": 0.3}, {"critic_warmup_steps": 3, "point_weights": [1.0]}):
        next(Distillation(MixtureSettings.from_mapping(settings), 0).train(1))
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)


def test_the_gradient_at_one_point_is_equation_5() -> None:
    settings = MixtureSettings(point_weights=(1.0,), lambda_tsd=0.6, steps=3)
    distillation = Distillation(settings, 0)
    for _ in distillation.train(1):
        pass
    z, z_hat = as_latents(PRIOR.sample(96, generator())), as_latents(PRIOR.sample(96, generator(1)))
    noise, t = distillation._noise("noise of TSD", 2), distillation._times("t of TSD", 2, 50, 950)
    z_hat_t, z_t = PROCESS.add_noise(z_hat, noise, t), PROCESS.add_noise(z, noise, t)
    with torch.no_grad():
        psi, psi_z, phi = teacher(z_hat_t, t, t), teacher(z_t, t, t), distillation.critic(z_hat_t, t, t)
    expected = time_weight(PROCESS, t, "sigma2") * (0.4 * (psi - psi_z) + 0.6 * (psi - phi))
    assert (psi - phi).abs().max() > 1e-3  # the critic has learnt something
    torch.testing.assert_close(distillation.regularisation_gradient(z_hat, z, 2), expected)


def test_a_critic_that_keeps_up_gains_on_the_teacher_and_warm_up_leaves_the_student_alone() -> None:
    warm = Distillation(MixtureSettings(steps=1, critic_warmup_steps=150), 0)
    (logs,) = list(warm.train(1))
    assert logs["critic_gain"] > 0
    cold = Distillation(MixtureSettings(steps=1), 0)
    (cold_logs,) = list(cold.train(1))
    assert cold_logs["critic_gain"] == 0  # the critic starts as the teacher
    assert cold_logs["data_grad_rms"] == logs["data_grad_rms"]


def test_gradient_sizes_are_those_of_autograd() -> None:
    z_hat, z, g = (torch.randn(96, 2, 1, 1, generator=generator(seed)) for seed in range(3))
    z_hat.requires_grad_()
    (data,) = torch.autograd.grad(0.3 * (z_hat - z).square().sum(), z_hat)
    (tsd,) = torch.autograd.grad(1.9 * 0.5 * (z_hat - (z_hat - g).detach()).square().sum(), z_hat)
    found = training.gradient_sizes(2 * 0.3 * (z_hat - z).detach(), g, 1.9)
    assert found["data_grad_rms"] == pytest.approx(data.square().mean().sqrt().item())
    assert found["tsd_grad_rms"] == pytest.approx(tsd.square().mean().sqrt().item())
    cosine = (data * tsd).sum() / (data.norm() * tsd.norm())
    assert found["grad_cosine"] == pytest.approx(cosine.item(), abs=1e-6)


def test_the_average_is_used_and_is_the_average() -> None:
    distillation = Distillation(MixtureSettings(steps=3, critic_ema_decay=0.75), 0)
    average = torch.zeros(64, 2)
    for _ in distillation.train(1):
        average = 0.75 * average + 0.25 * distillation._critic_head.detach()
    torch.testing.assert_close(distillation._average, average)
    z_t, t = torch.randn(5, 2, 1, 1, generator=generator()), torch.full((5,), 500.0)
    raw = dataclasses.replace(distillation.settings, critic_ema_decay=0.0)
    with torch.no_grad():
        averaged = distillation.critic(z_t, t, t)
        distillation.settings = raw
        assert not torch.equal(distillation.critic(z_t, t, t), averaged)


OWN = """
from tsd.algorithm.objective import tsd_gradient

def same(point, w, config):
    return tsd_gradient(point.teacher_hat, point.teacher_z, point.critic_hat, config.lambda_tsd, w)

def scalar(point, w, config):
    return 1.0
"""


def test_a_regularisation_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    settings = {"steps": 5, "residual": "epsilon", "random_bias": True}
    built_in = run_cell(tmp_path / "built-in", **settings)
    assert run_cell(tmp_path / "own", **settings, regularisation=f"python:{file}:same") == built_in
    with pytest.raises(UserError, match=r"scalar returned a float; expected a finite tensor \(96, 2, 1, 1\)"):
        run_cell(tmp_path / "scalar", **settings, regularisation=f"python:{file}:scalar")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda": 0.5}, "no setting 'lambda'; did you mean lambda_tsd"),
        ({"rank": 4}, "no setting 'rank'.*It knows steps, batch_size, lr"),
        ({"steps": 2.5}, "steps = 2.5; expected int, found float"),
        ({"random_bias": 1}, "random_bias = 1; expected bool"),
        ({"lambda_tsd": 1.5}, "lambda_tsd = 1.5 is not possible"),
        ({"residual": "score"}, "residual = 'score' is not possible"),
        ({"point_weights": 1.0}, "expected a list of one or more numbers"),
        ({"t_range": [50]}, "expected a list of 2 numbers"),
        ({"regularisation": "mine.py"}, "expected tsd or python:FILE.py:FUNCTION"),
        ({"regularisation": "python:absent.py:f"}, "absent.py: No such file"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixtureDomain().check(settings)


def test_defaults_are_valid_and_have_the_types_of_toml() -> None:
    defaults = MixtureDomain().settings()
    MixtureDomain().check(defaults)
    assert tomllib.loads("\n".join(f"{key} = {json.dumps(value)}" for key, value in defaults.items())) == defaults
    known = {f.name for f in dataclasses.fields(TrainConfig)} | {f.name for f in dataclasses.fields(Phase)}
    assert set(defaults) <= known


def test_the_domain_is_opened_and_checked_without_torch() -> None:
    code = (
        "import sys; from bench.ablation.mixture.domain import open_domain; d = open_domain('');"
        "d.check(d.settings()); d.fingerprint(); d.code(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    with pytest.raises(UserError, match="takes no argument"):
        open_domain("8")
    assert all(path.is_file() for path in MixtureDomain().code())


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_possible(path: Path) -> None:
    spec = tomllib.loads(path.read_text())
    assert spec["sweep"]["name"] == path.stem
    assert set(spec["sweep"]["metrics"]) <= {measure.name for measure in MixtureDomain.measures}
    settings = []
    for arm in spec["arms"].values():
        overrides = {key: value for key, value in arm.items() if key not in ("label", "paper")}
        settings.append(MixtureDomain().settings() | spec.get("settings", {}) | overrides)
        MixtureDomain().check(settings[-1])
    assert all(settings.count(one) == 1 for one in settings)
    for comparison in spec["comparisons"]:
        assert {comparison["of"], comparison["against"]} <= set(spec["arms"])


@pytest.mark.slow
def test_the_committed_table_4_comes_out_again() -> None:
    """TSM and DASM lower the distance, DASM raises MSE, and one point of equal weight is as near (20 paired seeds)."""
    records = Path(__file__).parents[3] / "reports" / "ablations" / "mixture-table4" / "cells.jsonl"
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    found = {(row["arm"], row["seed"]): row["scores"] for row in rows if row["arm"]}

    def difference(against: str, measure: str) -> np.ndarray:
        return np.array([found["full", seed][measure] - found[against, seed][measure] for seed in range(20)])

    assert (difference("no-tsm", "distance") < 0).sum() >= 19
    assert (difference("no-dasm", "distance") < 0).sum() >= 18
    assert (difference("no-dasm", "mse") > 0).sum() >= 19
    assert abs(difference("no-dasm-equal-weight", "distance").mean()) < 0.005
    for arm, overrides in {"full": {}, "no-dasm": {"point_weights": [1.0]}}.items():
        distillation = Distillation(MixtureSettings.from_mapping(overrides), 0)
        for _ in distillation.train(400):
            pass
        z, z_L, fresh = held_out(0)
        with torch.no_grad():
            scores = set_scores(PRIOR, distillation.student(z_L), z, fresh)
        for measure in ("distance", "mse"):
            assert scores[measure] == pytest.approx(found[arm, 0][measure], abs=1e-3)
