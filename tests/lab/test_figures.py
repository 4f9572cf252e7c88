"""Figures are valid, equal for equal input, not cut off, and show the data."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from worker.lab import figures
from worker.lab.figures.style import BAD, GOOD, arm_styles, fit_text, text_width, tint

pytestmark = pytest.mark.figures

LONG_ARM = "abl-authors-code-flooding-batch-mean-isolation-0.01-lr-0.0001-x"
LONG_CLASS = "great white shark, white shark, man-eater, man-eating shark"
EIGHT_ARMS = [
    "clean",
    "undefended",
    "abl",
    LONG_ARM,
    "fine_pruning",
    "neural-attention-distillation",
    "nad",
    "w" * 63,
]


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert "Software" not in image.info
        return np.asarray(image.convert("RGB"))


def count(picture: np.ndarray, color) -> int:
    """How many pixels have that color, up to a rounding difference of one level."""
    expected = np.round(np.array(to_rgb(color)) * 255)
    return int((np.abs(picture - expected).max(-1) <= 1).sum())


def digits(n: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Real digits, the same with a patch, and their class names."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  # takes seconds, in each process that collects this file

    data = load_digits()
    clean = (data.images[:n] * 15.9375).astype(np.uint8)[:, None]
    triggered = clean.copy()
    triggered[:, :, -3:, -3:] = 255 * (np.add.outer(range(3), range(3)) % 2 == 0)
    return clean, triggered, [str(label) for label in data.target[:n]]


def color_images(n: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, side, side), np.uint8)


def row(arm: str, n: int = 1, **means: float | None) -> dict:
    metrics = (
        "train_accuracy",
        "clean_accuracy",
        "attack_success_rate",
        "robust_accuracy",
        "clean_loss",
        "poisoned_loss",
    )
    values = {
        m: {"mean": v, "low": v - 0.01, "high": v + 0.01, "n": n}
        for m in metrics
        if (v := means.get(m)) is not None
    }
    return {"arm": arm} | dict.fromkeys(metrics) | values


def full_row(arm: str) -> dict:
    fractions = {
        "train_accuracy": 1.0,
        "clean_accuracy": 0.9,
        "attack_success_rate": 0.5,
        "robust_accuracy": 0.4,
    }
    return row(arm, 5, **fractions, clean_loss=0.3, poisoned_loss=123456.7)


def series(epochs: int, isolates: bool = False) -> dict:
    steps = list(range(1, epochs + 1))
    names = ["clean_accuracy", "attack_success_rate", "train_loss"]
    if isolates:
        names += ["isolation_precision", "isolation_recall", "isolation_auroc"]
    return {name: (steps, [1 - (0.5 + 0.05 * i) ** step for step in steps]) for i, name in enumerate(names)}


def isolation(n: int = 2000, rate: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses of which the poisoned are mostly the lowest, the truth, and the lowest twentieth."""
    rng = np.random.default_rng(0)
    is_poisoned = np.arange(n) < round(rate * n)
    losses = np.where(is_poisoned, rng.exponential(0.01, n), rng.normal(0.6, 0.15, n).clip(0.001)).astype(
        np.float32
    )
    isolated = np.zeros(n, bool)
    isolated[losses.argsort()[: n // 20]] = True
    return losses, is_poisoned, isolated


SWEEP = {
    "threshold": [0.0, 0.05, 0.1, 0.15],
    "pruned": [0.0, 3.0, 8.0, 9.0],
    "held_out_accuracy": [0.9, 0.9, 0.85, 0.5],
    "clean_accuracy": [0.9, 0.89, 0.84, 0.52],
    "attack_success_rate": [1.0, 0.6, 0.1, 0.0],
}
STAGES = [("isolation", 1), ("finetune", 3), ("a stage with a long name", 4), ("unlearning", 30)]


def plain_cases() -> dict[str, bytes]:
    """Each function on simple input."""
    clean, triggered, labels = digits(8)
    losses, is_poisoned, isolated = isolation()
    return {
        "table": figures.results_table([row("undefended", clean_accuracy=0.9, attack_success_rate=1.0)]),
        "samples": figures.samples(clean, triggered, labels, ["0"] * 8, "badnets on digits"),
        "poison": figures.samples(clean, triggered, labels, ["0"] * 8, "poison", "poisoned", "label given"),
        "curves": figures.curves({"undefended": series(5), "abl": series(40, True)}, {"abl": STAGES}),
        "losses": figures.loss_histogram(losses, is_poisoned, isolated, "abl: loss when isolation ends"),
        "ranking": figures.ranking(1 - losses, is_poisoned, 100),
        "predictions": figures.predictions(
            clean, triggered, labels, {"undefended": ["0"] * 8, "abl": labels}, "0"
        ),
        "inputs": figures.suspicion_histogram(losses, is_poisoned, 0.5, "strip_inputs: suspicion"),
        "sweep": figures.sweep(SWEEP, "anp"),
        "sheet": figures.dataset_sheet(digits(200)[0], digits(200)[2], "digits"),
    }


def hard_cases() -> dict[str, bytes]:
    """Each function on empty, minimal, or excessive input."""
    clean, triggered, _ = digits(1)
    wide, large = color_images(12, 32), color_images(2, 300)
    losses, is_poisoned, isolated = isolation()
    nothing = np.zeros_like(is_poisoned)
    eight = {arm: series(30, isolates=arm not in ("clean", "undefended")) for arm in EIGHT_ARMS}
    return {
        "table of nothing": figures.results_table([row("abl")]),
        "table of 8 arms, 5 seeds": figures.results_table([full_row(arm) for arm in EIGHT_ARMS]),
        "samples, one": figures.samples(clean, triggered, [LONG_CLASS], [LONG_CLASS], "x" * 300),
        "samples, 12 in color": figures.samples(
            wide, 255 - wide, [LONG_CLASS] * 12, ["$\\frac{"] * 12, "a $ and a $"
        ),
        "samples, large": figures.samples(large, large, ["a", "b"], ["b", "b"], "300 px"),
        "curves of 8 arms": figures.curves(eight, dict.fromkeys(EIGHT_ARMS, STAGES)),
        "curves, one epoch": figures.curves({"abl": {"clean_accuracy": ([1], [0.5])}}, {}),
        "curves of nothing": figures.curves({}, {}),
        "losses, no poison": figures.loss_histogram(losses, nothing, isolated, LONG_CLASS * 4),
        "losses, none isolated": figures.loss_histogram(losses, is_poisoned, nothing, "none isolated"),
        "losses, all zero": figures.loss_histogram(losses * 0, is_poisoned, isolated, "zero"),
        "losses, one": figures.loss_histogram(losses[:1], is_poisoned[:1], isolated[:1], "one"),
        "ranking, one": figures.ranking(np.ones(1), np.ones(1, bool), 1),
        "inputs, all clean and equal": figures.suspicion_histogram(losses * 0, nothing, 0.0, LONG_CLASS * 4),
        "predictions, one": figures.predictions(clean, triggered, ["0"], {"abl": ["0"]}, "7"),
        "predictions of 8 arms": figures.predictions(
            wide, wide, [LONG_CLASS] * 12, dict.fromkeys(EIGHT_ARMS, [LONG_CLASS] * 12), LONG_CLASS
        ),
        "sweep, one model of a long arm": figures.sweep({"t": [0.0], "clean_accuracy": [0.5]}, LONG_ARM * 3),
        "sheet, one": figures.dataset_sheet(clean, [LONG_CLASS], LONG_CLASS * 4),
        "sheet of 70 classes": figures.dataset_sheet(
            color_images(70, 8), [f"class {i}" for i in range(70)], "many"
        ),
    }


@pytest.fixture(scope="module")
def cases() -> dict[str, bytes]:
    return plain_cases() | hard_cases()


def test_sizes_are_sensible_and_nothing_is_cut(cases: dict[str, bytes]) -> None:
    for name, data in cases.items():
        picture = pixels(data)
        height, width, _ = picture.shape
        assert 600 <= width <= 1700, name
        assert 100 <= height <= 2400, name
        assert len(data) < 3_000_000, name
        for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]):
            assert (edge == 255).all(), f"{name}: something reaches the edge"
        assert (picture < 128).any(), f"{name}: empty"


