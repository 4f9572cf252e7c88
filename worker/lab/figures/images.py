"""Figures of images: the effect of a trigger, and samples of a dataset."""

import re
from fractions import Fraction

import numpy as np

from worker.lab.figures.board import Array, Board, check_images, display_size
from worker.lab.figures.style import MUTED, fit_text, line_height, text_width

MAX_IMAGES = 8
MAX_CLASSES = 64
PER_CLASS = 10
EDGE, GAP = 24, 12
MIN_WIDTH = 680
_SCALES = [Fraction(1, 2), *map(Fraction, (1, 2, 4, 8, 16, 32, 64))]


def residual(clean: Array, triggered: Array) -> tuple[Array, str]:
    """The difference as uint8 images around mid-gray, amplified as far as it fits, and a label with the factor."""
    difference = triggered.astype(np.int16) - clean
    largest = int(np.abs(difference).max())
    if largest == 0:
        return np.full_like(clean, 128), "no difference"
    scale = max((s for s in _SCALES if s * largest <= 127), default=_SCALES[0])
    amplified = np.clip(128 + difference * float(scale), 0, 255).round().astype(np.uint8)
    return amplified, f"difference ×{'½' if scale < 1 else scale}"


def samples(
    clean: Array,
    triggered: Array,
    labels: list[str],
    targets: list[str],
    title: str,
    changed: str = "triggered",
    target_name: str = "target",
) -> bytes:
    """The effect of a trigger: rows clean, triggered and difference, one column per image (the first eight).

    ``clean`` and ``triggered`` are uint8 ``[N, C, H, W]``; ``labels`` are the true classes, ``targets`` those that the
    attack aims at; ``changed`` and ``target_name`` are the titles of the second row and of the targets.
    Raises ValueError if the arrays are not images or the lengths differ.
    """
    check_images("clean", clean)
    check_images("triggered", triggered)
    if triggered.shape != clean.shape or not len(labels) == len(targets) == len(clean):
        raise ValueError(
            f"triggered, labels, targets: {list(triggered.shape)}, {len(labels)}, {len(targets)} is not allowed; "
            f"as many as the {len(clean)} clean images {list(clean.shape)}"
        )
    clean, triggered = clean[:MAX_IMAGES], triggered[:MAX_IMAGES]
    difference, scale = residual(clean, triggered)
    rows = {"clean": clean, changed: triggered, scale: difference}

    wide, high = display_size(clean, 128)
    column = max(wide, 104) + GAP
    left = EDGE + max(text_width(name, 9.5) for name in [*rows, "true class", target_name]) + 16
    width = max(MIN_WIDTH, left + column * len(clean) - GAP + EDGE)
    title = fit_text(title, width - 2 * EDGE, 12, lines=2, weight="bold")
    above = [fit_text(label, column - 6, 9, lines=2) for label in labels[:MAX_IMAGES]]
    below = [fit_text(target, column - 6, 9, lines=2) for target in targets[:MAX_IMAGES]]
    title_height = 26 + line_height(12) * (title.count("\n") + 1)
    above_height = line_height(9) * (max(name.count("\n") for name in above) + 1) + 8
    below_height = line_height(9) * (max(name.count("\n") for name in below) + 1) + 8
    top = title_height + above_height
    bottom = top + len(rows) * (high + GAP) - GAP
    board = Board(width, bottom + below_height + 16)
    board.text(EDGE, 16, title, 12, across="left", down="top", weight="bold")
    board.text(left - 16, top - 8, "true class", 9.5, across="right", down="bottom", color=MUTED)
    board.text(left - 16, bottom + 8, target_name, 9.5, across="right", down="top", color=MUTED)
    for i in range(len(clean)):
        center = left + i * column + (column - GAP) / 2
        board.text(center, top - 8, above[i], 9, down="bottom")
        board.text(center, bottom + 8, below[i], 9, down="top")
    for r, (name, images) in enumerate(rows.items()):
        y = top + r * (high + GAP)
        board.text(left - 16, y + high / 2, name, 9.5, across="right", color=MUTED)
        for i, image in enumerate(images):
            board.image(left + i * column + (column - GAP - wide) / 2, y, wide, high, image)
    return board.png()


def dataset_sheet(images: Array, labels: list[str], title: str) -> bytes:
    """Samples of a dataset: one row per class, its first ten images.

    ``images`` uint8 ``[N, C, H, W]``, ``labels`` the class name of each. Classes are sorted by name, with numbers in
    natural order; of more than 64 classes the rest is left out, with a note.
    Raises ValueError if ``images`` are not images or the lengths differ.
    """
    check_images("images", images)
    if len(labels) != len(images):
        raise ValueError(f"labels: {len(labels)} names is not allowed; one for each of {len(images)} images")
    classes = sorted(dict.fromkeys(labels), key=_natural)
    shown = classes[:MAX_CLASSES]
    blocks = 1 if len(shown) <= 16 else 2
    per_block = -(-len(shown) // blocks)
    wide, high = display_size(images, 64)
    names = {name: fit_text(name, 150, 9, lines=2) for name in shown}
    name_width = max(text_width(line, 9) for name in names.values() for line in name.split("\n")) + 12
    columns = min(PER_CLASS, max(labels.count(name) for name in shown))
    block = name_width + columns * (wide + 4) + 28
    height = max(high + 4, line_height(9) * (max(name.count("\n") for name in names.values()) + 1) + 4)
    width = max(MIN_WIDTH, 2 * EDGE + blocks * block - 28)
    title = fit_text(title, width - 2 * EDGE, 12, lines=2, weight="bold")
    top = 24 + line_height(12) * (title.count("\n") + 1)
    left_out = len(classes) - len(shown)
    board = Board(width, top + per_block * height + 16 + (line_height(9) if left_out else 0))
    board.text(EDGE, 16, title, 12, across="left", down="top", weight="bold")
    of_class: dict[str, list[int]] = {name: [] for name in classes}
    for i, label in enumerate(labels):
        of_class[label].append(i)
    for r, name in enumerate(shown):
        left, y = EDGE + r // per_block * block, top + r % per_block * height
        board.text(left + name_width - 10, y + high / 2, names[name], 9, across="right")
        for c, i in enumerate(of_class[name][:PER_CLASS]):
            board.image(left + name_width + c * (wide + 4), y, wide, high, images[i])
    if left_out:
        note = f"{left_out} more of {len(classes)} classes not shown"
        board.text(EDGE, top + per_block * height + 4, note, 9, across="left", down="top", color=MUTED)
    return board.png()


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key of the natural order: ``sign 9`` before ``sign 10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
