"""The text domain's scores against closed forms, and the shipped classifier on real and spoilt lines."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from bench.ablation.text.classifier import SIDE, GlyphClassifier, glyph_crops, load_classifier
from bench.ablation.text.data import TextPairs
from bench.ablation.text.domain import MODEL
from bench.ablation.text.measures import TextScorer, gradient_energy, gray_images, map_distance, unsharp
from tsd.errors import UserError


@pytest.fixture(scope="module")
def scorer() -> TextScorer:
    test, other = TextPairs(1, 64, split="test"), TextPairs(1, 128, split="reference")
    return TextScorer(load_classifier(MODEL), [test.line(i) for i in range(64)], [other.line(i) for i in range(128)])


def test_crops_are_centred_on_the_glyphs() -> None:
    line = TextPairs(1, 1).line(0)
    height, width = line.image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for plane, axis in ((columns, 0), (rows, 1)):
        crops = glyph_crops(plane[None, None].float(), [line])
        assert crops.shape == (len(line.glyphs), 1, SIDE, SIDE)
        middle = crops[:, 0, SIDE // 2, SIDE // 2]
        expected = torch.tensor([round(centre[axis]) for centre in line.centres]).float()
        torch.testing.assert_close(middle, expected)


def test_the_ground_truth_scores_perfectly_and_blur_does_not(scorer: TextScorer) -> None:
    perfect = scorer(scorer.hr)
    assert perfect.of_set["psnr"] == pytest.approx(100)
    assert perfect.of_set["lp"] == pytest.approx(0, abs=1e-6)
    assert perfect.of_set["sharpness"] == pytest.approx(1)
    assert perfect.of_set["letters"] > 0.97
    assert perfect.of_set["faces"] > 0.85
    blurred = scorer(torch.from_numpy(gaussian_filter(scorer.hr.numpy(), (0, 0, 2, 2))))
    for name, worse in (("psnr", -1), ("lp", 1), ("fd", 1), ("kid", 1), ("letters", -1), ("sharpness", -1)):
        assert worse * (blurred.of_set[name] - perfect.of_set[name]) > 0, name
    assert all(values.shape == (64,) for values in blurred.per_image.values())
    assert blurred.of_set["lp"] == pytest.approx(blurred.per_image["lp"].mean())


def test_psnr_is_of_the_rounded_image(scorer: TextScorer) -> None:
    off = (scorer.hr + 3.4 / 255).clamp(0, 1)
    expected = -10 * np.log10(((np.rint(off.numpy() * 255) / 255 - scorer.hr.numpy()) ** 2).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(scorer(off).per_image["psnr"], expected, rtol=1e-5)


def test_the_map_distance_is_that_of_unit_vectors() -> None:
    a, b = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    a[:, 0], b[:, 0] = 5.0, 2.0
    torch.testing.assert_close(map_distance([a], [b]), torch.zeros(2))  # the same direction at every place
    b[1, 0], b[1, 1] = 0.0, 7.0
    torch.testing.assert_close(map_distance([a, a], [b, a]), torch.tensor([0.0, 2.0]))  # a right angle


def test_gradient_energy_of_a_ramp() -> None:
    ramp = (torch.arange(5).float() / 10).expand(1, 1, 3, 5)
    assert float(gradient_energy(ramp)) == pytest.approx(3 * 4 * 0.01)


def test_unsharp_is_that_of_scipy_and_leaves_flat_images() -> None:
    images = gray_images([TextPairs(1, 2).line(i) for i in range(2)])
    torch.testing.assert_close(unsharp(images, 0.0), images)
    flat = torch.full((1, 1, 8, 8), 0.3)
    torch.testing.assert_close(unsharp(flat, 0.8), flat)
    blurred = gaussian_filter(images.numpy(), (0, 0, 1, 1), mode="nearest", truncate=4)
    torch.testing.assert_close(unsharp(images, 0.5), torch.from_numpy(1.5 * images.numpy() - 0.5 * blurred))


def test_the_classifier_learns_from_a_few_glyphs_and_is_asked_for_when_missing(tmp_path) -> None:
    torch.manual_seed(0)
    model, lines = GlyphClassifier(), [TextPairs(1, 8).line(i) for i in range(8)]
    crops = glyph_crops(gray_images(lines), lines)
    truth = torch.tensor([glyph for line in lines for glyph in line.glyphs])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = F.cross_entropy(model(crops).letters, truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float((model(crops).letters.argmax(1) == truth).float().mean()) > 0.9
    with pytest.raises(UserError, match="train_text"):
        load_classifier(tmp_path)
