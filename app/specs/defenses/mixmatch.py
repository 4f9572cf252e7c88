"""The part that is common to defenses that end with semi-supervised training."""

from app.specs.base import field
from app.specs.defenses.base import Defense

DBD_CODE = "SCLBD/DBD, the authors' code"


class MixMatchDefense(Defense):
    """Base class of defenses that train with MixMatch (Berthelot et al. 2019) on the samples whose labels they trust,
    and on the images alone of the others."""

    mixmatch_steps: int | None = field(
        None,
        "Steps of an epoch of MixMatch, each of mixmatch_batch_size labeled and as many unlabeled images. The authors "
        "have 1024, which are 2.6 passes over the 50,000 images of CIFAR-10. Null: one pass over the training set.",
        unit="steps",
        source=f"chosen here: 1024 steps are 91 passes over digits; {DBD_CODE}",
        ge=1,
        le=100_000,
    )
    mixmatch_batch_size: int = field(
        64, "Labeled images in a step.", unit="images", source=DBD_CODE, ge=2, le=4096
    )
    mixmatch_learning_rate: float = field(
        0.002, "Constant learning rate of Adam.", source=DBD_CODE, gt=0, le=1
    )
    unlabeled_weight: float = field(
        15.0, "Weight of the unlabeled part of the loss after its ramp.", source=DBD_CODE, ge=0, le=1000
    )
    ramp_epochs: int = field(
        60,
        "Epochs in which that weight rises from 0. The authors: the length of the training.",
        unit="epochs",
        source=DBD_CODE,
        ge=0,
        le=2000,
    )
