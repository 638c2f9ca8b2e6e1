"""A regularisation of one's own in place of Eq. 5: `--regularisation python:FILE.py:FUNCTION`.

    def vsd(point, w, config):                       # Point, (B, 1, 1, 1), TrainConfig → (B, C, h, w)
        return w * (point.teacher_hat - point.critic_hat)

The function returns the gradient of L_reg on ẑ at one point of the trajectory; the points' gradients are added up. All
predictions of the point are there, in the configured residual form, and `w` is the product of the point's weight, w(t)
and whether the sample is inside. It is called without gradient, and must be a function of its arguments alone.

The file is run as `tsd.files.load_function` says.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tsd.algorithm.dasm import Point, Regularise
from tsd.config import TrainConfig
from tsd.errors import UserError
from tsd.files import load_function, no_exit
from tsd.model.process import NoiseProcess


@dataclass(frozen=True)
class OwnRegularisation:
    """A loaded function, and a text by which it is recognised on resumption: its name and its file's SHA-256."""

    regularise: Regularise
    identity: str


def load_regularisation(config: TrainConfig, process: NoiseProcess, channels: int) -> OwnRegularisation | None:
    """Loads the configured function and tries it on random latents; None for Eq. 5.

    Args:
        channels: C of the latents.

    Raises:
        UserError: no such file or function; the file does not run; the function fails, or returns something else than
            finite numbers in the shape of the latents.
    """
    if config.own_regularisation is None:
        return None
    path, name = config.own_regularisation
    function, sha256 = load_function(path, name)
    described = f"{name} in {path}"

    def regularise(point: Point, w: Tensor) -> Tensor:
        with no_exit(described):
            gradient = function(point, w, config)
        if not isinstance(gradient, Tensor) or gradient.shape != point.z_hat_t.shape:
            found = tuple(gradient.shape) if isinstance(gradient, Tensor) else f"a {type(gradient).__name__}"
            raise UserError(f"{described} returned {found}; expected a tensor {tuple(point.z_hat_t.shape)}")
        return gradient

    try:
        with torch.no_grad():
            gradient = regularise(*_random_point(config, process, channels))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{described} failed on random latents: {type(error).__name__}: {error}; expected "
            f"FUNCTION(point, w, config), see tsd/algorithm/regularisation.py"
        ) from error
    if not torch.isfinite(gradient).all():
        raise UserError(f"{described} returned numbers that are not finite on random latents")
    return OwnRegularisation(regularise, f"{name} {sha256}")


def _random_point(config: TrainConfig, process: NoiseProcess, channels: int) -> tuple[Point, Tensor]:
    """A point with standard normal latents and predictions, two samples at the ends of the range of times."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(5, 2, channels, 4, 4, generator=generator).unbind()
    t = torch.tensor(config.t_range).clamp(max=process.last_time)
    return Point(t, t > 0, *tensors), torch.ones(2, 1, 1, 1)
