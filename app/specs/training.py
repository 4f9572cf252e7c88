"""How a victim is trained."""

from typing import Literal

from app.specs.base import Spec, field

RECIPE = "He et al. 2016, section 4.2, with a cosine schedule"


class Augmentation(Spec):
    """Random changes of each training image, drawn anew for every image and epoch."""

    crop_padding: int | None = field(
        None,
        "Pad by this much (zeros), then crop back at a random place. Null: an eighth of the image's side.",
        unit="pixels",
        source=RECIPE,
        ge=0,
        le=64,
    )
    flip: bool | None = field(
        None,
        "Mirror left-right with probability one half. Null: only where the classes allow it "
        "(CIFAR-10 yes; digits, GTSRB and imported sets no).",
        source=RECIPE,
    )
    cutout: int = field(
        0,
        "Side of one square hole filled with zeros at a random place; 0 is none.",
        unit="pixels",
        source="DeVries and Taylor 2017",
        ge=0,
        le=224,
    )


class TrainingSpec(Spec):
    """Optimizer, schedule and augmentation of the clean and undefended arms, and a defense's default."""

    epochs: int = field(30, "Passes over the training set.", unit="epochs", ge=1, le=1000)
    batch_size: int = field(128, "Images a step.", unit="images", source=RECIPE, ge=2, le=65536)
    learning_rate: float = field(0.1, "Peak learning rate of SGD.", source=RECIPE, gt=0, le=10)
    momentum: float = field(0.9, "Nesterov momentum of SGD.", unit="fraction", source=RECIPE, ge=0, lt=1)
    weight_decay: float = field(5e-4, "L2 penalty.", source=RECIPE, ge=0, le=1)
    schedule: Literal["cosine", "constant", "one_cycle"] = field(
        "cosine",
        "Learning rate over the run: from the peak to zero along a cosine, constant, "
        "or up for the first fifth and then down to zero, linearly.",
        source="Loshchilov and Hutter 2017; Smith 2018",
    )
    augmentation: Augmentation = field(Augmentation(), "Random changes of each training image.")
    precision: Literal["auto", "float32", "bfloat16"] = field(
        "auto", "Arithmetic of the forward and backward pass. auto: bfloat16 on a GPU, float32 on a CPU."
    )
    compile: bool = field(
        False,
        "Compile the network with torch.compile, instead of replaying recorded CUDA graphs as a GPU otherwise does. "
        "Slower for ResNet-18 on an H200 (docs/results/gpu.md).",
    )
