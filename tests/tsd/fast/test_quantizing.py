from typing import Any

import pytest
import torch

from tsd.config import config_for
from tsd.errors import UserError
from tsd.fast.quantizing import check_quantization, quantize
from tsd.restore import Restorer
from tsd.restore.student import find_student

pytest.importorskip("torchao")


def test_the_mini_model_in_int8_gives_nearly_the_same_image_and_says_so() -> None:
    config = config_for(find_student(None, None)[1], {"posterior": "mode"})
    plain, ours = Restorer.load(config=config), Restorer.load(config=config, quantization="int8")
    lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    error = (ours.restore_tensor(lr, 0) - plain.restore_tensor(lr, 0)).square().mean()
    assert 0 < float(error) < 1e-3  # above 30 dB
    assert (ours.quantization, plain.quantization) == ("int8", None)
    assert any(
        "Int8" in type(p).__name__ or "Quantized" in type(p).__name__ for p in ours.backbone.denoiser.parameters()
    )


def test_nothing_large_enough(student_of: Any) -> None:
    with pytest.raises(UserError, match="no linear layer"):
        quantize(student_of("sd3").load().backbone.denoiser, "int8")


def test_fp8_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        check_quantization("fp8", "cpu")
