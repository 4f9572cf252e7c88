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


class Cifar100(_Subset):
    """CIFAR-100 (Krizhevsky, 2009): 50,000 + 10,000 color images, 32x32, 100 classes."""

    name: Literal["cifar100"] = "cifar100"


class Svhn(_Subset):
    """SVHN (Netzer et al., 2011): 73,257 + 26,032 house numbers in color, 32x32, 10 classes."""

    name: Literal["svhn"] = "svhn"


class Mnist(_Subset):
    """MNIST (LeCun et al., 1998): 60,000 + 10,000 gray digits, 28x28, 10 classes."""

    name: Literal["mnist"] = "mnist"


class FashionMnist(_Subset):
    """Fashion-MNIST (Xiao et al., 2017): 60,000 + 10,000 gray images of clothes, 28x28, 10 classes."""

    name: Literal["fashion_mnist"] = "fashion_mnist"


class Stl10(_Subset):
    """STL-10 (Coates et al., 2011): 5,000 + 8,000 labeled color images, 96x96, 10 classes."""

    name: Literal["stl10"] = "stl10"


class Imagenette(_Subset):
    """Imagenette (Howard, 2019): 9,469 + 3,925 photos of ImageNet, resized to 64x64, 10 classes.

    Its validation images are the test set. For another size: `bdlab data import` with `--size`.
    """

    name: Literal["imagenette"] = "imagenette"


class TinyImagenet(_Subset):
    """Tiny ImageNet (Le and Yang, 2015): 100,000 + 10,000 photos, 64x64, 200 classes.

    Its validation images are the test set: those named test have no public labels.
    """

    name: Literal["tiny_imagenet"] = "tiny_imagenet"


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


DatasetSpec = Annotated[
    Digits
    | Cifar10
    | Cifar100
    | Gtsrb
    | Svhn
    | Mnist
    | FashionMnist
    | Stl10
    | Imagenette
    | TinyImagenet
    | Imported
    | Uploaded,
    Field(discriminator="name"),
]
FETCHED = (
    "cifar10", "cifar100", "gtsrb", "svhn", "mnist", "fashion_mnist", "stl10", "imagenette", "tiny_imagenet",
)  # fmt: skip
"""Names of the datasets that `bdlab data fetch` downloads, one file each."""
MIRRORED = ("cifar10", "cifar100", "fashion_mnist", "stl10", "imagenette", "tiny_imagenet")
"""Those whose classes do not change when an image is mirrored, as digits and traffic signs do."""
ENCODINGS = (
    "the name of a text encoding that Python has, such as gbk, big5, shift_jis, euc_kr, cp1251 or cp1252"
)


def is_text_encoding(name: str) -> bool:
    """Whether Python has a text encoding of that name; zips without UTF-8 have names of files in one."""
    try:
        return bool(b"a".decode(name))
    except (LookupError, UnicodeError, ValueError):
        return False
