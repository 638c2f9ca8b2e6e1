"""The critic's warm-up, its average, several updates a step, its gain; and what two arms of one seed share."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tsd.algorithm import turns
from tsd.algorithm.turns import Batch, StudentTurn
from tsd.config import Phase, TrainConfig
from tsd.errors import UserError
from tsd.model.lora import adapter_parameters
from tsd.presets import MINI
from tsd.train import critic, student
from tsd.train.checkpoint import TrainState
from tsd.train.ema import CRITIC_GROUPS, averaged, start_ema, update_critic_ema
from tsd.train.gain import GainWatch
from tsd.train.run_log import TIMING
from tsd.train.settings import FinishedRun, RunSettings
from tsd.train.student import train

TINY = dataclasses.replace(
    MINI,
    phases=(Phase(steps=3, latent_mse=0.5, gamma2=1.0, point_weights=(1.0, 0.3)),),
    batch_size=2,
    crop=32,
    rank=4,
    vae_rank=4,
    critic_rank=4,
    critic_lr=1e-2,
    lr_schedule="constant",
    warmup_steps=0,
    mixed_precision="no",
    checkpoint_every=1,
    random_bias=True,
    posterior="sample",
)
ALL = dataclasses.replace(TINY, critic_warmup_steps=2, critic_steps=2, critic_ema_decay=0.6, gain_every=2)

Groups = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (48, 40, 3), dtype=np.uint8) for _ in range(3)]


def run(model: Path, photos: list[np.ndarray], output: Path, config: TrainConfig, **options: Any) -> FinishedRun:
    return train(
        RunSettings(model=model, data=photos, output=output, tracker="none", cpu=True, keep=99, **options), config
    )


def tensors(output: Path, step: int) -> Groups:
    path = output / "checkpoints" / f"checkpoint-{step:07d}" / "state.pt"
    return torch.load(path, weights_only=True)["tensors"]


def rows(finished: FinishedRun) -> list[dict[str, float]]:
    lines = finished.log.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_warm_up_trains_the_critic_alone(
    tiny_sd3_dir: Path,
    photos: list[np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Student, its average, optimiser and schedule stay as they are, and the student's own steps are those without."""
    config = dataclasses.replace(TINY, critic_warmup_steps=2, critic_ema_decay=0.9)
    monkeypatch.setattr("tsd.console.progress.SECONDS", 0.0)  # a line for every step
    finished = run(tiny_sd3_dir, photos, tmp_path / "run", config)
    assert finished.step == 5
    assert "critic warm-up" in capsys.readouterr().err
    one, two, three = (tensors(tmp_path / "run", step) for step in (1, 2, 3))
    for group in ("student.denoiser", "student.vae", "ema.student.denoiser", "ema.student.vae"):
        assert same(one[group], two[group])
        assert not same(two[group], three[group])
    assert not same(one["critic.denoiser"], two["critic.denoiser"])
    assert same(two["ema.critic.denoiser"], two["critic.denoiser"])  # equal at the end of the warm-up …
    assert not same(three["ema.critic.denoiser"], three["critic.denoiser"])  # … and behind it afterwards
    state = torch.load(
        tmp_path / "run" / "checkpoints" / "checkpoint-0000002" / "state.pt", weights_only=True
    )["stateful"]  # fmt: skip
    assert state["optimizer"]["state"] == {}
    assert (state["schedule"]["last_epoch"], state["critic_schedule"]["last_epoch"]) == (0, 2)
    logged = rows(finished)
    assert all("student" not in row and "lr" not in row and row["critic"] > 0 for row in logged[:2])
    plain = run(tiny_sd3_dir, photos, tmp_path / "plain", TINY)
    data = tensors(tmp_path / "plain", 1)
    assert logged[2]["pixel"] == rows(plain)[0]["pixel"]  # the same samples, the same start
    assert logged[2]["latent_mse"] == rows(plain)[0]["latent_mse"]
    assert not same(data["student.denoiser"], three["student.denoiser"])  # but another critic behind the gradient


