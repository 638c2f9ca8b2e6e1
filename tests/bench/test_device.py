"""What --device means, with and without GPUs, for one process and for several."""

import pytest
import torch

from bench import device
from bench.device import resolve_device
from bench.ranks import Rank
from tsd.errors import UserError


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As on a machine with so many GPUs."""
    monkeypatch.setattr(device, "find_library", lambda name: name if count else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0)
    for rank in (Rank(), Rank(1, 2, 1)):
        assert resolve_device("auto", rank) == "cpu"
        assert resolve_device("cpu", rank) == "cpu"
        with pytest.raises(UserError, match="--device cuda: torch finds no CUDA device"):
            resolve_device("cuda", rank)


def test_one_process_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 4)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:3", "cpu")] == ["cuda", "cuda", "cuda:3", "cpu"]


def test_each_of_several_processes_takes_the_gpu_of_its_number_on_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 2)
    ranks = [Rank(rank, 4, rank % 2) for rank in range(4)]  # two machines
    for name in ("auto", "cuda"):
        assert [resolve_device(name, rank) for rank in ranks] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    with pytest.raises(UserError, match=r"more processes than GPUs on this machine \(2\)"):
        resolve_device("cuda", Rank(2, 3, 2))
    with pytest.raises(UserError, match="--device cuda:1 with 4 processes"):
        resolve_device("cuda:1", ranks[0])
