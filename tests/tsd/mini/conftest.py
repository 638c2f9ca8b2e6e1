"""What the shipped students gain over bicubic on the mini test set."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torchvision.io import read_image

from tsd.mini.stages import psnr_luma
from tsd.model.backbone import load_backbone
from tsd.model.lora import load_student


@pytest.fixture
def gains_over_bicubic() -> Callable[[Path, str], torch.Tensor]:
    """`gains(model, lora)`: the difference in PSNR-Y to bicubic for each image of the mini test set, in dB."""

    def gains(model: Path, lora: str) -> torch.Tensor:
        folder = Path(__file__).parents[3] / "datasets" / "mini"
        student = load_backbone(model)
        load_student(student, model / "lora" / lora)
        found = []
        for path in sorted((folder / "test_LR").glob("*.png")):
            low, high = (read_image(str(file))[None].float() / 255 for file in (path, folder / "test_HR" / path.name))
            x = functional.interpolate(low, scale_factor=4, mode="bicubic").clamp(0, 1) * 2 - 1
            with torch.no_grad():
                restored = student.decode(student.one_step(student.encode(x, posterior="mode")))
            found.append(psnr_luma(restored, high * 2 - 1) - psnr_luma(x, high * 2 - 1))
        return torch.tensor(found)

    return gains
