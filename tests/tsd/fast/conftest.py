from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tsd.config import PLAIN, FastPath, RestoreConfig
from tsd.restore import Restorer


@dataclass(frozen=True)
class Student:
    """A tiny student on disk. `load` reads it in the plain form, or with other measures."""

    model: Path
    lora: Path

    def load(self, fast: FastPath = PLAIN, dtype: torch.dtype = torch.float32, **settings: object) -> Restorer:
        config = RestoreConfig(**({"process_size": 0, "posterior": "mode"} | settings))  # pyright: ignore
        return Restorer.load(self.model, self.lora, config=config, dtype=dtype, fast=fast)


@pytest.fixture(scope="session")
def tiny_sd35_dir(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_sd3_dir` with what SD3.5's blocks have besides: normed queries and keys, a second attention in block 0."""
    folder = tmp_path_factory.mktemp("tiny") / "sd35"
    folder.mkdir()
    for part in ("vae", "scheduler", "prompts"):
        (folder / part).symlink_to(tiny_sd3_dir / part)
    torch.manual_seed(35)
    config = dict(SD3Transformer2DModel.load_config(tiny_sd3_dir / "transformer"))
    config |= {"qk_norm": "rms_norm", "dual_attention_layers": (0,)}
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def student_of(
    tiny_sd3_dir: Path, tiny_lora_dir: Path, tiny_sd2_dir: Path, tiny_sd2_lora_dir: Path
) -> Callable[[str], Student]:
    """The tiny student of a family by its name."""
    students = {"sd3": Student(tiny_sd3_dir, tiny_lora_dir), "sd2": Student(tiny_sd2_dir, tiny_sd2_lora_dir)}
    return students.__getitem__


@pytest.fixture(scope="session")
def student_at() -> type[Student]:
    """A tiny student by its two folders."""
    return Student


@pytest.fixture(params=["sd3", "sd2"])
def student(request: pytest.FixtureRequest, student_of: Callable[[str], Student]) -> Student:
    return student_of(request.param)
