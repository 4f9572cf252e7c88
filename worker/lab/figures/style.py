"""The style of all figures: colors that are safe for color blindness, text that fits, PNG output."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from PIL import Image

from app.specs.experiment import CLEAN, UNDEFENDED

rcParams["text.parse_math"] = False  # a dollar sign in a name does not begin a formula
DPI = 120
INK, MUTED, RULE = "#1A1A1A", "#595959", "#C8C8C8"
GOOD, BAD = (
    "#0072B2",
    "#D55E00",
)  # blue and vermillion of Okabe and Ito, distinct in all kinds of color blindness
_FIXED = {CLEAN: ("#000000", "s"), UNDEFENDED: (BAD, "X")}
_COLORS = (GOOD, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B2A86", "#8C510A", "#7F7F7F")
_MARKERS = "o^DvP*<>d"  # one more than colors, so that 72 defenses get different pairs


def arm_styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Color and marker of each arm: fixed for clean and undefended, by order for the defenses."""
    arms = list(arms)
    defenses = [arm for arm in arms if arm not in _FIXED]
    pairs = ((_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]) for i in range(len(defenses)))
    styles = _FIXED | dict(zip(defenses, pairs, strict=True))
    return {arm: styles[arm] for arm in arms}


def tint(degree: float) -> tuple[float, float, float]:
    """A cell's background: white at 0, blue towards 1 (good), orange towards -1 (bad), light enough for dark text."""
    weight = 0.5 * min(1.0, abs(degree))
    red, green, blue = ((1 - weight) + weight * part for part in to_rgb(GOOD if degree > 0 else BAD))
    return red, green, blue


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Width in pixels of one line of text of ``size`` points."""
    font = FontProperties(size=size, weight=weight)
    renderer = RendererAgg(1, 1, DPI)  # type: ignore[no-untyped-call]
    width, _, _ = renderer.get_text_width_height_descent(text, font, ismath=False)  # type: ignore[no-untyped-call]
    return float(width)


def line_height(size: float) -> float:
    """Pixels from one line of text to the next."""
    return size * DPI / 72 * 1.25


def fit_text(text: str, width: float, size: float, *, lines: int = 1, weight: str = "normal") -> str:
    """``text`` broken into at most ``lines`` lines of at most ``width`` pixels; the rest is replaced by an ellipsis.

    Lines break at spaces, else after one of ``_-./,``, else anywhere.
    """
    rest = " ".join(text.split())
    done: list[str] = []
    while rest and len(done) < lines:
        if text_width(rest, size, weight) <= width:
            done.append(rest)
            break
        last = len(done) == lines - 1
        end = _longest(rest, width, size, weight, "…" if last else "")
        if last:
            done.append(rest[:end].rstrip() + "…")
            break
        breaks = [i + 1 for i in range(end) if rest[i] in "_-./,"] + [
            i for i in range(1, end + 1) if rest[i] == " "
        ]
        cut = max(breaks, default=end)
        done.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return "\n".join(done)


def _longest(text: str, width: float, size: float, weight: str, tail: str) -> int:
    """How many characters of ``text``, followed by ``tail``, fit into ``width``; at least one."""
    low, high = 1, len(text) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle] + tail, size, weight) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def percent(fraction: float, digits: int = 1) -> str:
    """A fraction in [0, 1] in percent, without the sign: ``0.9731`` is ``97.3``."""
    return f"{100 * fraction:.{digits}f}"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that size in pixels, with its own Agg canvas."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_legend_above(axes: Axes, handles: Sequence[Artist], columns: int) -> None:
    """A legend without a frame just above the plot, from its left edge."""
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        fontsize=9,
        frameon=False,
        borderaxespad=0.3,
    )


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes in this style; the position is in pixels from the figure's top left corner."""
    wide, high = figure.get_size_inches() * DPI
    axes = figure.add_axes((left / wide, 1 - (top + height) / high, width / wide, height / high))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(labelsize=8.5, colors=MUTED, labelcolor=INK)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def render_png(figure: Figure, background: Image.Image | None = None) -> bytes:
    """The figure as PNG, drawn on ``background``, an image of its size, or on white.

    Equal figures give equal bytes, since no software version is written.
    """
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = Image.fromarray(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    picture = Image.new("RGB", drawn.size, "white") if background is None else background.copy()
    picture.paste(drawn, mask=drawn)
    out = io.BytesIO()
    picture.save(out, "PNG", dpi=(DPI, DPI))
    return out.getvalue()
