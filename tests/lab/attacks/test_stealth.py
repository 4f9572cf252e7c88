"""Stealth measures against their definitions, and against scikit-image's SSIM worked out by hand."""

import math

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


def test_ssim_on_an_image_of_one_window_is_the_formula():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(256, (1, 1, 11, 11), generator=generator).double() for _ in range(2))
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    weight = line[:, None] * line[None, :]
    weight /= weight.sum()

    def mean(values):
        return (weight * values[0, 0]).sum()

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean((x - mx) ** 2), mean((y - my) ** 2), mean((x - mx) * (y - my))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(x, y).item() == pytest.approx(expected.item(), rel=1e-6)


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
