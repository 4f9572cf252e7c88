"""A canvas with pixel coordinates, for tables and grids of images, whose edges must be exact."""

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from worker.lab.figures.style import DPI, INK, RULE, line_height, new_figure, render_png

Array = NDArray[Any]
LARGEST = 224  # pixels of the longer side of an image on a board


def display_size(images: Array, limit: int) -> tuple[int, int]:
    """Width and height in pixels at which images ``[N, C, H, W]`` are shown.

    Small images are enlarged by the largest integer factor that stays within ``limit``, so that all pixels are squares
    of the same size; images above `LARGEST` are reduced to it.
    """
    height, width = images.shape[2:]
    longer = max(height, width)
    factor = max(1, limit // longer) if longer <= LARGEST else LARGEST / longer
    return max(1, round(width * factor)), max(1, round(height * factor))


def check_images(name: str, images: Array) -> None:
    """Raises ValueError unless ``images`` is uint8 ``[N, 1 or 3, H, W]`` with at least one image."""
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name}: {images.dtype} {list(images.shape)} is not allowed; uint8 [N, 1 or 3, H, W], N >= 1"
        )


class Board:
    """A white figure; positions are in pixels from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        # Integers, so that the edges of images do not fall between two pixels.
        width, height = round(width), round(height)
        self._figure = new_figure(width, height)
        self._figure.patch.set_visible(False)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._axes.set_axis_off()
        self._background = Image.new("RGB", (width, height), "white")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 9,
        *,
        across: str = "center",
        down: str = "center",
        color: str = INK,
        weight: str = "normal",
    ) -> None:
        """Text of ``size`` points, anchored at ``(x, y)``.

        Lines are placed by their baseline, so that neighboring texts align whether or not they have descenders.
        """
        lines = text.split("\n")
        em, step = size * DPI / 72, line_height(size)
        first = {
            "top": 0.8 * em,
            "center": 0.36 * em - (len(lines) - 1) / 2 * step,
            "bottom": -0.2 * em - (len(lines) - 1) * step,
        }
        for i, line in enumerate(lines):
            self._axes.text(
                x,
                y + first[down] + i * step,
                line,
                ha=across,
                va="baseline",
                color=color,
                fontsize=size,
                fontweight=weight,
            )

    def box(self, x: float, y: float, width: float, height: float, color: Any) -> None:
        """A filled rectangle."""
        self._axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="none"))

    def rule(self, x: float, y: float, width: float, color: str = RULE, thick: float = 1) -> None:
        """A horizontal line."""
        self._axes.plot([x, x + width], [y, y], color=color, linewidth=thick)

    def image(self, x: float, y: float, width: int, height: int, image: Array) -> None:
        """One uint8 image ``[1 or 3, H, W]``: enlarged without smoothing, reduced with antialiasing."""
        x, y = round(x), round(y)
        colors = np.repeat(image, 3 // image.shape[0], axis=0).transpose(1, 2, 0)
        resampling = Image.Resampling.NEAREST if width >= image.shape[2] else Image.Resampling.LANCZOS
        resized = Image.fromarray(np.ascontiguousarray(colors)).resize((width, height), resampling)
        # All images are pasted on one background: as matplotlib images they would take half of a figure's time.
        self._background.paste(RULE, (x - 1, y - 1, x + width + 1, y + height + 1))
        self._background.paste(resized, (x, y))

    def png(self) -> bytes:
        """The board as PNG."""
        return render_png(self._figure, self._background)
