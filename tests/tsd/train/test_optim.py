"""Updates, overflow, 8-bit moments and what of them is saved."""

import copy
import dataclasses
import sys
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tsd.errors import UserError
from tsd.presets import MINI
from tsd.train.optim import OptimizerState, new_optimizer, require_optimizer, update

EIGHT_BIT = dataclasses.replace(MINI, optimizer="adamw8bit")


def quadratic(accelerator: Accelerator, config: Any, seed: int = 0) -> tuple[nn.Parameter, Any]:
    torch.manual_seed(seed)
    parameter = nn.Parameter(torch.randn(64, 128))
    return parameter, accelerator.prepare_optimizer(new_optimizer(config, [parameter], 1e-2))


def step(accelerator: Accelerator, parameter: nn.Parameter, optimizer: Any) -> dict[str, float]:
    parameter.grad = parameter.detach().clone()
    return update(accelerator, optimizer, [parameter], 1.0)


@pytest.mark.parametrize("config", [MINI, EIGHT_BIT], ids=["adamw", "adamw8bit"])
def test_a_restored_optimiser_goes_on_bit_for_bit(config: Any) -> None:
    if config is EIGHT_BIT:
        pytest.importorskip("bitsandbytes")
    accelerator = Accelerator(cpu=True)
    parameter, optimizer = quadratic(accelerator, config)
    for _ in range(2):
        step(accelerator, parameter, optimizer)
    saved, values = copy.deepcopy(OptimizerState(optimizer).state_dict()), parameter.detach().clone()
    step(accelerator, parameter, optimizer)
    other, fresh = quadratic(accelerator, config, seed=1)
    step(accelerator, other, fresh)  # moments of another history, to be replaced
    other.data.copy_(values)
    OptimizerState(fresh).load_state_dict(saved)
    step(accelerator, other, fresh)
    assert torch.equal(other, parameter)


def test_eight_bit_moments_are_eight_bit_and_near_the_exact_ones() -> None:
    pytest.importorskip("bitsandbytes")
    accelerator = Accelerator(cpu=True)
    (exact, adamw), (rough, adamw8bit) = quadratic(accelerator, MINI), quadratic(accelerator, EIGHT_BIT)
    for _ in range(5):
        step(accelerator, exact, adamw)
        step(accelerator, rough, adamw8bit)
    assert torch.uint8 in {
        value.dtype
        for state in adamw8bit.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    }
    difference = (exact - rough).detach().abs()
    assert float(difference.mean()) < 0.02 * 5 * 1e-2  # of the way gone
    assert float(difference.max()) < 0.2 * 5 * 1e-2


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    require_optimizer(MINI)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        require_optimizer(EIGHT_BIT)


def test_an_overflow_under_loss_scaling_leaves_the_step_out(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.native_amp = True  # as with mixed_precision="fp16", which accelerate refuses on CPUs
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    parameter, optimizer = quadratic(accelerator, MINI)
    before = parameter.detach().clone()
    accelerator.scaler.scale(torch.zeros(()))  # the scaler sets itself up at its first use
    parameter.grad = torch.full_like(parameter, float("inf"))
    assert update(accelerator, optimizer, [parameter], 1.0) == {"overflow": 1.0}
    assert torch.equal(parameter, before)
    assert accelerator.scaler.get_scale() == 4.0
    parameter.grad = 4.0 * torch.ones_like(parameter)  # a gradient of 1, scaled
    logs = update(accelerator, optimizer, [parameter], 1e9)
    assert logs["grad_norm"] == pytest.approx(parameter.numel() ** 0.5)
    assert not torch.equal(parameter, before)
