"""Every clause of the method contract is caught when broken, and only that clause."""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.commands import check as command
from bench.methods.check import check_method, report, synthetic_image
from tsd.errors import UserError


class Good:
    """Nearest neighbour plus a little noise from its own generator: keeps the contract and uses the seed."""

    def restore(self, lr: Tensor, seed: int) -> Tensor:
        sr = lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
        noise = torch.rand(sr.shape, generator=torch.Generator().manual_seed(seed))
        return (0.98 * sr + 0.02 * noise).clamp(0, 1)

    def provenance(self) -> dict[str, object]:
        return {"weights": "none"}


class Mutates(Good):
    def restore(self, lr, seed):
        sr = super().restore(lr, seed)
        lr.mul_(0.5)
        return sr


class WrongScale(Good):
    def restore(self, lr, seed):
        return lr.repeat_interleave(2, 2).repeat_interleave(2, 3)


class NotANumber(Good):
    def restore(self, lr, seed):
        sr = super().restore(lr, seed)
        sr[..., 0, 0] = float("nan")
        return sr


class DividesByDeviation(Good):
    def restore(self, lr, seed):
        return (super().restore(lr, seed) + 0 * lr.mean() / lr.std()).clamp(0, 1)


class OtherRange(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed) * 255


class OtherType(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed).double()


class KeepsGradient(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed) * torch.ones(1, requires_grad=True)


class ReturnsArray(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed).numpy()


class SwapsChannels(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed).flip(1)


class Mirrors(Good):
    def restore(self, lr, seed):
        return super().restore(lr, seed).flip(3)


class KeepsFirstResult(Good):
    """A cache by size: the second image of a size gets the result of the first."""

    def __init__(self):
        self.cache = {}

    def restore(self, lr, seed):
        if lr.shape not in self.cache:
            self.cache[lr.shape] = super().restore(lr, seed)
        return self.cache[lr.shape].clone()


class DependsOnOrder(Good):
    """Normalises by a statistic of the image before, as running averages do."""

    last = 1.0

    def restore(self, lr, seed):
        sr = super().restore(lr, seed) * (0.9 + 0.1 * self.last)
        self.last = float(lr.mean())
        return sr


class CountsCalls(Good):
    calls = 0

    def restore(self, lr, seed):
        self.calls += 1
        return super().restore(lr, seed + self.calls)


class UsesGlobalTorch(Good):
    def restore(self, lr, seed):
        return super().restore(lr, int(torch.randint(2**31, ())))


class ReadsGlobalNumpy(Good):
    """Depends on the global generator without moving it on."""

    def restore(self, lr, seed):
        return super().restore(lr, int(np.random.get_state()[1][0]))


