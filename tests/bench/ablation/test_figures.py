"""Figures 3 to 6: what they measure against hand computations, and what they write."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.ablation.domain import Measure
from bench.ablation.figures import figure3, figure4, figure5, figure6
from bench.ablation.figures.stage import Stage, Strategy
from bench.ablation.figures.subjects import open_subject
from bench.ablation.mixture.subject import MixtureSubject
from bench.cli import main
from tsd.errors import UserError
from tsd.model.process import DDPM, FlowMatching

FLOW = FlowMatching(shift=1.0)


def quiet(text: str) -> None:
    pass


def pair(shape: tuple[int, ...] = (6, 3, 2, 2)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def knowing(process: FlowMatching | DDPM, z: Tensor):
    """A teacher that always predicts the clean latent z."""

    def predict(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        if isinstance(process, FlowMatching):
            return (z_t - z[rows]) / process.sigma(t).view(-1, 1, 1, 1)
        levels = process.sigma(t).view(-1, 1, 1, 1)
        return (z_t - (1 - levels**2).sqrt() * z[rows]) / levels

    return predict


@pytest.mark.parametrize("process", [FLOW, DDPM(torch.linspace(0.999, 0.005, 1000), "epsilon")], ids=["flow", "ddpm"])
def test_a_teacher_that_knows_z_points_to_it_and_its_opposite_away(process: FlowMatching | DDPM) -> None:
    z, z_hat = pair()
    noise, t = torch.randn_like(z), torch.full((6,), 100.0)
    teacher = knowing(process, z)
    toward = figure3.direction_cosine(process, teacher, z_hat, z, noise, t)
    torch.testing.assert_close(toward, torch.ones(6), rtol=0, atol=1e-4)
    x_t = process.add_noise(z_hat, noise, t)
    opposite = knowing(process, 2 * x_t - z)  # as far on the other side of x_t
    away = figure3.direction_cosine(process, opposite, z_hat, z, noise, t)
    torch.testing.assert_close(away, -torch.ones(6), rtol=0, atol=1e-4)


def test_prediction_errors_of_the_two_forms_differ_by_one_minus_sigma() -> None:
    z, z_hat = pair()
    t, noise = torch.full((6,), 300.0), torch.randn_like(z)

    def critic(z_t: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        return knowing(FLOW, z)(z_t, t, rows) - 0.5

    velocity, epsilon = (
        figure5.prediction_error(FLOW, knowing(FLOW, z), critic, z_hat, noise, t, form)
        for form in ("velocity", "epsilon")
    )
    torch.testing.assert_close(velocity, torch.full_like(z, 0.5))
    torch.testing.assert_close(epsilon, 0.7 * velocity)


def test_moments_of_a_training() -> None:
    start, middle, end = MixtureSubject().stages({"steps": 10}, 0, [0, 0.5, 1])
    assert [stage.step for stage in (start, middle, end)] == [0, 5, 10]
    torch.testing.assert_close(start.z_hat, start.z_L)  # the head is zero
    assert not torch.equal(middle.z_hat, end.z_hat)
    torch.testing.assert_close(start.z, end.z)
    t = start.times(500)
    critics = [stage.critic for stage in (start, middle, end)]
    first, second, third = (critic(start.z, t, start.rows) for critic in critics if critic)
    torch.testing.assert_close(first, start.teacher(start.z, t, start.rows))  # of its moment, though trained since
    assert not torch.equal(second, third)
    torch.testing.assert_close(start.noise(100), end.noise(100))
    assert not torch.equal(start.noise(100), start.noise(200))


def test_the_path_is_that_of_the_critic_and_begins_where_noising_does() -> None:
    (stage,) = MixtureSubject().stages({"steps": 20}, 0, [1])
    index = figure6.choose(stage)
    path = figure6.path_of(stage, index)
    torch.testing.assert_close(path.points[0].z_hat_t, path.naive[0])
    first, second = path.points[:2]
    assert first.critic_hat is not None
    moved = stage.process.step(first.z_hat_t, first.critic_hat, first.t, second.t)
    torch.testing.assert_close(second.z_hat_t, moved)
    assert path.points[-1].t.item() == figure6.T_START - (figure6.POINTS - 1) * figure6.STRIDE > 0
    to_data = torch.cdist(stage.z_hat.flatten(1), stage.z.flatten(1)).amin(dim=1)
    assert to_data[index] > to_data.median()


class Pictures:
    """A subject whose latents are images, as a domain of images has them: the mixture's protocol on small tensors."""

    name = "pictures"

    def moments(self, wanted: Sequence[float]) -> list[float]:
        return list(wanted)

    def strategies(self, wanted: Sequence[Strategy]) -> list[Strategy]:
        return list(wanted)

    def stages(self, overrides: Mapping[str, Any], seed: int, moments: Sequence[float]) -> Iterator[Stage]:
        generator = torch.Generator().manual_seed(seed)
        z = torch.rand(5, 16, 4, 6, generator=generator)
        weight = overrides.get("latent_mse", 1.0)
        for moment in moments:
            z_hat = z + weight * (1 - 0.5 * moment) * torch.randn(z.shape, generator=generator)
            yield Stage(
                int(10 * moment),
                seed,
                FLOW,
                knowing(FLOW, z),
                knowing(FLOW, z_hat),
                z_L=z_hat + 1,
                z_hat=z_hat,
                z=z,
                images=lambda latents: torch.nn.functional.pixel_shuffle(latents, 4).clamp(0, 1),
                scores={Measure("psnr", "PSNR", "dB", True, True, 1): 20.14},
            )


