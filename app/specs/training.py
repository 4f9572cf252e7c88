"""Training of the victim."""

from typing import Literal

from app.specs.base import Spec, field

RECIPE = "He et al. 2016, section 4.2, with a cosine schedule"


class Augmentation(Spec):
    """Random changes of the training images, drawn for every image in every epoch."""

    crop_padding: int | None = field(
        None,
        "Zero padding on each side before a random crop to the original size. Null: an eighth of the image's side.",
        unit="pixels",
        source=RECIPE,
        ge=0,
        le=64,
    )
    flip: bool | None = field(
        None,
        "Flip horizontally with probability 0.5. Null: only on CIFAR-10, since mirrored digits and traffic signs "
        "can change their class.",
        source=RECIPE,
    )
    cutout: int = field(
        0,
        "Side of a square at a random place that is set to zero. 0: no cutout.",
        unit="pixels",
        source="DeVries and Taylor 2017",
        ge=0,
        le=224,
    )


class TrainingSpec(Spec):
    """Optimizer, schedule and augmentation of the clean and undefended arms, and the defaults of defenses."""

    epochs: int = field(30, "Passes over the training set.", unit="epochs", ge=1, le=1000)
    batch_size: int = field(128, "Images per step.", unit="images", source=RECIPE, ge=2, le=65536)
    learning_rate: float = field(0.1, "Peak learning rate of SGD.", source=RECIPE, gt=0, le=10)
    momentum: float = field(0.9, "Nesterov momentum of SGD.", unit="fraction", source=RECIPE, ge=0, lt=1)
    weight_decay: float = field(5e-4, "L2 penalty.", source=RECIPE, ge=0, le=1)
    schedule: Literal["cosine", "constant", "one_cycle"] = field(
        "cosine",
        "Learning rate over the run. cosine: from the peak to zero. constant: the peak throughout. one_cycle: linearly "
        "up to the peak in the first fifth, then linearly down to zero.",
        source="Loshchilov and Hutter 2017; Smith 2018",
    )
    augmentation: Augmentation = field(Augmentation(), "Random changes of the training images.")
    precision: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Number format of the forward and backward pass. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    compile: bool = field(
        False,
        "Compile the network with torch.compile on a GPU, instead of replaying recorded CUDA graphs. Slower for "
        "ResNet-18 on an H200 (docs/results/gpu.md).",
    )
