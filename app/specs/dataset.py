"""Data sets by name. Pixels live with the workers; this module only knows names and sizes."""

from typing import Annotated, Literal

from pydantic import Field

from app.specs.base import Spec, field

UPLOAD_ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""Ids of uploads, which are also names of files on the workers."""


class _Subset(Spec):
    """Fields that every data set shares."""

    train_size: int | None = field(
        None,
        "Use only this many training images, drawn from the seed with class proportions kept. Null: all.",
        unit="images",
        ge=20,
    )
    test_size: int | None = field(
        None,
        "Use only this many test images, drawn with class proportions kept. Null: all.",
        unit="images",
        ge=20,
    )


class Digits(_Subset):
    """1,797 handwritten digits, 8x8, gray, 10 classes; ships with scikit-learn, needs no download.

    There is no official split: a fixed, class-balanced fifth is the test set (1,437 / 360).
    """

    name: Literal["digits"] = "digits"


class Cifar10(_Subset):
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 color images, 32x32, 10 classes."""

    name: Literal["cifar10"] = "cifar10"


class Gtsrb(_Subset):
    """GTSRB (Stallkamp et al., 2012): 39,209 + 12,630 traffic signs, resized to 32x32, 43 classes."""

    name: Literal["gtsrb"] = "gtsrb"


class Imported(_Subset):
    """A data set that `bdlab data import` wrote, by the key it was given."""

    name: Literal["imported"] = "imported"
    key: str = field(
        ...,
        "The key given to `bdlab data import FILE --name KEY`.",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
    )


class Uploaded(_Subset):
    """A data set that was sent to `POST /v1/datasets`, once its check has found it ready."""

    name: Literal["uploaded"] = "uploaded"
    dataset_id: str = field(..., "The id that `POST /v1/datasets` gave.", pattern=UPLOAD_ID)


DatasetSpec = Annotated[Digits | Cifar10 | Gtsrb | Imported | Uploaded, Field(discriminator="name")]
