"""Rendered lines: pure functions of their seed, with every glyph where they say it is."""

import numpy as np
import pytest
import torch

from bench.ablation.text.data import (
    CAPTION_TOKENS,
    CAPTION_WIDTH,
    TextPairs,
    caption,
    degrade_line,
    no_caption,
    to_images,
)
from bench.ablation.text.glyphs import ALPHABET, FACES, HEIGHT, MIN_CONTRAST, WIDTH, font_hashes, render_line


def test_a_line_is_a_pure_function_of_its_seed() -> None:
    first, again, other = render_line("a", 1), render_line("a", 1), render_line("a", 2)
    assert np.array_equal(first.image, again.image)
    assert (first.glyphs, first.centres, first.face) == (again.glyphs, again.centres, again.face)
    assert not np.array_equal(first.image, other.image)


def test_lines_vary_in_everything_and_stay_in_range() -> None:
    lines = [render_line("many", number) for number in range(400)]
    assert {len(line.glyphs) for line in lines} == {2, 3, 4, 5}
    assert {glyph for line in lines for glyph in line.glyphs} == set(range(len(ALPHABET)))
    assert {line.face for line in lines} == set(range(len(FACES)))
    assert len(set(ALPHABET)) == len(ALPHABET) == 50
    darker = 0
    for line in lines:
        assert line.image.shape == (HEIGHT, WIDTH)
        assert line.image.dtype == np.float32
        assert line.image.min() >= 0
        assert line.image.max() <= 1
        assert line.image.max() - line.image.min() > 0.8 * MIN_CONTRAST
        darker += np.median(line.image) > line.image.mean()
    assert 100 < darker < 350  # ink is darker than paper in most lines, not in all


def test_every_glyph_is_where_the_line_says() -> None:
    for number in range(200):
        line = render_line("places", number)
        paper = np.median(line.image)
        ink = np.abs(line.image - paper)
        rows, columns = np.indices(ink.shape)
        xs = [x for x, _ in line.centres]
        assert xs == sorted(xs)
        # The ink's centre of mass lies among the centres, and each glyph has ink within half a glyph of its centre.
        mean_x = (ink * columns).sum() / ink.sum()
        assert abs(mean_x - np.mean(xs)) < 8  # a wide m beside a thin i
        for x, y in line.centres:
            near = ink[(np.abs(rows - y) < 9) & (np.abs(columns - x) < 4)]
            assert near.max() > 0.2 * ink.max()
            assert -1 < x < WIDTH + 1
            assert 4 < y < HEIGHT - 4


def test_the_degradation_keeps_the_mean_and_loses_the_detail() -> None:
    line = render_line("degraded", 3)
    small = degrade_line(line.image, "seed", 3)
    assert small.dtype == np.uint8
    assert small.shape == (HEIGHT // 4, WIDTH // 4)
    assert abs(small.mean() / 255 - line.image.mean()) < 0.02
    assert np.array_equal(small, degrade_line(line.image, "seed", 3))
    assert not np.array_equal(small, degrade_line(line.image, "seed", 4))
    lr, hr = to_images(line, small)
    assert lr.shape == (3, HEIGHT // 4, WIDTH // 4)
    assert hr.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(hr[0], hr[2])


def test_pairs_are_items_of_the_training_and_depend_on_seed_and_split() -> None:
    data = TextPairs(7, 10)
    item = data[3]
    assert item["index"] == 3
    for name in ("hr", "lr_up"):
        image = item[name]
        assert isinstance(image, torch.Tensor)
        assert image.shape == (3, HEIGHT, WIDTH)
        assert image.min() >= -1
        assert image.max() <= 1
    assert "prompt_embeds" not in item
    assert len(data) == 10
    with pytest.raises(IndexError):
        data[10]
    others = [TextPairs(8, 10), TextPairs(7, 10, split="test")]
    for other in others:
        assert not torch.equal(torch.as_tensor(other[3]["hr"]), torch.as_tensor(item["hr"]))
        assert other.fingerprint != data.fingerprint
    assert TextPairs(7, 99).fingerprint == data.fingerprint  # a longer run of the same data


def test_a_caption_tells_the_string_and_the_places() -> None:
    a, b, turned = caption((1, 2)), caption((1, 3)), caption((2, 1))
    assert a.shape == (CAPTION_TOKENS, CAPTION_WIDTH)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])
    assert not torch.equal(a[0], turned[1])
    assert torch.equal(a[2:], turned[2:])
    assert no_caption().embeds.shape == (1, CAPTION_TOKENS, CAPTION_WIDTH)
    told = TextPairs(7, 10, captions=True)
    assert torch.equal(torch.as_tensor(told[3]["prompt_embeds"]), caption(told.line(3).glyphs))
    assert told.fingerprint != TextPairs(7, 10).fingerprint


def test_every_face_has_a_hash() -> None:
    assert set(font_hashes()) == set(FACES)
