"""Tests of the lab draw no figures, which take more time than their training, unless their module is about them."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image


@pytest.fixture(scope="module", autouse=True)
def undrawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Store a PNG of one pixel for each figure. Figures are laid out all the same, so errors in that still show."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("figures") is None:
            patch.setattr(Figure, "savefig", save_one_pixel)
        yield


def save_one_pixel(figure: Figure, target: io.BytesIO, **_: Any) -> None:
    Image.new("L", (1, 1)).save(target, format="PNG")
