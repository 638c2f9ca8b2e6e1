"""The domain `mixture`: cells of a second or two, and three rows in closed form to hold them against.

Imports no torch before a cell runs. A cell has no checkpoint: one that was stopped starts again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.ablation.cells import write_lines
from bench.ablation.domain import Cell, Measure
from bench.ablation.mixture.settings import MixtureSettings
from bench.provenance import sha256_json
from tsd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

TEST_POINTS = 1024
ROWS = 256
"""Of the test points, how many have rows of their own in a cell's scores."""
CURVE_POINTS = 10
LOG_EVERY = 10


def open_domain(argument: str) -> "MixtureDomain":
    """The domain; it takes no argument.

    Raises:
        UserError: an argument was given.
    """
    if argument:
        raise UserError(f'the domain mixture takes no argument, found {argument!r}; write domain = "mixture"')
    return MixtureDomain()


class MixtureDomain:
    """Eight Gaussians on a circle, see `bench.ablation.mixture.training`; a `Domain`."""

    name = "mixture"
    measures = (
        Measure("mse", "MSE", "", False, True, 4),
        Measure("distance", "Distance to mode", "", False, True, 4),
        Measure("sliced_w2", "Sliced W2", "", False, False, 4),
        Measure("log_likelihood", "Log-likelihood", "nats", True, True, 2),
    )
    references = ("start", "posterior mean", "posterior sample")
    """z_L, with which every student begins; E[z | z_L], the least MSE; a draw from p(z | z_L), the real prior."""

    def settings(self) -> dict[str, Any]:
        return MixtureSettings().to_dict()

    def check(self, settings: Mapping[str, Any]) -> None:
        MixtureSettings.from_mapping(settings)

    def fingerprint(self) -> str:
        """The recipe is code, see `code`; so this names only the number of test points."""
        return sha256_json([self.name, TEST_POINTS])

    def code(self) -> Sequence[Path]:
        folder = Path(__file__).parent
        return [folder / f"{name}.py" for name in ("domain", "networks", "prior", "scores", "settings", "training")]

    def run(self, cell: Cell, folder: Path, *, device: str, stop: Callable[[], bool]) -> None:
        """Trains on the CPU whatever the device: the exact teacher is there, and points gain nothing elsewhere."""
        import torch

        from bench.ablation.mixture.scores import set_scores
        from bench.ablation.mixture.training import PRIOR, Distillation

        distillation = Distillation(MixtureSettings.from_mapping(cell.settings), cell.seed)
        z, z_L, fresh = held_out(cell.seed)
        steps = distillation.settings.steps
        every = max(steps // CURVE_POINTS, 1)
        curve, log = [{"step": 0, **set_scores(PRIOR, z_L, z, fresh)}], []
        for logs in distillation.train(min(LOG_EVERY, steps)):
            if logs:
                log.append(logs)
            if distillation.step % every == 0 or distillation.step == steps:
                if stop():
                    return
                with torch.no_grad():
                    curve.append({"step": distillation.step, **set_scores(PRIOR, distillation.student(z_L), z, fresh)})
        with torch.no_grad():
            z_hat = distillation.student(z_L)
        _write_lines(folder / "curve.jsonl", curve)
        _write_lines(folder / "log.jsonl", log)
        _write_scores(folder, z_hat, z, fresh)

    def score_references(self, seed: int, folder: Path) -> None:
        from bench.ablation.mixture.training import DEGRADATION, PRIOR
        from tsd.seeds import generator_for

        z, z_L, fresh = held_out(seed)
        draw = PRIOR.posterior_sample(z_L, 1.0, DEGRADATION, generator_for(seed, "posterior sample"))
        rows = dict(zip(self.references, (z_L, PRIOR.posterior_mean(z_L, 1.0, DEGRADATION), draw), strict=True))
        for name, z_hat in rows.items():
            _write_scores(folder / name, z_hat, z, fresh)


def held_out(seed: int) -> "tuple[Tensor, Tensor, Tensor]":
    """z, z_L and as many fresh draws of the prior, each (TEST_POINTS, 2); the seed's own, shared by all arms."""
    from bench.ablation.mixture.training import PRIOR, draw_pairs
    from tsd.seeds import generator_for

    z, z_L = draw_pairs(TEST_POINTS, generator_for(seed, "test points"))
    return z, z_L, PRIOR.sample(TEST_POINTS, generator_for(seed, "fresh draws of the prior"))


def _write_scores(folder: Path, z_hat: "Tensor", z: "Tensor", fresh: "Tensor") -> None:
    from bench.ablation.mixture.scores import point_scores, set_scores
    from bench.ablation.mixture.training import PRIOR

    scores = {name: values[:ROWS].tolist() for name, values in point_scores(PRIOR, z_hat, z).items()}
    rows = [
        {"image": f"{index:04d}", **{name: values[index] for name, values in scores.items()}} for index in range(ROWS)
    ]
    _write_lines(folder / "scores.jsonl", [*rows, {"image": None, **set_scores(PRIOR, z_hat, z, fresh)}])


def _write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """JSON lines with floats at six significant digits, which is what fp32 holds."""
    rounded = ({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_lines(path, rounded)
