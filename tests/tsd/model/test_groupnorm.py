import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from tsd.model.groupnorm import TwoPassGroupNorm, use_two_pass_group_norm


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("affine", [True, False])
def test_equals_the_library_in_double_precision(layout: torch.memory_format, affine: bool) -> None:
    norm = TwoPassGroupNorm(4, 8, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = (torch.randn(2, 8, 300, 200) + 20).contiguous(memory_format=layout)
    reference = nn.GroupNorm(4, 8, affine=affine).double()
    reference.load_state_dict(norm.state_dict())
    # The input itself is rounded to 1e-6 of its mean of 20; the library's channels-last kernel is off by 1e-2 here.
    assert torch.allclose(norm(x).double(), reference(x.double()), atol=2e-5)


def test_leaves_other_inputs_to_the_library() -> None:
    norm, library = TwoPassGroupNorm(2, 4), nn.GroupNorm(2, 4)
    for x in (torch.randn(2, 4, 9), torch.randn(1, 4, 5, 5).double()):
        assert torch.equal(norm.to(x.dtype)(x), library.to(x.dtype)(x))


def test_replaces_every_norm_and_shares_its_parameters() -> None:
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2)
    before = {name: parameter.data_ptr() for name, parameter in vae.named_parameters()}
    use_two_pass_group_norm(vae)
    norms = [module for module in vae.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert all(type(norm) is TwoPassGroupNorm for norm in norms)
    assert {name: parameter.data_ptr() for name, parameter in vae.named_parameters()} == before
