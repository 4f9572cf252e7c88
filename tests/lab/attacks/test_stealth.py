"""Stealth measures against their definitions, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from worker.lab.stealth import measure_stealth, ssim


def flat(*levels: int, side: int = 16) -> torch.Tensor:
    return torch.stack([torch.full((1, side, side), level, dtype=torch.uint8) for level in levels])


def test_one_changed_pixel():
    clean = flat(100, side=10)
    changed = clean.clone()
    changed[0, 0, 4, 4] = 90
    values = measure_stealth(clean, changed)
    assert values["l_inf"] == 10
    assert values["l_2"] == 10
    assert values["changed_pixels"] == pytest.approx(0.01)
    assert values["psnr"] == pytest.approx(10 * math.log10(255**2 / (100 / 100)))
    assert 0.9 < values["ssim"] < 1


def test_ssim_of_flat_images_is_its_luminance_term():
    value = ssim(flat(100).float(), flat(150).float())
    c1 = (0.01 * 255) ** 2
    assert value.item() == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-4)


def test_ssim_is_the_mean_of_the_formula_around_every_pixel_of_the_reflected_image():
    generator = np.random.default_rng(0)
    x, y = generator.integers(256, size=(2, 12, 13)).astype(float)
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2

    def around(image):
        return np.lib.stride_tricks.sliding_window_view(np.pad(image, 5, mode="reflect"), (11, 11))

    def mean(windows):
        return (weight * windows).sum((2, 3), keepdims=True)

    a, b = around(x), around(y)
    assert a.shape[:2] == (12, 13)
    mx, my = mean(a), mean(b)
    vx, vy, cov = mean((a - mx) ** 2), mean((b - my) ** 2), mean((a - mx) * (b - my))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()
    images = (torch.from_numpy(image)[None, None] for image in (x, y))
    assert ssim(*images).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_sees_an_opaque_patch_in_a_corner():
    clean = torch.randint(
        60, 200, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    changed = clean.clone()
    changed[:, :, -3:, -3:] = 255
    value = measure_stealth(clean, changed)["ssim"]
    assert value is not None
    assert 0.9 < value < 0.99


def test_equal_images_have_no_psnr_and_full_similarity():
    values = measure_stealth(flat(3, 7, side=8), flat(3, 7, side=8))
    assert values == {"psnr": None, "ssim": pytest.approx(1), "l_inf": 0, "l_2": 0, "changed_pixels": 0}
    assert set(measure_stealth(flat(1)[:0], flat(1)[:0]).values()) == {None}


def test_a_color_pixel_counts_once_and_means_run_over_images():
    clean = torch.full((2, 3, 8, 8), 50, dtype=torch.uint8)
    changed = clean.clone()
    changed[1, :, 0, 0] = 54
    values = measure_stealth(clean, changed)
    assert values["changed_pixels"] == pytest.approx(1 / 64 / 2)
    assert values["l_inf"] == 2
    assert values["l_2"] == pytest.approx(math.sqrt(3 * 16) / 2)
