"""The meter of live tensor bytes against what can be counted by hand, on real and on fake tensors."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tsd.memory.live_bytes import LiveBytes


def test_storages_count_once_and_leave_with_their_last_user() -> None:
    held = torch.zeros(100)
    with LiveBytes(held) as meter:
        assert meter.live == 400
        whole = held + 1
        view = whole.view(10, 10).t()[2:]
        whole.add_(1)
        assert meter.live == 800
        del whole
        assert meter.live == 800
        del view
        assert (meter.live, meter.peak) == (400, 800)
        meter.reset_peak()
        assert meter.peak == 400


def graph_of(meter: LiveBytes, layers: nn.Sequential, x: torch.Tensor) -> tuple[int, int]:
    """Bytes of the graph before the backward pass, and after it."""
    before = meter.live
    y = layers(x).sum()
    graph = meter.live - before
    y.backward()
    del y
    return graph, meter.live - before


def test_graphs_and_gradients_are_seen_with_and_without_data() -> None:
    """Linear and ReLU keep one activation each of 8 x 50 floats; the scalar and its gradient's seed go again."""
    found = []
    for mode in (None, FakeTensorMode()):
        with mode or torch.enable_grad():
            layers = nn.Sequential(nn.Linear(50, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.Sigmoid())
            x = torch.zeros(8, 50)
            with LiveBytes(layers, x) as meter:
                weights = 4 * 2 * (50 * 50 + 50)
                assert meter.live == weights + 4 * 400
                found.append(graph_of(meter, layers, x))
    assert found[0] == found[1] == (2 * 1600 + 4, weights)


def test_forgotten_activations_are_not_counted() -> None:
    layer = nn.Sequential(nn.Linear(50, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.Sigmoid())
    x = torch.zeros(8, 50, requires_grad=True)
    with LiveBytes(layer, x) as meter:
        before = meter.live
        y = checkpoint(layer, x, use_reentrant=False)
        assert meter.live - before == 1600  # its own output alone
        y.sum().backward()
        assert meter.peak - before > 2 * 1600
