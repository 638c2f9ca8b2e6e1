"""Flow matching and DDPM against diffusers' own schedulers, and their own identities."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from tsd.errors import UserError
from tsd.model.process import DDPM, FlowMatching, flow_from_config


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_agrees_with_diffusers_on_every_entry(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = FlowMatching(shift)
    index = torch.arange(0, 1000)
    t = 1000.0 - index
    torch.testing.assert_close(process.sigma(t), scheduler.sigmas[:1000], atol=1e-6, rtol=0)
    torch.testing.assert_close(process.timestep(t), scheduler.timesteps, atol=1e-3, rtol=0)
    torch.testing.assert_close(process.time_from_sigma(process.sigma(t)), t, atol=1e-3, rtol=0)


def test_the_process_of_a_configuration_is_its_schedulers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=500)
    process = flow_from_config(scheduler.config)
    assert (process.shift, process.num_train_timesteps) == (3.0, 500)
    assert (flow_from_config({}).shift, flow_from_config({}).num_train_timesteps) == (1.0, 1000)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting"),
        ({"shift": 0}, "shift is 0 and"),
        ({"shift": "3"}, "shift is '3'"),
        ({"num_train_timesteps": 1e3}, "num_train_timesteps 1000.0; expected numbers"),
    ],
)
def test_a_configuration_without_a_fixed_shift_is_refused(config: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        flow_from_config(config)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_noise_and_step_agree_with_diffusers(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = FlowMatching(shift)
    z, noise, velocity = torch.randn(3, 2, 4, 5, 5, dtype=torch.float64).float().unbind()
    index = torch.tensor([120, 777])
    t = 1000.0 - index
    ours = process.add_noise(z, noise, t)
    theirs = scheduler.scale_noise(z, scheduler.timesteps[index], noise)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    scheduler.set_timesteps(1000)  # the full table again, now with its step counter reset
    stepped = scheduler.step(velocity[:1], scheduler.timesteps[120], ours[:1]).prev_sample
    now, following = process.time_from_sigma(scheduler.sigmas[120:122].double()).split(1)
    moved = process.step(ours[:1], velocity[:1], now, following)
    torch.testing.assert_close(moved, stepped, atol=1e-6, rtol=0)
    to_the_end = ours[:1] - scheduler.sigmas[120] * velocity[:1]  # the scheduler's own step with σ_next = 0
    torch.testing.assert_close(process.x0(ours[:1], velocity[:1], now), to_the_end, atol=1e-6, rtol=0)


def test_predictions_are_inverses_of_noising() -> None:
    process = FlowMatching(3.0)
    z, noise = torch.randn(2, 3, 4, 6, 6).unbind()
    t = torch.tensor([30.0, 500.0, 1000.0])
    z_t = process.add_noise(z, noise, t)
    velocity = process.target(z, noise, t)
    torch.testing.assert_close(process.x0(z_t, velocity, t), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(process.epsilon(z_t, velocity, t), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(process.step(z_t, velocity, t, torch.zeros(3)), z, atol=1e-5, rtol=0)


def test_every_sample_is_at_its_own_time() -> None:
    process = FlowMatching(1.0)
    z, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    z_t = process.add_noise(z, noise, torch.tensor([100.0, 900.0]))
    torch.testing.assert_close(z_t[:, 0, 0, 0], torch.tensor([0.1, 0.9]))


SD2_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def ddpm(prediction_type: str) -> DDPM:
    scheduler = DDPMScheduler(prediction_type=prediction_type, **SD2_BETAS)
    return DDPM(scheduler.alphas_cumprod, prediction_type)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
def test_ddpm_noise_and_targets_agree_with_diffusers(prediction_type: str, scheduler_class: type) -> None:
    scheduler, process = scheduler_class(prediction_type=prediction_type, **SD2_BETAS), ddpm(prediction_type)
    z, noise = torch.randn(2, 3, 4, 5, 5).unbind()
    index = torch.tensor([0, 480, 999])
    t = index.float()
    ours = process.add_noise(z, noise, t)
    torch.testing.assert_close(ours, scheduler.add_noise(z, noise, index), atol=1e-6, rtol=0)
    if prediction_type == "v_prediction":
        velocity = scheduler.get_velocity(z, noise, index)
        torch.testing.assert_close(process.target(z, noise, t), velocity, atol=1e-6, rtol=0)
    else:
        assert process.target(z, noise, t) is noise
    assert process.timestep(t) is t


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [19, 499, 979, 999])
def test_ddpm_step_and_x0_agree_with_ddim(prediction_type: str, index: int) -> None:
    """DDIM with 50 steps moves by 20 timesteps, η = 0, without clipping, ending at ᾱ_0 as SD2's schedulers do."""
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False, **SD2_BETAS)
    scheduler.set_timesteps(50)
    process = ddpm(prediction_type)
    z_t, prediction = torch.randn(2, 1, 4, 6, 6).unbind()
    theirs = scheduler.step(prediction, index, z_t)
    t, t_next = torch.tensor([float(index)]), torch.tensor([float(index - 20)])
    x0 = process.x0(z_t, prediction, t)
    torch.testing.assert_close(x0, theirs.pred_original_sample, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(process.step(z_t, prediction, t, t_next), theirs.prev_sample, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_one_step_of_ddpm_agrees_with_diffusers_own(prediction_type: str) -> None:
    """OSEDiff steps a `DDPMScheduler` of one step at t = 999: its previous sample is the x0 prediction."""
    scheduler = DDPMScheduler(
        prediction_type=prediction_type, clip_sample=False, timestep_spacing="trailing", **SD2_BETAS
    )
    scheduler.set_timesteps(1)
    z_t, prediction = torch.randn(2, 1, 4, 6, 6).unbind()
    theirs = scheduler.step(prediction, 999, z_t).pred_original_sample
    process = ddpm(prediction_type)
    assert process.last_time == 999
    ours = process.x0(z_t, prediction, torch.tensor([process.last_time]))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ddpm_predictions_are_inverses_of_noising(prediction_type: str) -> None:
    process = ddpm(prediction_type)
    z, noise = torch.randn(2, 3, 4, 6, 6).unbind()
    t = torch.tensor([0.0, 333.3, 800.0])  # between the table's entries too
    z_t, prediction = process.add_noise(z, noise, t), process.target(z, noise, t)
    torch.testing.assert_close(process.x0(z_t, prediction, t), z, atol=2e-5, rtol=0)
    torch.testing.assert_close(process.epsilon(z_t, prediction, t), noise, atol=1e-5, rtol=0)
    lower = process.step(z_t, prediction, t, torch.tensor([0.0, 100.0, 42.5]))
    torch.testing.assert_close(lower, process.add_noise(z, noise, torch.tensor([0.0, 100.0, 42.5])), atol=2e-5, rtol=0)


def test_ddpm_times_lie_between_the_entries_and_come_back_from_levels() -> None:
    process = ddpm("epsilon")
    t = torch.tensor([0.0, 10.5, 499.25, 999.0])
    sigma = process.sigma(t)
    assert process.sigma(torch.tensor(10.0)) < sigma[1] < process.sigma(torch.tensor(11.0))
    torch.testing.assert_close(process.time_from_sigma(sigma), t, atol=0.05, rtol=0)
    assert float(process.time_from_sigma(torch.tensor(1.0))) == 999.0
    torch.testing.assert_close(process.sigma(torch.tensor([-5.0, 2000.0])), process.sigma(torch.tensor([0.0, 999.0])))
