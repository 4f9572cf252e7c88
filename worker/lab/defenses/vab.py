"""V&B, the victim and the beneficiary (Zhu et al. 2023b).

Two models are trained in turn. The first, here called the detector, learns the samples of which it is surest, among
which the poison is, and so it learns the backdoor. The second learns the other samples, those of high entropy, mixed
by its own attention; later also the images of the suspicious ones, with the detector's predictions taken off all
targets.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.vab import Vab
from worker.lab.data.augment import Augment
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.inner import train_for_an_epoch
from worker.lab.defenses.repair import plain_sgd
from worker.lab.defenses.semi_supervised import lowest
from worker.lab.defenses.signs import unit_ranks
from worker.lab.evaluation import predict_logits
from worker.lab.networks import Network
from worker.lab.sgd import Optimizer
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed
from worker.lab.training import Batch, constant, step_down

FALL = 0.4  # of the threshold per epoch (Train_cifar10.py)
DETECTOR_TEMPERATURE = 3.0  # (attention_mix_cifar10.py, train_attention_mix_mixmatch)
TINY = 1e-12
DETECTOR = "detector."  # before the names of its tensors


def run(spec: Vab, lab: TrainingDefense) -> Network:
    """The detector, then both in turn."""
    biased = lab.stage("biased", lambda stage: train_detector(spec, lab, stage))
    trained = lab.stage("training", lambda stage: train_beneficiary(spec, lab, stage, biased))
    return load_state(lab.new_network("vab"), trained.tensors, lab.compute.device)


def train_detector(spec: Vab, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """An epoch on everything, and some on the suspicious samples, of which there are fewer each time
    (Train_cifar10.py, "Warmup Net2")."""
    network = lab.new_network("vab detector")
    recipe = replace(
        lab.recipe,
        epochs=spec.warmup_epochs + spec.victim_epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.victim_learning_rate,
        schedule=constant,
        optimizer=lambda parameters, recipe: _adam(spec, parameters),
        memory={},
    )

    def choose_rows(epoch: int) -> Tensor:
        if epoch <= spec.warmup_epochs:
            return torch.arange(len(lab.labels), device=lab.labels.device)
        before = recipe.memory.get("entropies")
        recipe.memory["entropies"] = average_entropies(spec, lab, network, before)
        threshold = max(1 - FALL * (epoch - spec.warmup_epochs), spec.threshold)
        return find_suspicious(recipe.memory["entropies"], threshold).nonzero().flatten()

    lab.fit(stage, network, recipe, rows=choose_rows)
    entropies = average_entropies(spec, lab, network, recipe.memory["entropies"])
    return stage.finish({"entropies": entropies, **add_prefix(DETECTOR, copy_state(network))})


def train_beneficiary(spec: Vab, lab: TrainingDefense, stage: StageRun, biased: Outcome) -> Outcome:
    """Both phases of the second model. The detector is trained on before an epoch, and is part of the checkpoints; each
    of its epochs has its own Adam, where the authors' keeps its moments."""
    network, detector = lab.new_network("vab"), lab.new_network("vab detector")
    epochs = spec.mixed_epochs + spec.suppressed_epochs
    objective = AttentionMix(spec, lab, detector)
    recipe = replace(
        lab.recipe,
        epochs=epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        schedule=step_down(0.25, 0.5, 0.75),  # epochs 50, 100 and 150 of 200
        optimizer=plain_sgd,
        augment=Augment(),
        objective=objective,
        memory={name: tensor.to(lab.compute.device) for name, tensor in biased.tensors.items()},
    )
    memory = recipe.memory

    def begin_epoch(epoch: int) -> Tensor:
        """Train the detector on if it is time; returns the trusted rows."""
        load_state(detector, select_prefixed(memory, DETECTOR), lab.compute.device)
        done = epoch - 1
        if done and (done % spec.victim_interval == 0 or done > spec.mixed_epochs):
            rows = find_suspicious(memory["entropies"], spec.threshold).nonzero().flatten()
            optimizer = _adam(spec, detector.parameters())
            train_for_an_epoch(lab, detector, lab.split, rows, optimizer, stage.planned.stream, epoch)
            memory["entropies"] = average_entropies(spec, lab, detector, memory["entropies"])
            memory.update(add_prefix(DETECTOR, copy_state(detector)))
        detector.eval()
        suspicious = find_suspicious(memory["entropies"], spec.threshold)
        lab.record_isolation(
            stage,
            epoch,
            unit_ranks(-memory["entropies"]),
            suspicious.nonzero().flatten(),
            final=epoch == epochs,
        )
        objective.prepare(epoch, suspicious)
        return (~suspicious).nonzero().flatten()

    lab.fit(stage, network, recipe, rows=begin_epoch)
    return stage.finish(copy_state(network))


def average_entropies(spec: Vab, lab: TrainingDefense, network: Network, before: Tensor | None) -> Tensor:
    """Entropy of the prediction for every training sample ``[N]``, averaged with the earlier ones
    (functions_cifar10.py, eval_train)."""
    log_probabilities = predict_logits(network, lab.images, lab.compute).log_softmax(1)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
    if before is None:
        return entropies
    return spec.momentum * entropies + (1 - spec.momentum) * before.to(entropies.device)


