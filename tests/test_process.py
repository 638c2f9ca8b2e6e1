"""Flow matching against diffusers' own scheduler, and its own identities."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tsd.process import FlowMatching


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_agrees_with_diffusers_on_every_entry(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = FlowMatching(shift)
    index = torch.arange(0, 1000)
    t = 1000.0 - index
    torch.testing.assert_close(process.sigma(t), scheduler.sigmas[:1000], atol=1e-6, rtol=0)
    torch.testing.assert_close(process.timestep(t), scheduler.timesteps, atol=1e-3, rtol=0)
    torch.testing.assert_close(process.time_from_sigma(process.sigma(t)), t, atol=1e-3, rtol=0)


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
    t_next = process.time_from_sigma(scheduler.sigmas[121:122])
    moved = process.step(ours[:1], velocity[:1], process.time_from_sigma(scheduler.sigmas[120:121]), t_next)
    torch.testing.assert_close(moved, stepped, atol=1e-5, rtol=0)


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