def test_resumed_anywhere_is_uninterrupted_bit_for_bit(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    whole = run(tiny_sd3_dir, photos, tmp_path / "whole", ALL)
    for stop in (1, 2, 3, 4, None):  # in the warm-up, at its end, and after it
        parts = run(tiny_sd3_dir, photos, tmp_path / "parts", ALL, resume=True, stop_after=stop)
    for step in range(1, 6):
        a, b = tensors(tmp_path / "whole", step), tensors(tmp_path / "parts", step)
        assert a.keys() == b.keys()
        assert all(same(a[group], b[group]) for group in a)
    assert rows(whole) == rows(parts)
    assert ["critic_gain" in row for row in rows(whole)] == [True, False, True, False, True]
    measured_more = dataclasses.replace(ALL, gain_every=1)
    run(tiny_sd3_dir, photos, tmp_path / "parts", measured_more, resume=True)  # how often it is measured is free
    with pytest.raises(UserError, match="critic_steps: 2 then, 1 now"):
        run(tiny_sd3_dir, photos, tmp_path / "parts", dataclasses.replace(ALL, critic_steps=1), resume=True)


def test_the_average_is_what_the_hand_computes_and_predicts_in_place_of_the_critic(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One average for each update of the critic: avg ← .6 avg + .4 critic, in the student's turn alone."""
    seen: dict[str, list[dict[str, Tensor]]] = {"student": [], "critic": []}
    update = critic.update_critic_ema
    student_turn, critic_turn = student.student_turn, critic.critic_turn
    updates: list[dict[str, Tensor]] = []

    def critics(backbone: Any) -> dict[str, Tensor]:
        found = adapter_parameters(backbone.denoiser, "critic")
        return {key: value.detach().clone() for key, value in found.items()}

    def spy(kind: str, turn: Callable[..., Any]) -> Callable[..., Any]:
        def spied(backbone: Any, *args: Any, **options: Any) -> Any:
            seen[kind].append(critics(backbone))
            return turn(backbone, *args, **options)

        return spied

    def spied_update(state: TrainState, decay: float) -> None:
        updates.append({key: value.detach().clone() for key, value in state.tensors["critic.denoiser"].items()})
        update(state, decay)

    monkeypatch.setattr(student, "student_turn", spy("student", student_turn))
    monkeypatch.setattr(critic, "critic_turn", spy("critic", critic_turn))
    monkeypatch.setattr(critic, "update_critic_ema", spied_update)
    run(tiny_sd3_dir, photos, tmp_path / "run", ALL)
    assert (len(seen["student"]), len(seen["critic"]), len(updates)) == (3, 2 + 3 * 2, 8)
    average = updates[1]  # as the critic is after two steps of warm-up
    for step in range(3):
        assert_close(seen["student"][step], average)
        for now in updates[2 + 2 * step : 4 + 2 * step]:
            average = {key: 0.6 * average[key] + 0.4 * now[key] for key in average}
    assert_close(tensors(tmp_path / "run", 5)["ema.critic.denoiser"], average)
    for number in range(1, 8):  # the critic itself is trained on
        assert same(seen["critic"][number], updates[number - 1])


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], atol=1e-7, rtol=1e-5)


def test_an_error_inside_the_block_leaves_the_critic_as_it_was() -> None:
    state = TrainState({"critic.denoiser": {"x": torch.tensor([1.0, 2.0])}}, {})
    start_ema(state, CRITIC_GROUPS)
    state.tensors["critic.denoiser"]["x"].copy_(torch.tensor([3.0, 5.0]))
    update_critic_ema(state, 0.75)
    with contextlib.suppress(RuntimeError), averaged(state, CRITIC_GROUPS):
        assert state.tensors["critic.denoiser"]["x"].tolist() == [1.5, 2.75]
        raise RuntimeError
    assert state.tensors["critic.denoiser"]["x"].tolist() == [3.0, 5.0]
    assert state.tensors["ema.critic.denoiser"]["x"].tolist() == [1.5, 2.75]


