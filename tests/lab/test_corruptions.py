"""Corruptions of images, against the libraries that bethgelab/imagecorruptions uses, and against values by hand."""

import io
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from app.specs.defenses.input_detection import Corruption
from worker.lab.corruptions import CORRUPTIONS, SEVERITIES, blur, clamp, corrupt, fold, mirror, smear, zoom
from worker.lab.jpeg import compress_as_jpeg

CPU = torch.device("cpu")


def pictures(channels: int = 3, height: int = 32, width: int = 40, count: int = 2) -> Tensor:
    """Smooth pictures, uint8 ``[N, C, H, W]``."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 5, generator=generator)
    return (255 * zoom_to(coarse, height, width)).to(torch.uint8)


def zoom_to(x: Tensor, height: int, width: int) -> Tensor:
    return torch.nn.functional.interpolate(x, (height, width), mode="bilinear", align_corners=True)


def test_every_corruption_of_the_spec_is_there() -> None:
    assert tuple(CORRUPTIONS) == get_args(Corruption)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_and_depends_on_the_image_alone(name: str) -> None:
    images = pictures()
    distances = []
    for severity in (1, SEVERITIES):
        corrupted = corrupt(images, name, severity, 0)
        assert (corrupted.dtype, corrupted.shape) == (torch.uint8, images.shape)
        assert torch.equal(corrupt(images.flip(0), name, severity, 0).flip(0), corrupted)
        distances.append((corrupted.int() - images.int()).abs().double().mean().item())
    assert 0.3 < distances[0] < distances[1]
    small = pictures(channels=1, height=8, width=8)
    assert corrupt(small, name, 3, 0).shape == small.shape


@pytest.mark.parametrize(
    "name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"]
)
def test_a_uniform_image_stays_what_moves_or_averages_pixels(name: str) -> None:
    uniform = torch.full((1, 3, 48, 48), 100, dtype=torch.uint8)
    assert (corrupt(uniform, name, 3, 0).int() - 100).abs().max() <= 1


def test_pixels_by_hand() -> None:
    image = torch.tensor([[100, 200], [100, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    # The mean is 100; the distance from it is multiplied by 0.4.
    assert corrupt(image, "contrast", 1, 0).flatten().tolist() == pytest.approx([100, 140, 100, 60], abs=1)
    assert corrupt(image, "brightness", 3, 0).flatten().tolist() == pytest.approx([176, 255, 176, 76], abs=1)
    color = torch.tensor([200, 100, 0], dtype=torch.uint8).view(
        1, 3, 1, 1
    )  # the value is 200: raised to 225.5
    assert corrupt(color, "brightness", 1, 0).flatten().tolist() == pytest.approx([225, 112, 0], abs=1)


def test_shot_noise_has_the_mean_and_variance_of_photons() -> None:
    gray = torch.full((1, 1, 96, 96), 102, dtype=torch.uint8)  # 0.4, of 25 photons: 10 with variance 10
    counts = corrupt(gray, "shot_noise", 2, 0).double() / 255 * 25
    assert counts.mean().item() == pytest.approx(10, abs=0.2)
    assert counts.var().item() == pytest.approx(10, rel=0.1)
    assert corrupt(gray * 0, "shot_noise", 2, 0).max() == 0


def test_impulses_are_white_or_black_and_as_many_as_the_severity_says() -> None:
    gray = torch.full((1, 1, 128, 128), 100, dtype=torch.uint8)
    noisy = corrupt(gray, "impulse_noise", 5, 0)
    assert set(noisy.unique().tolist()) == {0, 100, 255}
    assert (noisy != 100).double().mean().item() == pytest.approx(0.27, abs=0.02)
    assert (noisy == 255).double().mean().item() == pytest.approx(0.135, abs=0.02)


def test_continued_edges() -> None:
    assert mirror(3, 4, CPU).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    assert fold(2, 3, CPU).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert clamp(2, 2, CPU).tolist() == [0, 0, 0, 1, 1, 1]


def test_blur_and_zoom_are_scipy_s() -> None:
    x = pictures().double().div(255).float()
    ours = blur(x, (1.5, 1.5), (6, 6), clamp)[0, 0].numpy()
    assert (
        np.abs(ours - ndimage.gaussian_filter(x[0, 0].numpy(), 1.5, mode="nearest", truncate=4)).max() < 1e-5
    )
    middle = x[0, 0, 3:29, 4:36].numpy()  # of 32 and 40, divided by 1.25 and rounded up: 26 and 32
    assert np.abs(zoom(x, 1.25)[0, 0].numpy() - ndimage.zoom(middle, 1.25, order=1)).max() < 1e-4


def test_a_smear_is_half_a_gaussian_along_its_line() -> None:
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    smeared = smear(point, 2, 1.0, 0.0)[0, 0]
    weights = np.exp(-(np.arange(5) ** 2) / 2)
    assert smeared[4].tolist() == pytest.approx([*(weights / weights.sum())[::-1], 0, 0, 0, 0], abs=1e-6)
    assert smeared.sum().item() == pytest.approx(1, abs=1e-6)


def test_pixelate_and_jpeg_are_pillow_s() -> None:
    images = pictures(width=32)  # so that no pixel is halfway between two, where rounding decides
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    expected = picture.resize((12, 12), Image.Resampling.BOX)
    expected = expected.resize((32, 32), Image.Resampling.NEAREST)
    ours = corrupt(images, "pixelate", 3, 0)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - np.asarray(expected)).max() <= 2
    for quality in (25, 7):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            picture.convert(mode).save(file, "JPEG", quality=quality)
            decoded = np.atleast_3d(np.asarray(Image.open(file))).astype(int)
            pixels = torch.from_numpy(np.atleast_3d(np.asarray(picture.convert(mode)))).permute(2, 0, 1)[None]
            ours = 255 * compress_as_jpeg(pixels.float() / 255, quality)[0].permute(1, 2, 0).numpy()
            lost = np.abs(decoded - pixels[0].permute(1, 2, 0).numpy().astype(int)).mean()
            assert np.abs(ours - decoded).mean() < 0.5 * lost, (quality, mode)