def test_equal_bytes_in_a_new_process_that_never_imports_pyplot_or_torch(cases: dict[str, bytes]) -> None:
    code = (
        "import sys, hashlib; from tests.lab.test_figures import plain_cases\n"
        "for data in plain_cases().values(): print(hashlib.sha256(data).hexdigest())\n"
        "print([m for m in ('matplotlib.pyplot', 'torch') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    *digests, forbidden = done.stdout.split("\n")[:-1]
    assert digests == [hashlib.sha256(data).hexdigest() for data in list(cases.values())[: len(digests)]]
    assert len(digests) == 10
    assert forbidden == "[]"


def test_arms_keep_their_color() -> None:
    one, other = arm_styles(["clean", "undefended", "abl", "nad"]), arm_styles(["undefended", "abl", "nad"])
    assert {arm: one[arm] for arm in other} == other
    assert len(set(arm_styles(f"defense {i}" for i in range(32)).values())) == 32


@pytest.mark.parametrize("text", ["abl", LONG_ARM, LONG_CLASS, "w" * 200, "a\nb\tc", "", "$x$"])
@pytest.mark.parametrize("lines", [1, 2, 3])
def test_text_fits(text: str, lines: int) -> None:
    fitted = fit_text(text, 150, 9, lines=lines)
    parts = fitted.split("\n")
    assert len(parts) <= lines
    assert all(text_width(part, 9) <= 150 for part in parts)
    whole, kept = "".join(text.split()), "".join(fitted.split())
    assert kept == whole or (kept.endswith("…") and whole.startswith(kept[:-1]))


def test_table_tints_attack_success() -> None:
    def picture(rate: float) -> np.ndarray:
        return pixels(figures.results_table([row("abl", attack_success_rate=rate)]))

    assert count(picture(1.0), tint(-1)) > 1000
    assert count(picture(0.0), tint(1)) > 1000
    assert count(picture(0.5), tint(-1)) == count(picture(0.5), tint(1)) == 0


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 8), np.uint8)
    picture = pixels(figures.samples(image, image, ["a"], ["b"], "title"))
    expected = np.kron(image[0].transpose(1, 2, 0), np.ones((16, 16, 1), np.uint8))
    places = [
        (y, x)
        for y, x in zip(*np.nonzero((picture[:-127, :-127] == expected[0, 0]).all(-1)), strict=True)
        if (picture[y : y + 128, x : x + 128] == expected).all()
    ]
    assert len(places) == 2, "once clean, once triggered"


