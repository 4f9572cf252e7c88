"""Datasets by name. This module knows names and subset sizes only; the images are on the workers."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec, field

UPLOAD_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""Pattern of the ids of uploads, which are also file names on the workers."""


class _Subset(Spec):
    """The fields of every dataset."""

    train_size: int | None = field(
        None,
        "Number of training images to use, drawn by the seed in proportion to the classes. Null: all.",
        unit="images",
        ge=20,
    )
    test_size: int | None = field(
        None,
        "Number of test images to use, drawn in proportion to the classes. Null: all.",
        unit="images",
        ge=20,
    )


class Digits(_Subset):
    """The digits of scikit-learn: 1,797 gray images, 8x8, 10 classes. Needs no download.

    There is no official split; a fixed fifth, balanced over classes, is the test set (1,437 / 360).
    """

    name: Literal["digits"] = "digits"


class Cifar10(_Subset):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 color images, 32x32, 10 classes."""

    name: Literal["cifar10"] = "cifar10"


class Gtsrb(_Subset):
    """GTSRB (Stallkamp et al., 2012): 39,209 + 12,630 traffic signs, resized to 32x32, 43 classes."""

    name: Literal["gtsrb"] = "gtsrb"


class Imported(_Subset):
    """A dataset imported with `bdlab data import`."""

    name: Literal["imported"] = "imported"
    key: str = field(
        ...,
        "The KEY of `bdlab data import FILE --name KEY`.",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
    )


class Uploaded(_Subset):
    """A dataset uploaded with `POST /v1/datasets`. Its status must be `ready`."""

    name: Literal["uploaded"] = "uploaded"
    dataset_id: str = field(..., "The id returned by `POST /v1/datasets`.", pattern=UPLOAD_ID)


DatasetSpec = Annotated[Digits | Cifar10 | Gtsrb | Imported | Uploaded, Field(discriminator="name")]
