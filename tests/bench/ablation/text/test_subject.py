"""The text domain as a subject of figures: its moments differ by the training alone."""

import pytest
import torch

import bench.ablation.text.subject as subject_module
from bench.ablation.text.subject import open_subject

SHORT = {"steps": 2, "batch_size": 2, "critic_warmup_steps": 0, "warmup_steps": 1, "mixed_precision": "no", "lr": 1e-2}


def test_moments_share_latents_and_begin_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_module, "SHOWN", 4)
    first, last = open_subject().stages(SHORT, 0, [0.0, 1.0])
    assert (first.step, last.step) == (0, 2)
    assert torch.equal(first.z_L, last.z_L)
    assert torch.equal(first.z, last.z)
    assert not torch.equal(first.z_hat, last.z_hat)
    assert first.images is not None
    assert first.images(first.z).shape == (4, 1, 32, 48)
    times = first.times(500.0)
    z_t = first.process.add_noise(first.z, first.noise(500.0), times)
    assert first.critic is not None
    assert last.critic is not None
    # A critic that has not been trained is the teacher; afterwards it is not.
    torch.testing.assert_close(first.critic(z_t, times, first.rows), first.teacher(z_t, times, first.rows))
    assert not torch.allclose(last.critic(z_t, times, last.rows), last.teacher(z_t, times, last.rows))