def test_the_gain_grows_above_zero_in_the_warm_up(tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path) -> None:
    """At B = 0 the critic is the teacher, to the bit; then it learns the start's outputs better than the teacher."""
    config = dataclasses.replace(
        TINY,
        phases=(Phase(1, 1.0, 1.0, (1.0,)),),
        batch_size=4,
        posterior="mode",
        critic_layers="student",
        critic_warmup_steps=30,
        gain_every=1,
        checkpoint_every=100,
    )
    gains = [row["critic_gain"] for row in rows(run(tiny_sd3_dir, photos, tmp_path / "run", config))]
    assert gains[0] == 0
    assert all(gain > 0 for gain in gains[-10:])
    assert np.mean(gains[-10:]) > 2 * np.mean(gains[:10]) > 0


def test_a_gain_below_zero_is_warned_of_once() -> None:
    watch = GainWatch()
    said = [watch.warning(step, gain) for step, gain in enumerate([0.0, 0.2, -0.1, -0.2, 0.05, -0.1, -0.3, -0.5])]
    assert [text is not None for text in said] == [False] * 6 + [True, False]  # after -.3: mean -.13, error .06
    assert "at step 6 the critic's gain is -0.13" in str(said[6])
    assert "--critic-warmup-steps" in str(said[6])
    healthy = GainWatch()
    assert all(healthy.warning(step, 0.01) is None for step in range(20))
    beginner = GainWatch()
    assert all(beginner.warning(step, (-1.0) ** step * 1e-4) is None for step in range(20))