def test_residual_names_its_scale() -> None:
    from worker.lab.figures.images import residual  # noqa: PLC0415

    gray = np.full((1, 1, 4, 4), 100, np.uint8)
    shown, name = residual(gray, gray + np.uint8(30))
    assert (name, shown.max()) == ("difference ×4", 248)
    shown, name = residual(np.zeros_like(gray), np.full_like(gray, 255))
    assert (name, shown.max()) == ("difference ×½", 255)
    shown, name = residual(gray, gray)
    assert (name, shown.min(), shown.max()) == ("no difference", 128, 128)


def test_curves_leave_out_empty_panels_and_marks_of_single_stages() -> None:
    plain = figures.curves({"abl": series(5)}, {})
    assert figures.curves({"abl": series(5)}, {"abl": [("victim", 1)], "absent": STAGES}) == plain
    assert len(pixels(figures.curves({"abl": series(5, True)}, {}))) > len(pixels(plain))
    assert len(pixels(figures.curves({"abl": series(5)}, {"abl": STAGES}))) > len(pixels(plain))


def test_one_percent_of_poison_is_visible(cases: dict[str, bytes]) -> None:
    def bars(case: str, color: str) -> int:
        """Pixels of a bar's fill, below the legend."""
        return count(pixels(cases[case])[110:], [1 - 0.35 * (1 - part) for part in to_rgb(color)])

    assert bars("losses", BAD) > 1000
    assert bars("losses, no poison", BAD) == 0
    assert bars("losses, no poison", GOOD) > 10_000


def test_ranking_marks_the_cut() -> None:
    losses, is_poisoned, _ = isolation()

    def marked(cut: int) -> int:
        right = pixels(figures.ranking(1 - losses, is_poisoned, cut))[:, 600:]
        expected = np.round(np.array(to_rgb(BAD)) * 255)
        return int((np.abs(right - expected).max(-1) <= 40).sum(0).argmax())

    assert marked(10) < marked(100) < marked(1000)


def test_predictions_distinguish_true_target_and_other_classes() -> None:
    clean, triggered, _ = digits(1)

    def differs(answer: str) -> np.ndarray:
        return pixels(figures.predictions(clean, triggered, ["3"], {"abl": [answer]}, "0"))

    true, target, other = differs("3"), differs("0"), differs("8")
    assert count(true, tint(0.8)) > 2 * count(target, tint(0.8))
    assert count(target, tint(-1)) > 2 * count(other, tint(-1))


def test_sheet_sorts_numbers_as_numbers() -> None:
    images = color_images(12, 8)
    counted = pixels(figures.dataset_sheet(images, [f"sign {i}" for i in range(12)], "t"))
    padded = pixels(figures.dataset_sheet(images, [f"sign {i:02}" for i in range(12)], "t"))
    assert (counted[:, 100:] == padded[:, 100:]).all(), "the images right of the names come in the same order"


def test_bad_input_is_a_clear_error() -> None:
    clean, triggered, labels = digits(2)
    losses, is_poisoned, isolated = isolation()
    with pytest.raises(ValueError, match="rows: \\[\\] is not allowed"):
        figures.results_table([])
    with pytest.raises(ValueError, match=r"clean: float64 \[2, 1, 8, 8\] is not allowed"):
        figures.samples(clean / 255, triggered, labels, labels, "t")
    with pytest.raises(ValueError, match="triggered, labels, targets"):
        figures.samples(clean, triggered, labels[:1], labels, "t")
    with pytest.raises(ValueError, match=r"answers\['abl'\]: 1 is not allowed; one for each of 2"):
        figures.predictions(clean, triggered, labels, {"abl": ["0"]}, "0")
    with pytest.raises(ValueError, match="labels: 1 names is not allowed"):
        figures.dataset_sheet(clean, labels[:1], "t")
    with pytest.raises(ValueError, match="2000 values, 1 not finite"):
        figures.loss_histogram(np.append(losses[1:], np.nan), is_poisoned, isolated, "t")
    with pytest.raises(ValueError, match="all the same"):
        figures.loss_histogram(losses[1:], is_poisoned, isolated, "t")
    with pytest.raises(ValueError, match="not finite"):
        figures.suspicion_histogram(losses, is_poisoned, float("nan"), "t")
    with pytest.raises(ValueError, match="isolated_count: 0 is not allowed; 1 to 2000"):
        figures.ranking(losses, is_poisoned, 0)
    with pytest.raises(ValueError, match="is_poisoned: 0 of 2000"):
        figures.ranking(losses, np.zeros_like(is_poisoned), 5)
