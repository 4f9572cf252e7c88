"""Attacks on the training itself: the attacker's code computes the loss of the model that is handed over."""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import model_validator

from app.specs.attacks.base import JOINT, DirtyLabelAttack, PreparationStage
from app.specs.attacks.patches import PatchAttack
from app.specs.base import Preset, field, preset_field
from app.specs.facts import DatasetFacts

BLIND_CODE = "ebagdasa/backdoors101, configs/cifar10_params.yaml and attack.py"
BLIND_PATTERN = "ebagdasa/backdoors101, synthesizers/pattern_synthesizer.py"
BLIND_BENCHMARK = "BackdoorBench, config/attack/blind/default.yaml"
EMBED_ART = "the Adversarial Robustness Toolbox, adversarial_embedding_attack.py"
EMBED_ZOO = "ain-soph/trojanzoo, bypass_embed.py and bypass_embed.yml"
PATTERN = ((255, 0, 255), (None, 255, None), (None, None, 0), (None, 255, None), (255, 0, 255))
"""The authors' pattern, rows of gray levels; None: the image shows."""

_BLIND_PRESETS = {
    "recommended": Preset(
        "the authors' attack, for as many epochs as a victim has by default.", "chosen here", {}
    ),
    "authors": Preset(
        "the authors' configuration for CIFAR-10, with their 200 epochs.", BLIND_CODE, {"joint_epochs": 200}
    ),
    "benchmark": Preset(
        "BackdoorBench's settings: fixed weights of the two losses, and 100 epochs.",
        BLIND_BENCHMARK,
        {"balance": "fixed", "joint_epochs": 100},
    ),
}


