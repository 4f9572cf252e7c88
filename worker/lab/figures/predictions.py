"""The predictions of every arm's model for the same triggered images."""

from worker.lab.figures.board import Array, Board, check_images, display_size
from worker.lab.figures.images import EDGE, GAP, MAX_IMAGES, MIN_WIDTH
from worker.lab.figures.style import MUTED, arm_styles, fit_text, line_height, text_width, tint

NAME_WIDTH = 230
_KINDS = {"correct": ("✓", tint(0.8)), "target": ("◎", tint(-1)), "other": ("✗", (0.9, 0.9, 0.9))}


def predictions(
    clean: Array, triggered: Array, true: list[str], answers: dict[str, list[str]], target: str
) -> bytes:
    """Test images (the first eight), clean and triggered, and each arm's predictions for the triggered ones.

    ``clean`` and ``triggered`` uint8 ``[N, C, H, W]``; ``true`` the true classes, ``answers`` each arm's predicted
    class names, ``target`` the target class. Color and symbol distinguish the true class, the target and others.
    Raises ValueError if the arrays are not images or the lengths differ.
    """
    check_images("clean", clean)
    check_images("triggered", triggered)
    lengths = {"triggered": len(triggered), "true": len(true)}
    lengths |= {f"answers[{arm!r}]": len(predicted) for arm, predicted in answers.items()}
    for name, length in lengths.items():
        if length != len(clean):
            raise ValueError(f"{name}: {length} is not allowed; one for each of {len(clean)} clean images")
    clean, triggered, true = clean[:MAX_IMAGES], triggered[:MAX_IMAGES], true[:MAX_IMAGES]

    wide, high = display_size(clean, 128)
    column = max(wide, 116) + GAP
    names = {arm: fit_text(arm, NAME_WIDTH, 9.5, lines=3, weight="bold") for arm in answers}
    lines = [line for name in names.values() for line in name.split("\n")]
    left = (
        EDGE
        + max([text_width("true class", 9.5), *(text_width(line, 9.5, "bold") + 20 for line in lines)])
        + 16
    )
    width = max(MIN_WIDTH, left + column * len(clean) - GAP + EDGE)
    title = fit_text(
        f"Predictions for triggered images; the target class is {target}",
        width - 2 * EDGE,
        12,
        lines=2,
        weight="bold",
    )
    above = [fit_text(name, column - 6, 9, lines=2) for name in true]
    texts = {
        arm: [
            fit_text(f"{_KINDS[_kind(answer, label, target)][0]} {answer}", column - 18, 9, lines=2)
            for answer, label in zip(predicted[:MAX_IMAGES], true, strict=True)
        ]
        for arm, predicted in answers.items()
    }
    heights = {
        arm: max(32.0, *(line_height(9) * (text.count("\n") + 1) + 12 for text in [names[arm], *texts[arm]]))
        for arm in answers
    }
    top = (
        28
        + line_height(12) * (title.count("\n") + 1)
        + line_height(9) * (max(n.count("\n") for n in above) + 1)
        + 6
    )
    cells = top + 2 * (high + GAP)
    board = Board(width, cells + sum(heights.values()) + 4 * len(heights) + 44)
    board.text(EDGE, 16, title, 12, across="left", down="top", weight="bold")
    board.text(left - 16, top - 8, "true class", 9.5, across="right", down="bottom", color=MUTED)
    for i, name in enumerate(above):
        board.text(left + i * column + (column - GAP) / 2, top - 8, name, 9, down="bottom")
    for r, (name, images) in enumerate({"clean": clean, "triggered": triggered}.items()):
        y = top + r * (high + GAP)
        board.text(left - 16, y + high / 2, name, 9.5, across="right", color=MUTED)
        for i, image in enumerate(images):
            board.image(left + i * column + (column - GAP - wide) / 2, y, wide, high, image)
    styles = arm_styles(answers)
    y = cells
    for arm, height in heights.items():
        board.box(EDGE, y + height / 2 - 6, 12, 12, styles[arm][0])
        board.text(EDGE + 20, y + height / 2, names[arm], 9.5, across="left", weight="bold")
        for i, text in enumerate(texts[arm]):
            x = left + i * column
            board.box(x, y, column - GAP, height, _KINDS[_kind(answers[arm][i], true[i], target)][1])
            board.text(x + (column - GAP) / 2, y + height / 2, text, 9)
        y += height + 4
    x = float(EDGE)
    for kind, legend in {
        "correct": "true class",
        "target": "target class",
        "other": "another class",
    }.items():
        symbol, color = _KINDS[kind]
        board.box(x, y + 8, 24, 24, color)
        board.text(x + 12, y + 20, symbol, 9)
        board.text(x + 32, y + 20, legend, 9, across="left", color=MUTED)
        x += 32 + text_width(legend, 9) + 28
    return board.png()


def _kind(answer: str, true: str, target: str) -> str:
    if answer == true:
        return "correct"
    return "target" if answer == target else "other"
