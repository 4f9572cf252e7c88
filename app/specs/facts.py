"""Facts about datasets that need no images: shape, classes, and images per class."""

from app.specs.base import Spec, field
from app.specs.dataset import DatasetSpec

TENSORS = ("x_train", "y_train", "x_test", "y_test")
"""The tensors of a dataset's file, in the order in which their bytes are hashed."""
GIVEN_TENSORS = (
    "is_poisoned", "is_cross", "clean_labels", "x_test_triggered", "y_test_triggered", "y_test_target",
)  # fmt: skip
"""What the file of a dataset that came poisoned may have besides, hashed after the others, each after its name:
which training images are poisoned and which are cross samples (bool), the labels before the attack, test images with
the trigger, their true labels, and the classes that the attacker aims at."""


class Shape(Spec):
    """The shape of images and the number of classes: what a network depends on."""

    channels: int = field(..., "Channels: 1 (gray) or 3 (RGB).", ge=1, le=3)
    height: int = field(..., "Image height.", unit="pixels", ge=1, le=1024)
    width: int = field(..., "Image width.", unit="pixels", ge=1, le=1024)
    classes: int = field(..., "Number of classes.", ge=2, le=10_000)

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}, {self.classes} classes"


class DatasetFacts(Spec):
    """Image shape, class names and class sizes of a dataset."""

    class_names: tuple[str, ...] = field(..., "Names of the classes, in label order.")
    channels: int = field(..., "Channels: 1 (gray) or 3 (RGB).", ge=1, le=3)
    height: int = field(..., "Image height.", unit="pixels", ge=1)
    width: int = field(..., "Image width.", unit="pixels", ge=1)
    train_counts: tuple[int, ...] = field(..., "Training images of each class.", unit="images")
    test_counts: tuple[int, ...] = field(..., "Test images of each class.", unit="images")
    poisoned: int | None = field(
        None,
        "Training images that are marked as poisoned, of the whole dataset. Null or absent: not known.",
        unit="images",
        ge=0,
        added_later=True,
    )
    triggered: int = field(
        0,
        "Test images with the attacker's trigger, which the dataset has beside the others. Absent: none.",
        unit="images",
        ge=0,
        added_later=True,
    )

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def train_size(self) -> int:
        return sum(self.train_counts)

    @property
    def test_size(self) -> int:
        return sum(self.test_counts)

    @property
    def shape(self) -> Shape:
        """The part that a network depends on. Not validated again: these are facts of an existing dataset."""
        return Shape.model_construct(
            channels=self.channels, height=self.height, width=self.width, classes=self.classes
        )

    def subset(self, spec: DatasetSpec) -> "DatasetFacts":
        """The facts of the subset given by ``spec.train_size`` and ``spec.test_size``."""
        counts = {}
        for part, size in (("train_counts", spec.train_size), ("test_counts", spec.test_size)):
            full = getattr(self, part)
            counts[part] = full if size is None or size >= sum(full) else allocate(full, size)
        return self.model_copy(update=counts)


def allocate(counts: tuple[int, ...], total: int) -> tuple[int, ...]:
    """Split ``total`` in proportion to ``counts`` by the largest remainder method; ties go to the lower class.

    Raises ValueError if ``total`` exceeds ``sum(counts)``.
    """
    whole = sum(counts)
    if total > whole:
        raise ValueError(f"cannot allocate {total} of {whole}")
    if total == 0:
        return (0,) * len(counts)
    shares = [count * total // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda c: (-(counts[c] * total % whole), c))
    for c in by_remainder[: total - sum(shares)]:
        shares[c] += 1
    return tuple(shares)


_DIGITS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
_DIGITS_TEST = allocate(_DIGITS, 360)
_GTSRB_TRAIN = (
    210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110, 1200, 210,
    360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210, 2070, 300, 360,
    240, 240,
)  # fmt: skip
_GTSRB_TEST = (
    60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390, 60, 90, 90, 120, 150,
    90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90,
)  # fmt: skip
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

BUILT_IN: dict[str, DatasetFacts] = {
    "digits": DatasetFacts(
        class_names=tuple("0123456789"),
        channels=1,
        height=8,
        width=8,
        train_counts=tuple(all_ - test for all_, test in zip(_DIGITS, _DIGITS_TEST, strict=True)),
        test_counts=_DIGITS_TEST,
    ),
    "cifar10": DatasetFacts(
        class_names=_CIFAR10_NAMES,
        channels=3,
        height=32,
        width=32,
        train_counts=(5000,) * 10,
        test_counts=(1000,) * 10,
    ),
    "gtsrb": DatasetFacts(
        class_names=tuple(f"sign {i}" for i in range(43)),
        channels=3,
        height=32,
        width=32,
        train_counts=_GTSRB_TRAIN,
        test_counts=_GTSRB_TEST,
    ),
}
"""Facts of the built-in datasets. Those of an imported dataset are in the header of its file."""

STANDARD_SHA256 = {
    "digits": "d32116362856e7544c0a6c7d5dc6be5d56085e14d7650ec970c9d433d8f940ca",
    "cifar10": "9048fcbac9c08a64d57a7c5a5a66750a974ad4eab380914df129f7e223d823df",
    "gtsrb": "46d065144cb1fcfe337e5fe06d25611638ce60546231d53ca9d66cd5699228df",
}
"""The content that the name of a built-in dataset stands for: images and labels in the official order. A file may hold
another one under that name, such as another order; its digest is then part of every key, see `app.specs.stages`."""