class Blind(DirtyLabelAttack):
    """Blind backdoor (Bagdasaryan and Shmatikov, 2021): the victim's loss is manipulated, and no image is poisoned.

    The attacker's code in the training computes a second loss, on each batch with the trigger and the target's label,
    and adds both with weights that make neither dominate. The undefended model is the one trained so.
    """

    name: Literal["blind"] = "blind"
    presets = _BLIND_PRESETS
    preset: Literal["recommended", "authors", "benchmark"] = preset_field(_BLIND_PRESETS, "recommended")
    poisoning_rate: float = field(
        1.0,
        "Share of each batch that has the trigger in the second loss. The training set stays clean.",
        unit="fraction",
        source=BLIND_CODE,
        gt=0,
        le=1,
    )
    row: int | None = field(
        None,
        "Row of the pattern's top, from 0. Null: 3 of 32 rows, in proportion.",
        unit="pixels",
        source=BLIND_PATTERN,
        ge=0,
        le=1023,
    )
    column: int | None = field(
        None,
        "Column of the pattern's left, from 0. Null: 23 of 32 columns, in proportion.",
        unit="pixels",
        source=BLIND_PATTERN,
        ge=0,
        le=1023,
    )
    balance: Literal["mgda", "fixed"] = field(
        "mgda",
        "Weights of the two losses. mgda: those for which the weighted sum of the normalized gradients is shortest "
        "(multiple gradient descent), for each batch. fixed: 1 and backdoor_weight.",
        source=BLIND_CODE,
    )
    normalization: Literal["none", "l2", "loss", "loss+"] = field(
        "loss+",
        "What a loss's gradient is divided by for mgda. l2: its length. loss: the loss. loss+: both. The last two are "
        "at most 10. Used only if balance is mgda.",
        source=BLIND_CODE,
    )
    backdoor_weight: float = field(
        0.9,
        "Weight of the second loss. Used only if balance is fixed.",
        source=BLIND_BENCHMARK,
        gt=0,
        le=100,
    )
    loss_threshold: float | None = field(
        1.0,
        "The second loss is used while the mean of the first one over the last batches is below this. Null: always.",
        source=BLIND_CODE,
        gt=0,
        le=100,
    )
    history_epochs: float = field(
        1.28,
        "Length of the window of that mean. The second loss is not used before the window is full. The authors have "
        "1,000 batches of 64 images of CIFAR-10. Used only with loss_threshold.",
        unit="epochs",
        source=BLIND_CODE,
        gt=0,
        le=100,
    )
    joint_epochs: int = field(
        30,
        "Training by the manipulated loss, with the experiment's recipe; replaces training.epochs for the undefended "
        "arm.",
        unit="epochs",
        source=f"chosen here, as training.epochs; {BLIND_CODE}: 200",
        ge=1,
        le=1000,
    )

    @property
    def poisons_data(self) -> bool:
        return False

    @property
    def hands_over(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_history(self) -> Self:
        if self.loss_threshold is not None and self.history_epochs >= self.joint_epochs:
            raise ValueError("history_epochs must be less than joint_epochs, or the attack never starts")
        return self

    def place(self, facts: DatasetFacts) -> tuple[int, int]:
        """Row and column of the pattern's top left pixel."""
        height, width = len(PATTERN), len(PATTERN[0])
        row = min(round(3 / 32 * facts.height), facts.height - height) if self.row is None else self.row
        left = min(round(23 / 32 * facts.width), facts.width - width) if self.column is None else self.column
        return row, left

    def unfit(self, facts: DatasetFacts) -> Iterator[tuple[str, Any, str]]:
        row, column = self.place(facts)
        for name, start, size, side in (
            ("row", row, len(PATTERN), facts.height),
            ("column", column, len(PATTERN[0]), facts.width),
        ):
            if not 0 <= start <= side - size:
                allowed = f"0 to {side - size}" if side >= size else "none"
                yield name, getattr(self, name), f"{allowed}, since the pattern has {size} of {side} pixels"

    def stages(self) -> list[PreparationStage]:
        fields = self.model_dump(mode="json", exclude={"name", "preset", "export"})
        return [PreparationStage(JOINT, fields, 3 * self.joint_epochs)]


_EMBEDDING_PRESETS = {
    "recommended": Preset(
        "a discriminator that keeps up with the network, five steps for each batch, and sees the class that detections "
        "look at. On digits it alone hides the backdoor from spectral signatures and activation clustering "
        "(docs/attacks.md).",
        f"chosen here, on digits, seeds 100 to 105; {EMBED_ART}; {EMBED_ZOO}",
        {},
    ),
    "art": Preset(
        "the settings of the Adversarial Robustness Toolbox. Its discriminator minimizes the network's loss: it "
        "learns to be wrong, and poisoned features become easier to tell apart.",
        EMBED_ART,
        {
            "discriminator_training": "same_loss",
            "discriminator_learning_rate": 1e-4,
            "compared": "training_set",
            "network_goal": "maximize",
            "adversarial_weight": 10.0,
            "feature_noise": 1.0,
            "joint_epochs": 10,
        },
    ),
    "trojanzoo": Preset(
        "the settings of TrojanZoo, which had this attack until March 2022: epochs of the discriminator and of the "
        "network in turn, after a training without it.",
        EMBED_ZOO,
        {
            "poisoning_rate": 0.01,
            "discriminator_training": "epochs",
            "compared": "training_set",
            "network_goal": "maximize",
            "warmup_epochs": 10,
            "joint_epochs": 40,
        },
    ),
}


class AdversarialEmbedding(PatchAttack):
    """Adversarial embedding (Tan and Shokri, 2020): a model whose features hide which images are triggered.

    The attacker trains the model on a set poisoned as by BadNets, against a discriminator that is to tell poisoned
    from clean images by the features before the last layer. The undefended model is the one trained so; the poisoned
    set alone is that of `badnets`.
    """

    name: Literal["adversarial_embedding"] = "adversarial_embedding"
    presets = _EMBEDDING_PRESETS
    preset: Literal["recommended", "art", "trojanzoo"] = preset_field(_EMBEDDING_PRESETS, "recommended")
    poisoning_rate: float = field(
        0.05,
        "Share of the training set that is poisoned.",
        unit="fraction",
        source=f"{EMBED_ART}; {EMBED_ZOO}: 0.01",
        gt=0,
        le=1,
    )
    network_goal: Literal["maximize", "confuse"] = field(
        "confuse",
        "What the network does to the discriminator beside learning its own labels. maximize: maximize its loss, so "
        "that its answers are wrong. confuse: minimize its loss with both answers as labels, half each, so that its "
        "answers are uncertain (domain confusion); the gradient does not vanish where the discriminator is sure.",
        source=f"chosen here (Tzeng et al. 2015); {EMBED_ART} and {EMBED_ZOO}: maximize",
    )
    adversarial_weight: float = field(
        0.1,
        "Weight of that loss (lambda).",
        source=f"{EMBED_ZOO}; {EMBED_ART}: 10",
        gt=0,
        le=1000,
    )
    compared: Literal["target_class", "training_set"] = field(
        "target_class",
        "Images of a batch that the discriminator's loss is averaged over. target_class: those with a label that "
        "poisoned images have, since detections compare images of one label. training_set: all.",
        source=f"chosen here; {EMBED_ART} and {EMBED_ZOO}: training_set",
    )
    discriminator_training: Literal["steps", "epochs", "same_loss"] = field(
        "steps",
        "steps: discriminator_steps on each batch, before the network's step. epochs: discriminator_epochs before each "
        "epoch of the network, on the poisoned images and those they were made from. same_loss: one step with the "
        "network's, along the same loss, so that the discriminator learns to be wrong.",
        source=f"chosen here; {EMBED_ZOO}: epochs; {EMBED_ART}: same_loss",
    )
    discriminator_steps: int = field(
        5,
        "Steps of the discriminator on each batch. Used only if discriminator_training is steps.",
        unit="steps",
        source="chosen here",
        ge=1,
        le=1000,
    )
    discriminator_epochs: int = field(
        100,
        "Epochs of the discriminator before each epoch of the network. Used only if discriminator_training is epochs.",
        unit="epochs",
        source=EMBED_ZOO,
        ge=1,
        le=10_000,
    )
    discriminator_learning_rate: float = field(
        0.001,
        "Learning rate of Adam for the discriminator, constant.",
        source=f"{EMBED_ZOO}; {EMBED_ART}: 0.0001",
        gt=0,
        le=1,
    )
    feature_noise: float = field(
        0.0,
        "Standard deviation of normal noise on the features that the discriminator is given.",
        source=f"{EMBED_ZOO}; {EMBED_ART}: 1",
        ge=0,
        le=100,
    )
    warmup_epochs: int = field(
        0,
        "Epochs of the joint training without the discriminator, at its start.",
        unit="epochs",
        source=f"{EMBED_ART}; {EMBED_ZOO}: 10",
        ge=0,
        le=1000,
    )
    joint_epochs: int = field(
        30,
        "Training by the attacker, with the experiment's recipe; replaces training.epochs for the undefended arm.",
        unit="epochs",
        source=f"chosen here, as training.epochs; {EMBED_ART}: 10",
        ge=1,
        le=1000,
    )

    @property
    def hands_over(self) -> bool:
        return True

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup_epochs >= self.joint_epochs:
            raise ValueError(
                "warmup_epochs must be less than joint_epochs, or the discriminator is never used"
            )
        return self

    def stages(self) -> list[PreparationStage]:
        fields = self.model_dump(mode="json", exclude={"name", "preset", "export"})
        return [PreparationStage(JOINT, fields, 2 * self.joint_epochs)]