@pytest.mark.parametrize("figure", [figure3, figure4, figure5], ids=["figure3", "figure4", "figure5"])
@pytest.mark.parametrize("subject", [MixtureSubject(), Pictures()], ids=["mixture", "pictures"])
def test_points_and_images_are_drawn(figure, subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        name, moments, strategies = subject.name, subject.moments, subject.strategies

        def stages(self, overrides, seed, moments):
            short = {"steps": 20} if subject.name == "mixture" else {}
            return subject.stages({**overrides, **short}, seed, moments)

    png, svg, csv = figure.draw(figure.measure(Short(), [0, 1], quiet), tmp_path)
    width, height = Image.open(png).size
    assert width > height > 300
    assert svg.read_text().rstrip().endswith("</svg>")
    assert set(pd.read_csv(csv).seed) == {0, 1}


def test_scores_are_numbers_in_the_csv_and_have_units_in_the_picture(tmp_path: Path) -> None:
    _, svg, csv = figure4.draw(figure4.measure(Pictures(), [0], quiet), tmp_path)
    assert set(pd.read_csv(csv)["PSNR (dB)"]) == {20.14}
    assert "PSNR 20.1 dB" in svg.read_text()


def test_figure_6_is_the_same_files_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["figure", "6", "--seeds", "1", "--out", str(tmp_path / name)]) == 0
    for suffix in ("png", "svg", "csv"):
        assert (tmp_path / "a" / f"figure6.{suffix}").read_bytes() == (
            tmp_path / "b" / f"figure6.{suffix}"
        ).read_bytes()


def test_figures_of_the_mixture_show_what_the_paper_says() -> None:
    """At t = 100 the teacher is right at z_t and wrong at ẑ_t; VSD's error is larger near the data."""
    (stage,) = MixtureSubject().stages({"steps": 100}, 0, [1])
    noise, t = stage.noise(100), stage.times(100)
    at_z, at_z_hat = (
        figure3.direction_cosine(stage.process, stage.teacher, latents, stage.z, noise, t).mean()
        for latents in (stage.z, stage.z_hat)
    )
    assert at_z > 0.9
    assert at_z_hat < 0.6
    near, far = (figure5._error(stage, t, "epsilon").square().mean() for t in (100, 800))
    assert near > 2 * far


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="latents of pictures are 16x4x6; use mixture"):
        figure6.measure(Pictures(), [0], quiet)
    with pytest.raises(UserError, match="no figures of the domain 'photos'; expected mixture"):
        open_subject("photos")

    class Finished(Pictures):
        def stages(self, overrides, seed, moments):
            for stage in super().stages(overrides, seed, moments):
                yield dataclasses.replace(stage, critic=None)

    with pytest.raises(UserError, match="figure 5 needs the critic"):
        figure5.measure(Finished(), [0], quiet)
    assert main(["figure", "3", "--seeds", "7-3"]) == 2
    assert main(["figure", "3", "--seeds", "a"]) == 2