def test_a_critic_that_does_not_follow_is_told_of_on_stderr(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that is far too large, which does not diverge yet."""
    sick = dataclasses.replace(
        TINY,
        phases=(Phase(8, 1.0, 1.0, (1.0,)),),
        batch_size=4,
        critic_layers="student",
        critic_lr=0.3,
        gain_every=1,
        checkpoint_every=100,
    )
    finished = run(tiny_sd3_dir, photos, tmp_path / "sick", sick)
    assert rows(finished)[3]["critic_gain"] < 0
    assert capsys.readouterr().err.count("the critic's gain is") == 1
    run(tiny_sd3_dir, photos, tmp_path / "well", dataclasses.replace(sick, critic_lr=1e-2))
    assert "the critic's gain is" not in capsys.readouterr().err


def draws_of(
    model: Path, photos: list[np.ndarray], output: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Tensor]]:
    """For each step of the student: the data, and everything that its turn draws, by purpose."""
    steps: list[dict[str, Tensor]] = []
    inside = False
    student_turn, noise_for, times_for = student.student_turn, turns.noise_for, turns.times_for
    generator_for = turns.generator_for

    def spied_turn(backbone: Any, batch: Batch, *args: Any, **options: Any) -> StudentTurn:
        nonlocal inside
        inside = True
        steps.append({"hr": batch.x_H, "lr": batch.x_L, "index": torch.tensor(batch.indices)})
        try:
            return student_turn(backbone, batch, *args, **options)
        finally:
            inside = False

    def keep(name: str, value: Tensor) -> None:
        if inside:
            steps[-1][name] = value

    def spied_noise(seed: int, purpose: str, indices: list[int], like: Tensor) -> Tensor:
        noise = noise_for(seed, purpose, indices, like)
        keep(purpose, noise)
        return noise

    def spied_times(seed: int, purpose: str, indices: list[int], low: float, high: float, device: Any) -> Tensor:
        times = times_for(seed, purpose, indices, low, high, device)
        keep(purpose, times)
        return times

    def spied_generator(*parts: Any) -> torch.Generator:
        if "posterior" in str(parts[1]):
            keep(f"{parts[1]} {parts[2]}", torch.randn(8, generator=generator_for(*parts)))
        return generator_for(*parts)

    with monkeypatch.context() as patch:
        patch.setattr(student, "student_turn", spied_turn)
        patch.setattr(turns, "noise_for", spied_noise)
        patch.setattr(turns, "times_for", spied_times)
        patch.setattr(turns, "generator_for", spied_generator)
        run(model, photos, output, config)
    return steps


ARMS: dict[str, dict[str, Any]] = {
    "lambda": {"lambda_tsd": 1.0},
    "points": {"phases": (Phase(3, 0.5, 1.0, (1.0, 0.3, 0.3)),), "stride": 25.0, "random_bias": False},
    "weighting": {"weighting": "sigma2_one_minus_sigma", "residual": "velocity"},
    "critic": {"critic_warmup_steps": 3, "critic_steps": 3, "critic_ema_decay": 0.5, "critic_layers": "student"},
    "data terms": {"phases": (Phase(3, 0.5, 0.0, (1.0,)),)},
}


def test_arms_of_one_seed_draw_the_same_numbers_and_other_seeds_others(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, degradation, ε, t, posteriors of x_L and x_H, whatever the arm: differences between arms are paired."""
    full = draws_of(tiny_sd3_dir, photos, tmp_path / "full", TINY, monkeypatch)
    assert len(full) == 3
    names = {"hr", "lr", "index", "noise of TSD", "t of TSD", "bias"}
    names |= {f"posterior of {x} {index}" for x in ("x_L", "x_H") for index in (0, 1)}
    assert full[0].keys() == names
    for name, changes in ARMS.items():
        arm = draws_of(tiny_sd3_dir, photos, tmp_path / name, dataclasses.replace(TINY, **changes), monkeypatch)
        for ours, theirs in zip(full, arm, strict=True):
            missing = ours.keys() - theirs.keys()
            assert missing <= {"bias"} | ({"noise of TSD", "t of TSD"} if name == "data terms" else set())
            assert theirs.keys() <= ours.keys()
            for key in theirs:
                assert torch.equal(theirs[key], ours[key]), (name, key)
        start = tensors(tmp_path / name, 1 + changes.get("critic_warmup_steps", 0))
        assert start["student.denoiser"].keys() == tensors(tmp_path / "full", 1)["student.denoiser"].keys()
    other = draws_of(tiny_sd3_dir, photos, tmp_path / "seed", dataclasses.replace(TINY, seed=44), monkeypatch)
    for ours, theirs in zip(full, other, strict=True):
        assert all(not torch.equal(theirs[key], ours[key]) for key in ours if key != "index")


def test_a_regularisation_of_ones_own_that_calls_eq_5_is_eq_5(
    tiny_sd3_dir: Path, photos: list[np.ndarray], tmp_path: Path
) -> None:
    file = tmp_path / "mine.py"
    source = (
        "from tsd.algorithm.objective import tsd_gradient\n\n\n"
        "def mine(point, w, config):\n"
        "    return tsd_gradient(point.teacher_hat, point.teacher_z, point.critic_hat, config.lambda_tsd, w)\n"
    )
    file.write_text(source)
    config = dataclasses.replace(TINY, regularisation=f"python:{file}:mine")
    plain, own = (run(tiny_sd3_dir, photos, tmp_path / name, c) for name, c in (("plain", TINY), ("own", config)))
    for part in ("transformer", "vae"):
        assert same(load_file(plain.lora / f"{part}.safetensors"), load_file(own.lora / f"{part}.safetensors"))
    moved = tmp_path / "moved" / "mine.py"
    moved.parent.mkdir()
    moved.write_text(source)
    run(
        tiny_sd3_dir, photos, tmp_path / "own", dataclasses.replace(TINY, regularisation=f"python:{moved}:mine"),
        resume=True,
    )  # fmt: skip
    moved.write_text(source.replace("return tsd", "return 2 * tsd"))
    with pytest.raises(UserError, match=r"regularisation: 'mine [0-9a-f]{64}' then, 'mine [0-9a-f]{64}' now"):
        run(
            tiny_sd3_dir, photos, tmp_path / "own", dataclasses.replace(TINY, regularisation=f"python:{moved}:mine"),
            resume=True,
        )  # fmt: skip
    double = run(
        tiny_sd3_dir, photos, tmp_path / "double", dataclasses.replace(TINY, regularisation=f"python:{moved}:mine")
    )
    twice, once = rows(double)[0]["tsd_grad_rms"], rows(plain)[0]["tsd_grad_rms"]
    assert twice == pytest.approx(2 * once)
