"""Figures of an attack: named rows of images, one column per image or setting."""

from worker.lab.figures.board import Array, Board, check_images, display_size
from worker.lab.figures.images import EDGE, GAP, MAX_IMAGES, MIN_WIDTH
from worker.lab.figures.style import fit_text, line_height, text_width


def image_rows(rows: list[tuple[str, Array]], above: list[str] | None, title: str) -> bytes:
    """Named rows of images, uint8 ``[N, C, H, W]`` each; at most the first eight of each row.

    ``above`` are the column names. Raises ValueError if a row has no images.
    """
    for name, images in rows:
        check_images(name, images)
    columns = min(MAX_IMAGES, max(len(images) for _, images in rows))
    wide, high = display_size(rows[0][1], 128)
    column = max(wide, 104) + GAP
    left = EDGE + max(text_width(name, 9.5) for name, _ in rows) + 16
    width = max(MIN_WIDTH, left + column * columns - GAP + EDGE)
    title = fit_text(title, width - 2 * EDGE, 12, lines=2, weight="bold")
    heads = [fit_text(text, column - 6, 9) for text in above or []]
    top = 26 + line_height(12) * (title.count("\n") + 1) + (line_height(9) + 8 if heads else 0)
    board = Board(width, top + len(rows) * (high + GAP) + 12)
    board.text(EDGE, 16, title, 12, across="left", down="top", weight="bold")
    for i, head in enumerate(heads[:columns]):
        board.text(left + i * column + (column - GAP) / 2, top - 8, head, 9, down="bottom")
    for r, (name, images) in enumerate(rows):
        y = top + r * (high + GAP)
        board.text(left - 16, y + high / 2, name, 9.5, across="right")
        for i, image in enumerate(images[:columns]):
            board.image(left + i * column + (column - GAP - wide) / 2, y, wide, high, image)
    return board.png()
