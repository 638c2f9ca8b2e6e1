"""A small experiment of the domain `paper` on the tiny SD3-family model, with data that `tsd prepare` made."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

MINI = """
[sweep]
name = "tiny-paper"
question = "Does TSM help a random model?"
domain = "paper"
seeds = "0"
metrics = ["mini-psnr", "mini-ssim"]

[settings]
steps = 6
batch_size = 2
gradient_accumulation = 1
crop = 32
usm = false
rank = 4
vae_rank = 4
critic_rank = 4
lr = 1e-3
critic_lr = 1e-3
warmup_steps = 1
pixel_loss = "charbonnier"
mixed_precision = "no"
base_dtype = "fp32"
checkpoint_every = 2
process_size = 0

[arms]
full = { label = "Full" }
no-tsm = { label = "w/o TSM", lambda_tsd = 1.0 }

[[comparisons]]
of = "full"
against = "no-tsm"
"""


@pytest.fixture
def raw_paper() -> dict[str, Any]:
    """The content of the experiment's file, to be changed by a test."""
    return copy.deepcopy(tomllib.loads(MINI))


@pytest.fixture(scope="session")
def tiny_prepared(tiny_sd3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four crops for the tiny model, without captions. Read-only."""
    from tsd.data.crops import CropConfig
    from tsd.data.degrade import FULL
    from tsd.data.prepare import prepare
    from tsd.data.prepare_config import PrepareConfig
    from tsd.data.sources import FolderSource

    root = tmp_path_factory.mktemp("paper-data")
    (root / "photos").mkdir()
    draw = np.random.default_rng(3)
    for number in range(4):
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "photos" / f"{number}.png")
    crops = CropConfig(crop=32, mode="random", per_image=1, degradation=FULL, usm=False, scale=4, seed=3)
    prepare(FolderSource([root / "photos"]), root / "prepared", tiny_sd3_dir, PrepareConfig(crops=crops))
    return root / "prepared"
