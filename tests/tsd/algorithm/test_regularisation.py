"""A regularisation of one's own: what it is given, and what is refused before anything heavy is loaded."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tsd.algorithm.regularisation import load_regularisation
from tsd.config import TrainConfig
from tsd.errors import UserError
from tsd.model.process import FlowMatching
from tsd.presets import PAPER


def configured(folder: Path, source: str, function: str = "mine") -> TrainConfig:
    (folder / "mine.py").write_text(source)
    return dataclasses.replace(PAPER, regularisation=f"python:{folder / 'mine.py'}:{function}")


def test_it_is_given_all_predictions_the_weight_and_the_settings(tmp_path: Path) -> None:
    source = """
def mine(point, w, config):
    assert w.shape == (len(point.t), 1, 1, 1)
    assert point.teacher_z is not None and point.critic_hat is not None
    return config.lambda_tsd * w * (point.teacher_hat - point.critic_hat)
"""
    config = configured(tmp_path, source)
    own = load_regularisation(config, FlowMatching(3.0), channels=4)
    assert own is not None
    assert own.identity.startswith("mine ")
    again = load_regularisation(configured(tmp_path, source + "\n"), FlowMatching(3.0), channels=4)
    assert again is not None
    assert again.identity != own.identity
    assert load_regularisation(PAPER, FlowMatching(3.0), channels=4) is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_of_this_name\n", r"failed while it was loaded: ModuleNotFoundError"),
        ("def other(point, w, config): pass\n", r"has no function 'mine'; it defines other"),
        ("def mine(point, w): return w\n", r"failed on random latents: TypeError"),
        ("def mine(point, w, config): return w\n", r"returned \(2, 1, 1, 1\); expected a tensor \(2, 4, 4, 4\)"),
        ("def mine(point, w, config): return 3\n", r"returned a int"),
        ("def mine(point, w, config): return point.teacher_hat / 0\n", r"not finite"),
    ],
)
def test_what_cannot_be_used_is_refused(source: str, said: str, tmp_path: Path) -> None:
    config = configured(tmp_path, source)
    with pytest.raises(UserError, match=said):
        load_regularisation(config, FlowMatching(3.0), channels=4)


def test_no_file_and_no_python_file(tmp_path: Path) -> None:
    for name, said in (("nowhere.py", "could not be read"), ("text.txt", "is not a Python file")):
        (tmp_path / "text.txt").write_text("")
        config = dataclasses.replace(PAPER, regularisation=f"python:{tmp_path / name}:mine")
        with pytest.raises(UserError, match=f"{said}.*expected python:FILE.py:FUNCTION"):
            load_regularisation(config, FlowMatching(3.0), channels=4)


def test_another_shape_later_is_refused_too(tmp_path: Path) -> None:
    source = "def mine(point, w, config): return point.z_t if len(point.t) == 2 else w\n"
    own = load_regularisation(configured(tmp_path, source), FlowMatching(3.0), channels=4)
    assert own is not None
    from tsd.algorithm.dasm import Point

    latents = torch.zeros(3, 4, 2, 2)
    with pytest.raises(UserError, match="returned"):
        own.regularise(Point(torch.ones(3), torch.ones(3) > 0, *[latents] * 5), torch.ones(3, 1, 1, 1))