def find_suspicious(entropies: Tensor, threshold: float) -> Tensor:
    """Bool ``[N]``: entropies up to that share of their range, at least two, and at most all but two."""
    low, high = entropies.aminmax()
    suspicious = entropies <= low + threshold * (high - low)
    count = int(suspicious.sum())
    kept = min(max(count, 2), len(entropies) - 2)
    return suspicious if count == kept else lowest(entropies, kept)


@dataclass
class AttentionMix:
    """The objective of the second model."""

    spec: Vab
    lab: TrainingDefense
    detector: Network
    unlabeled: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    share: float = 0.0
    """Images without labels per labeled one; 0 in the first phase. At most 1, where the authors have no bound."""
    weight: float = 0.0

    def prepare(self, epoch: int, suspicious: Tensor) -> None:
        """Set what follows from the number of the epoch and from the samples that lose their labels, bool ``[N]``."""
        done = epoch - 1 - self.spec.mixed_epochs
        self.unlabeled = suspicious.nonzero().flatten()
        self.share = (
            0.0 if done < 0 else min(1.0, len(self.unlabeled) / (len(suspicious) - len(self.unlabeled)))
        )
        is_first_half = done < self.spec.suppressed_epochs / 2
        self.weight = self.spec.unlabeled_weight if is_first_half else self.spec.last_unlabeled_weight

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        augment, generator = self.lab.recipe.augment, batch.generator
        x = torch.cat([augment(batch.x, generator) for _ in range(2)])
        targets = F.one_hot(batch.labels, self.lab.facts.classes).float()
        if self.share:
            targets = self.suppress(targets, augment(batch.x, generator))
        with torch.no_grad():
            attention = attention_of(network.feature_maps(x)[-1], x)
        order = torch.randperm(len(x), device=x.device, generator=generator)
        mixed, mixed_targets = mix_by_attention(
            x, torch.cat([targets, targets]), attention, order, self.spec.attention_threshold
        )
        loss = soft_cross_entropy(network(mixed), mixed_targets)
        count = int(self.share * len(batch.x))
        return loss + self.weight * self.unlabeled_loss(network, count, generator) if count else loss

    def unlabeled_loss(self, network: Network, count: int, generator: torch.Generator) -> Tensor:
        """Cross-entropy of ``count`` unlabeled images with the class that the network predicts for two views of each
        (attention_mix_cifar10.py, train_attention_mix_mixmatch)."""
        device = self.unlabeled.device
        rows = self.unlabeled[
            torch.randint(len(self.unlabeled), (count,), device=device, generator=generator)
        ]
        pixels = self.lab.images[rows]
        views = [self.lab.compute.to_input(self.lab.recipe.augment(pixels, generator)) for _ in range(3)]
        x = torch.cat(views[:2])
        with torch.no_grad():
            first, second = network(x).float().softmax(1).chunk(2)
            guesses = F.one_hot((first + second).argmax(1), self.lab.facts.classes).float()
        targets = self.suppress(guesses, views[2])
        return soft_cross_entropy(network(x), torch.cat([targets, targets]))

    def suppress(self, targets: Tensor, x: Tensor) -> Tensor:
        """``targets`` ``[B, classes]`` less what the detector predicts for ``x`` at a temperature of 3; at least 0."""
        with torch.no_grad():
            logits: Tensor = self.detector(x)
        return (targets - (logits.float() / DETECTOR_TEMPERATURE).softmax(1)).clamp(0, 1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``-mean sum_k t_k log p_k`` for ``[B, classes]``; the targets need not have a sum of 1."""
    return -(logits.float().log_softmax(1) * targets).sum(1).mean()


def attention_of(feature_map: Tensor, x: Tensor) -> Tensor:
    """The sum of squares over the channels of ``[B, C, h, w]``, at the size of ``x`` and scaled to [0, 1], as
    ``[B, 1, H, W]`` (attention_mix_cifar10.py, feature_attention)."""
    attention = feature_map.float().square().sum(1, keepdim=True)
    attention = F.interpolate(attention, size=x.shape[-2:])
    low, high = attention.amin((2, 3), keepdim=True), attention.amax((2, 3), keepdim=True)
    return (attention - low) / (high - low + TINY)


def mix_by_attention(
    x: Tensor, targets: Tensor, attention: Tensor, order: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Images ``[B, C, H, W]`` whose salient pixels are mixed with those of ``x[order]``, and their targets
    ``[B, classes]`` (attention_mix_cifar10.py, attention_mix).

    ``w`` is the share of an image's attention in its salient pixels, ``v`` that of the other image's attention at the
    same places. There the image gets the weight ``w / (w + v)``, and the target of the other ``w v / (w + v)``.
    """
    salient = attention >= threshold
    others = attention[order]
    w, v = (
        (part * salient).sum((1, 2, 3), keepdim=True) / (part.sum((1, 2, 3), keepdim=True) + TINY)
        for part in (attention, others)
    )
    own, other = w / (w + v + TINY), v / (w + v + TINY)
    mixed = torch.where(salient, own * x + other * x[order], x)
    moved = (w * (1 - own))[:, :, 0, 0]
    return mixed, (1 - moved) * targets + moved * targets[order]


def _adam(spec: Vab, parameters: object) -> Optimizer:
    return torch.optim.Adam(
        parameters,  # type: ignore[arg-type]
        lr=spec.victim_learning_rate,
        weight_decay=spec.weight_decay,
    )
