import math

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from tsd.fast.upsampling import use_fast_upsampling
from tsd.restore.windows import joined_rows, receptive_field, scaled, spans


@pytest.mark.parametrize("length", [7, 20, 21, 33, 34, 100])
@pytest.mark.parametrize(("halo", "fade"), [(0, 0), (3, 0), (3, 2)])
def test_shares_add_up_and_halos_are_kept(length: int, halo: int, fade: int) -> None:
    windows, total, cores = spans(length, 20, halo, fade), torch.zeros(length), torch.zeros(length)
    for span in windows:
        assert span.stop - span.start == windows[0].stop <= min(20, length)
        total[span.start : span.stop] += span.weights
        cores[span.start : span.stop][span.core] += 1
        if span.start:
            assert (span.weights[:halo] == 0).all()
        if span.stop < length:
            assert (span.weights[len(span.weights) - halo :] == 0).all()
    assert torch.allclose(total, torch.ones(length), atol=1e-6)
    assert (cores == 1).all()
    assert len(windows) == 1 or windows[-1].stop == length


def test_a_window_that_is_all_halo_is_refused() -> None:
    with pytest.raises(ValueError, match="expected more than 8"):
        spans(30, 8, 3, 2)


@pytest.mark.parametrize("fade", [0, 4])
def test_windows_of_a_convolution_join_to_the_whole(fade: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 5, padding=2), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1))
    image = torch.randn(1, 2, 61, 47)
    rows, columns = (spans(length, 24, receptive_field(network), fade) for length in image.shape[-2:])
    with torch.inference_mode():
        parts = list(joined_rows(lambda r, c: network(image[..., r.start : r.stop, c.start : c.stop]), rows, columns))
        assert [top for top, _ in parts] == [sum(p.shape[1] for _, p in parts[:n]) for n in range(len(parts))]
        assert torch.allclose(torch.cat([part for _, part in parts], dim=1), network(image)[0], atol=1e-6)


def test_scaled_windows_lie_where_the_positions_pixels_are() -> None:
    for span in spans(50, 20, 3, 2):
        larger = scaled(span, 4)
        assert (larger.start, larger.stop, larger.first) == (4 * span.start, 4 * span.stop, 4 * span.first)
        assert torch.equal(larger.weights[::4], span.weights)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_receptive_field_of_a_vae_is_as_far_as_a_change_reaches(layers: int, fast: bool) -> None:
    """Without group normalisation, which reaches everywhere. The bound is no more than a few positions too far."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4), layers_per_block=layers, norm_num_groups=1, mid_block_add_attention=False,
    ).double()  # fmt: skip
    for module in vae.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda x: x
    if fast:
        use_fast_upsampling(vae)
    encoder = [vae.encoder.conv_in, *vae.encoder.down_blocks, vae.encoder.mid_block, vae.encoder.conv_out]
    decoder = [vae.decoder.conv_in, vae.decoder.mid_block, *vae.decoder.up_blocks, vae.decoder.conv_out]
    for network, stages, channels, factor in ((vae.encoder, encoder, 3, 4), (vae.decoder, decoder, 4, 0.25)):
        reach = receptive_field(stages)
        side = 4 * (2 * reach // 4 + 4)
        image = torch.randn(1, channels, 8, side, dtype=torch.float64)
        middle = side // 2
        with torch.inference_mode():
            before = network(image)
            changed = image.clone()
            changed[..., middle] += 1
            moved = (network(changed) - before).abs().amax(dim=(0, 1, 2)) > 1e-12
        first, last = (int(end) for end in torch.arange(len(moved))[moved].aminmax())
        # One output position of the encoder is as wide as four of its input, which starts at the first of them.
        distance = max(middle - math.ceil((first + 1) * factor - 1), math.floor(last * factor) - middle)
        assert distance <= reach <= distance + 4 * max(factor, 1)
