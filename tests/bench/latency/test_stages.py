"""Stages as they are observed from outside: their order, what is left behind, and the clock's sums."""

import pytest
import torch
from torch import Tensor

from bench.latency.clock import Timeline, boundaries_of, timed_call
from bench.methods.stages import COUNTED, STAGES, Boundary, observed


class Codec:
    def encode(self, x: Tensor) -> Tensor:
        return x + 1

    def decode(self, x: Tensor) -> Tensor:
        return self.twice(x) - 1

    def twice(self, x: Tensor) -> Tensor:
        return x


class Method:
    """Two parts with work around them, the second with a part of its own."""

    def __init__(self) -> None:
        self.codec = Codec()

    def restore(self, lr: Tensor, seed: int) -> Tensor:
        x = self.codec.encode(lr).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return self.codec.decode(x).clamp(0, 1)

    def provenance(self) -> dict[str, object]:
        return {}

    def networks(self) -> dict[str, torch.nn.Module]:
        return {}

    def boundaries(self) -> list[Boundary]:
        return [
            Boundary("encode", self.codec, "encode", "denoise"),
            Boundary("decode", self.codec, "decode", "colour"),
            Boundary("text", self.codec, "twice", "decode"),
        ]


def test_stages_begin_in_the_order_of_the_calls_and_nothing_is_left_behind() -> None:
    method, seen = Method(), []
    with observed(method.boundaries(), seen.append):
        method.restore(torch.rand(1, 3, 4, 4), 0)
    assert seen == ["encode", "denoise", "decode", "text", "decode", "colour"]
    assert vars(method.codec) == {}
    method.restore(torch.rand(1, 3, 4, 4), 0)
    assert len(seen) == 6


def test_an_attribute_that_was_set_before_is_set_again() -> None:
    method = Method()
    method.codec.encode = own = lambda x: x  # type: ignore[method-assign]
    with observed(method.boundaries(), lambda stage: None):
        assert method.codec.encode is not own
    assert method.codec.encode is own


def test_the_clock_gives_every_moment_to_one_stage() -> None:
    timeline = Timeline("cpu")
    timeline.marks = [("encode", 1.0, 0.1), ("denoise", 2.0, 0.2), ("encode", 5.0, 0.5), ("", 5.5, 0.9)]
    call = timeline.call()
    assert call.stages == {"encode": 1.5, "denoise": 3.0}
    assert call.cpu_stages["encode"] == 0.1 + (0.9 - 0.5)
    assert set(COUNTED) < set(STAGES)


def test_a_call_has_all_stages_and_the_harness_own() -> None:
    method = Method()
    call = timed_call(method, torch.rand(1, 3, 16, 16), "cpu")
    assert list(call.stages) == ["upsample", "encode", "denoise", "decode", "text", "colour", "png"]
    assert all(seconds >= 0 for seconds in call.stages.values())
    assert call.stages.keys() == call.cpu_stages.keys()


def test_a_stage_that_never_begins_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    method = Method()
    monkeypatch.setattr(method, "boundaries", lambda: [Boundary("encode", Codec(), "encode")])
    with pytest.raises(RuntimeError, match="the stages encode never began"):
        timed_call(method, torch.rand(1, 3, 16, 16), "cpu")


def test_a_method_that_names_no_stages_counts_whole() -> None:
    from bench.methods.resize import Bicubic

    assert boundaries_of(Bicubic()) == ()
    assert list(timed_call(Bicubic(), torch.rand(1, 3, 16, 16), "cpu").stages) == ["denoise", "png"]
