"""The settings that the mixture understands, by the names of `TrainConfig` and `Phase`; standard library only."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from tsd.config import Residual, Weighting
from tsd.errors import UserError, nearest
from tsd.files import OWN_FUNCTION, function_named, require_function


@dataclass(frozen=True, kw_only=True)
class MixtureSettings:
    """Everything that a student of the mixture depends on besides its seed.

    The meaning of every name is that of `TrainConfig`; `steps`, `latent_mse`, `gamma2` and `point_weights` are those
    of its one phase. What concerns images, text or large models does not exist here. The defaults are the release's
    algorithm at rates that suit the plane.

    Attributes:
        steps: student's steps, after those of the critic's warm-up.
        regularisation: `tsd`, or `python:FILE.py:FUNCTION` as in `tsd.algorithm.regularisation`; its third argument
            is these settings.
    """

    steps: int = 400
    batch_size: int = 96
    lr: float = 0.02
    latent_mse: float = 0.3
    gamma2: float = 1.0
    point_weights: tuple[float, ...] = (1.0, 0.3, 0.3, 0.3)
    lambda_tsd: float = 0.7
    stride: float = 50.0
    random_bias: bool = False
    residual: Residual = "velocity"
    weighting: Weighting = "sigma2"
    t_range: tuple[float, float] = (50.0, 950.0)
    regularisation: str = "tsd"
    critic_lr: float = 0.02
    critic_steps: int = 1
    critic_warmup_steps: int = 0
    critic_ema_decay: float = 0.0

    def __post_init__(self) -> None:
        possible = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0,
            "latent_mse": self.latent_mse >= 0,
            "gamma2": self.gamma2 >= 0,
            "point_weights": bool(self.point_weights),
            "lambda_tsd": 0 <= self.lambda_tsd <= 1,
            "stride": self.stride > 0,
            "residual": self.residual in get_args(Residual),
            "weighting": self.weighting in get_args(Weighting),
            "t_range": 0 < self.t_range[0] < self.t_range[1] <= 1000,
            "critic_lr": self.critic_lr > 0,
            "critic_steps": self.critic_steps >= 1,
            "critic_warmup_steps": self.critic_warmup_steps >= 0,
            "critic_ema_decay": 0 <= self.critic_ema_decay < 1,
        }
        for name, passed in possible.items():
            if not passed:
                raise UserError(f"mixture: {name} = {getattr(self, name)!r} is not possible")

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> "MixtureSettings":
        """Settings by name, lists as tuples; those left out have their defaults.

        Raises:
            UserError: an unknown name, a value of another type or outside its range, or a file that is not there.
        """
        hints = get_type_hints(MixtureSettings)
        for name in values:
            if name not in hints:
                near = nearest(name, hints)
                meant = f"did you mean {near}? " if near else ""
                raise UserError(f"the domain mixture has no setting {name!r}; {meant}It knows {', '.join(hints)}")
        settings = MixtureSettings(**{name: _as_hinted(name, value, hints[name]) for name, value in values.items()})
        settings.function_file()
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The settings as TOML and JSON hold them: tuples are lists."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    def function_file(self) -> tuple[Path, str] | None:
        """File and function of a regularisation of one's own; None for the paper's.

        Raises:
            UserError: the setting has another form, or the file has no such function.
        """
        if self.regularisation == "tsd":
            return None
        named = function_named(self.regularisation)
        if named is None:
            raise UserError(f"regularisation is {self.regularisation!r}; expected tsd or {OWN_FUNCTION}")
        require_function(*named, "point", "w", "settings")
        return named


def _as_hinted(name: str, value: Any, hint: Any) -> Any:
    """The value in the type that the setting has; whole numbers serve as floats."""
    if get_origin(hint) is tuple:
        item, *rest = get_args(hint)
        length = None if rest == [Ellipsis] else 1 + len(rest)
        if not isinstance(value, list | tuple) or length not in (None, len(value)):
            raise UserError(f"mixture: {name} = {value!r}; expected a list of {length or 'one or more'} numbers")
        return tuple(_as_hinted(name, part, item) for part in value)
    expected = hint if isinstance(hint, type) else str
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise UserError(f"mixture: {name} = {value!r}; expected {expected.__name__}, found {type(value).__name__}")
    return value
