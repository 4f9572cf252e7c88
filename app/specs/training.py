"""Training of the victim."""

from typing import Any, Literal

from pydantic import model_validator

from app.specs.base import Spec, field

OWN = "chosen here"
RECIPE = "He et al. 2016, section 4.2, with a cosine schedule"
SAHA_CODE = "github.com/UMBCvision/Hidden-Trigger-Backdoor-Attacks, finetune_and_test.py and cfg"
Schedule = Literal["cosine", "constant", "one_cycle"]
Precision = Literal["float32", "bfloat16"]


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
        "Flip horizontally with probability 0.5. Null: only on CIFAR-10, CIFAR-100, Fashion-MNIST, STL-10, Imagenette "
        "and Tiny ImageNet, since mirrored digits and traffic signs can change their class.",
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


class FineTuning(Spec):
    """How a victim is trained that starts from the attacker's surrogate, with SGD. Batch size, momentum and precision
    are those of ``training``."""

    trained_layers: Literal["head", "all"] = field(
        "head",
        "head: the last layer alone; every other tensor, including the statistics of batch normalization, stays as it "
        "is in the surrogate. all: the whole network.",
        source="Saha et al. 2020 (the last layer); Shafahi et al. 2018, sections 3 (the last layer) and 4 (all)",
    )
    new_head: bool = field(
        True,
        "Replace the surrogate's last layer by a new one with random weights, as for a new task. False: continue from "
        "its weights.",
        source=SAHA_CODE,
    )
    augment: bool = field(
        False,
        "Apply training.augmentation. The sources train on images as they are, whose features the attacker knows.",
        source=SAHA_CODE,
    )
    epochs: int = field(10, "Passes over the training set.", unit="epochs", source=SAHA_CODE, ge=1, le=1000)
    learning_rate: float = field(
        0.01,
        "Peak learning rate of SGD. Saha et al. use 0.001.",
        source="chosen here: features of small networks are smaller",
        gt=0,
        le=10,
    )
    weight_decay: float = field(0.0, "L2 penalty.", source=SAHA_CODE, ge=0, le=1)
    schedule: Schedule = field(
        "constant",
        "Learning rate over the run, as in training.schedule.",
        source=SAHA_CODE + " (constant for the first 10 epochs)",
    )


class TrainingSpec(Spec):
    """Optimizer, schedule and augmentation of the clean and undefended arms, and the defaults of defenses."""

    start: Literal["scratch", "surrogate"] = field(
        "scratch",
        "What the clean and undefended arms start from. scratch: random weights, trained by the fields below. "
        "surrogate: the surrogate that the attacker trained on the clean set, fine-tuned by fine_tuning; the threat "
        "model of hidden_trigger and poison_frogs, in which the victim uses public features. The fields below then "
        "train the surrogate. Training defenses always train from scratch by the fields below.",
        source="Saha et al. 2020; Shafahi et al. 2018",
        added_later=True,
    )
    fine_tuning: FineTuning | None = field(
        None,
        "Fine-tuning of the surrogate; only with start surrogate, which has the defaults if this is omitted.",
        source=OWN,
        added_later=True,
    )

    epochs: int = field(30, "Passes over the training set.", unit="epochs", source=OWN, ge=1, le=1000)
    batch_size: int = field(128, "Images per step.", unit="images", source=RECIPE, ge=2, le=65536)
    learning_rate: float = field(0.1, "Peak learning rate of SGD.", source=RECIPE, gt=0, le=10)
    momentum: float = field(0.9, "Nesterov momentum of SGD.", unit="fraction", source=RECIPE, ge=0, lt=1)
    weight_decay: float = field(5e-4, "L2 penalty.", source=RECIPE, ge=0, le=1)
    schedule: Schedule = field(
        "cosine",
        "Learning rate over the run. cosine: from the peak to zero. constant: the peak throughout. one_cycle: "
        "linearly up to the peak in the first fifth, then linearly down to zero.",
        source="Loshchilov and Hutter 2017; Smith 2018",
    )
    augmentation: Augmentation = field(
        Augmentation(), "Random changes of the training images.", source=RECIPE
    )
    precision: Literal["auto", Precision] = field(
        "auto",
        "Number format of the forward and backward pass. auto: bfloat16 on a GPU, and on a processor that has its "
        "arithmetic (AVX512_BF16 or AMX) for images of 16 px and more; else float32. Machines of different kinds agree "
        "on numbers only in float32.",
        source=OWN,
    )
    compile: bool = field(
        False,
        "Compile the network with torch.compile on a GPU, instead of replaying recorded CUDA graphs. Slower for "
        "ResNet-18 on an H200 (docs/results/gpu.md).",
        source=OWN,
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_fine_tuning(cls, fields: Any) -> Any:
        """The canonical form of a fine-tuned victim lists every field of the fine-tuning."""
        if not isinstance(fields, dict) or fields.get("start") != "surrogate":
            return fields
        return {**fields, "fine_tuning": fields.get("fine_tuning") or {}}

    def from_scratch(self) -> dict[str, Any]:
        """The fields of a training from random weights, as JSON."""
        return self.model_dump(mode="json", exclude={"start", "fine_tuning"})