class SeedsGlobals(Good):
    def restore(self, lr, seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return super().restore(lr, seed)


class SmallSeeds(Good):
    def restore(self, lr, seed):
        np.random.RandomState(seed)
        return super().restore(lr, seed)


class EvenSizes(Good):
    def restore(self, lr, seed):
        if lr.shape[-1] % 2:
            raise RuntimeError("width must be even")
        return super().restore(lr, seed)


class ReusesBuffer(Good):
    buffers: dict = {}  # noqa: RUF012

    def restore(self, lr, seed):
        sr = super().restore(lr, seed)
        return self.buffers.setdefault(sr.shape, torch.empty_like(sr)).copy_(sr)


class NoProvenance(Good):
    def provenance(self):
        return {}


class UnserialisableProvenance(Good):
    def provenance(self):
        return {"path": Path("x")}


class ChangingProvenance(Good):
    def provenance(self):
        return {"time": random.random()}


EVERY_SIZE = {"input of 16x16", "input of 47x33", "input of 40x64"}


@pytest.mark.parametrize(
    ("method", "clauses"),
    [
        (Mutates, {"input unchanged"}),
        (WrongScale, EVERY_SIZE | {"flat images", "largest seed"}),
        (NotANumber, EVERY_SIZE | {"flat images", "largest seed"}),
        (DividesByDeviation, {"flat images"}),
        (OtherRange, EVERY_SIZE | {"flat images", "largest seed"}),
        (OtherType, EVERY_SIZE | {"flat images", "largest seed"}),
        (KeepsGradient, EVERY_SIZE | {"flat images", "largest seed"}),
        (SwapsChannels, {"content"}),
        (Mirrors, {"content"}),
        (DependsOnOrder, {"independence of other images"}),
        (CountsCalls, {"determinism", "independence of other images", "global random state"}),
        (UsesGlobalTorch, {"determinism", "independence of other images", "global random state"}),
        (ReadsGlobalNumpy, {"global random state"}),
        (SeedsGlobals, {"global random state"}),
        (SmallSeeds, {"largest seed"}),
        (ReusesBuffer, {"earlier results unchanged"}),
        (NoProvenance, {"provenance"}),
        (UnserialisableProvenance, {"provenance"}),
        (ChangingProvenance, {"provenance"}),
    ],
)
def test_each_violation_is_found_where_it_is(method: type[Good], clauses: set[str]):
    broken = {finding.clause for finding in check_method(method()) if finding.passed is False}
    # NaN or a wrong size necessarily shows in the content too; order dependence may show in determinism.
    slack = {"content", "determinism", "seed", "independence of other images", "global random state"}
    assert clauses <= broken
    assert broken - clauses <= (slack if method in (NotANumber, OtherRange, WrongScale, DependsOnOrder) else set())


def test_a_result_kept_from_before_is_found():
    broken = {finding.clause for finding in check_method(KeepsFirstResult()) if finding.passed is False}
    assert "content" in broken


def test_crashes_are_findings_with_the_exception():
    findings = {finding.clause: finding for finding in check_method(EvenSizes())}
    assert findings["input of 47x33"].passed is False
    assert findings["input of 47x33"].found == "RuntimeError: width must be even"
    assert findings["input of 40x64"].passed is True
    arrays = {finding.clause: finding for finding in check_method(ReturnsArray())}
    assert arrays["input of 16x16"].found == "a ndarray, not a tensor"


def test_a_good_method_passes_and_its_use_of_the_seed_is_noted():
    findings = check_method(Good())
    assert [finding.passed for finding in findings if finding.clause != "seed"] == [True] * (len(findings) - 1)
    (seed,) = [finding for finding in findings if finding.clause == "seed"]
    assert seed.passed is None
    assert "another seed changes values by up to 0.01" in seed.found
    text = report("good", findings)
    assert text.startswith("good keeps the contract\n")
    assert "\n  note  seed" in text


def test_a_gpu_may_differ_by_one_level():
    class Jitters(Good):
        calls = 0

        def restore(self, lr, seed):
            self.calls += 1
            return (super().restore(lr, seed) * 0.98 + 0.002 * (self.calls % 2)).clamp(0, 1)

    assert [f.clause for f in check_method(Jitters(), device="cuda") if f.passed is False] == []
    assert "determinism" in [f.clause for f in check_method(Jitters()) if f.passed is False]


def test_the_check_leaves_the_global_generators_alone():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    for method in (Good(), SeedsGlobals(), EvenSizes()):
        seed()
        check_method(method)
        assert draw() == expected


def test_synthetic_image_is_8_bit_rgb_and_seeded():
    image = synthetic_image(20, 30)
    assert image.shape == (1, 3, 20, 30)
    assert image.dtype == torch.float32
    assert torch.equal(image, (image * 255).round() / 255)
    assert torch.equal(image, synthetic_image(20, 30))
    assert not torch.equal(image, synthetic_image(20, 30, seed=1))


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["check", *arguments])
    return args.func(args)


def test_command_prints_a_list_and_returns_0(capsys: pytest.CaptureFixture[str]):
    assert run("bicubic") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "bicubic keeps the contract"
    assert all(line.startswith(("  pass  ", "  note  ")) for line in lines[1:])


def test_command_returns_1_and_json_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "mine.py").write_text("def twice(lr, seed):\n    return lr.repeat_interleave(2, 2)\n")
    assert run(f"python:{tmp_path / 'mine.py'}:twice", "--json") == 1
    content = json.loads(capsys.readouterr().out)
    assert content["method"] == "mine-twice"
    assert content["passed"] is False
    shapes = [f for f in content["findings"] if f["clause"] == "input of 16x16"]
    assert shapes[0]["found"] == "shape (1, 3, 32, 16)"
    assert "(1, 3, 64, 64)" in shapes[0]["expected"]


def test_command_refuses_what_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot be checked here:\n.*realesr-general-x4v3\.pth"):
        run("realesrgan-compact", "--weights-root", str(tmp_path))
    with pytest.raises(UserError, match="no method is called"):
        run("bicubicc")
    with pytest.raises(UserError, match="name their test set with --testset"):
        run(f"folder:{tmp_path}")


def test_command_refuses_a_method_that_cannot_be_built(tmp_path: Path):
    torch.save({"unknown.weight": torch.zeros(2)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match="does not recognise the network"):
        run(f"spandrel:{tmp_path / 'net.pth'}")


def test_command_checks_published_outputs(shared_dir: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ("--testset", "realsr", "--data-root", str(shared_dir / "data"))
    assert run("osediff-published", *arguments) == 0
    assert "100 images for 100 names of realsr" in capsys.readouterr().out
    assert run(f"folder:{shared_dir / 'data' / 'kodak'}", *arguments) == 1
    assert "no image of this name for 100 of 100: Canon_001_LR4, Canon_002_LR4" in capsys.readouterr().out
