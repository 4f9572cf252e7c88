"""BTI-DBF (U) (Xu et al. 2024): trigger inversion by decoupling benign features, then unlearning.

What a backdoored network needs for clean images is in its benign features, and what the trigger uses is in the others.
A mask on the features separates them; a generator then changes images so that benign features stay and the others
change by much, as the trigger does; and the network unlearns what the generator makes. All of it is repeated.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from app.specs.defenses.inversion import BtiDbf
from worker.lab.compute import seeded_generator
from worker.lab.defenses.base import RepairDefense, copy_state, load_state
from worker.lab.defenses.repair import (
    copy_network,
    divide_steps,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.defenses.trigger_generator import TriggerGenerator
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, Recipe, adam, constant, train

MASK, TARGET = "mask", "target"
"""Tensors that stages store beside those of a network."""
NOISE = 0.03  # deviation of noise on normalized images, under which the target class is found (evaluate.py)
NEAR = 0.1  # squared change of normalized images above which the first training of the generator limits it


class FeatureMask(Network):
    """A frozen network and a mask in (0, 1) on the channels that the layer behind its last feature map reads.

    The authors' mask has a value for every position as well; this one works for any architecture, because it scales
    the weights that read a channel.
    """

    def __init__(self, network: Network, raw: Tensor) -> None:
        super().__init__(network.mean.shape[1])
        self.network = network.requires_grad_(False)
        self.raw = nn.Parameter(raw)
        reader = network.prunable_layer
        self.reader = next(f"{name}.weight" for name, layer in network.named_modules() if layer is reader)

    @property
    def mask(self) -> Tensor:
        """``[channels]``."""
        return self.raw.tanh() / 2 + 0.5

    def logits_through(self, mask: Tensor, x: Tensor) -> Tensor:
        """The network's logits if each channel is multiplied by ``mask`` ``[channels]``."""
        weight = self.network.prunable_weight
        masked = weight * mask.view(1, -1, *[1] * (weight.ndim - 2))
        parameter = self.network.get_parameter(self.reader)
        logits: Tensor = functional_call(self.network, {self.reader: masked.view_as(parameter)}, (x,))
        return logits.float()


def run(spec: BtiDbf, lab: RepairDefense) -> Network:
    """Train the generator to the identity; then in every round find features and trigger, and unlearn the trigger."""
    identity = lab.stage("generator", lambda stage: train_to_identity(spec, lab, stage))
    repaired, made = Outcome(copy_state(lab.victim)), identity
    for n in range(1, spec.rounds + 1):
        repaired, made = run_round(spec, lab, n, repaired, made)
    network = load_network(lab, repaired)
    return load_network(lab, lab.stage("repair", lambda stage: finish_repair(lab, stage, network, lab.clean)))


def run_round(
    spec: BtiDbf, lab: RepairDefense, n: int, repaired: Outcome, made: Outcome
) -> tuple[Outcome, Outcome]:
    """Round ``n``, from 1, with the network and the generator of the one before; returns the new ones."""
    decoupled = lab.stage(f"features_{n}", lambda stage: decouple(spec, lab, stage, repaired))
    inverted = lab.stage(f"trigger_{n}", lambda stage: invert(spec, lab, stage, decoupled, made))
    unlearned = lab.stage(f"unlearning_{n}", lambda stage: unlearn(spec, lab, stage, repaired, inverted))
    return unlearned, inverted


def adam_recipe(spec: BtiDbf, lab: RepairDefense, learning_rate: float, objective: Objective) -> Recipe:
    """Adam at a constant rate."""
    recipe = small_set_recipe(
        lab,
        len(lab.clean.fit),
        epochs=1,
        learning_rate=learning_rate,
        schedule=constant,
        batch_size=spec.batch_size,
        weight_decay=0.0,
    )
    recipe.objective = objective
    recipe.optimizer = adam
    return recipe


def train_part(lab: RepairDefense, stage: StageRun, part: Network, recipe: Recipe, steps: int) -> None:
    """Train a mask or a generator on the clean set; it is no classifier, so no curves are measured."""
    fit = lab.clean.fit
    recipe.epochs, repeats = divide_steps(steps, math.ceil(len(fit) / recipe.batch_size))
    rows = torch.arange(len(fit), device=fit.labels.device).repeat(repeats)
    train(stage, part, fit.images, fit.labels, recipe, rows=rows)


def load_generator(lab: RepairDefense, outcome: Outcome) -> TriggerGenerator:
    """The generator that a stage stored, beside the target class that it found."""
    generator = TriggerGenerator.for_victim(lab.victim, lab.facts, lab.seed)
    tensors = {name: tensor for name, tensor in outcome.tensors.items() if name != TARGET}
    load_state(generator, tensors, lab.compute.device)
    return generator


def squared_change(victim: Network, x: Tensor, made: Tensor) -> Tensor:
    """The mean squared difference of images as ``victim`` normalizes them."""
    return F.mse_loss(victim.normalize(x), victim.normalize(made))


def train_to_identity(spec: BtiDbf, lab: RepairDefense, stage: StageRun) -> Outcome:
    """Train the generator to leave predictions, features and images as they are (authors' pretrain.py).

    Their cross-entropy takes probabilities for logits; this one does not.
    """
    victim = copy_network(lab, lab.victim).eval().requires_grad_(False)
    generator = TriggerGenerator.for_victim(victim, lab.facts, lab.seed)

    def objective(generator: Network, batch: Batch) -> Tensor:
        made = generator(batch.x)
        predictions = F.cross_entropy(victim(made).float(), victim(batch.x).float().softmax(1))
        features = F.mse_loss(victim.prunable_activity(made), victim.prunable_activity(batch.x))
        change = squared_change(victim, batch.x, made)
        return predictions + features + torch.where(change > NEAR, 100.0, 0.01) * change

    recipe = adam_recipe(spec, lab, spec.generator_learning_rate, objective)
    train_part(lab, stage, generator, recipe, spec.generator_steps)
    return stage.finish(copy_state(generator))


def decouple(spec: BtiDbf, lab: RepairDefense, stage: StageRun, repaired: Outcome) -> Outcome:
    """Train a mask with which clean images are classified, and without which they are not (btidbfu.py, reverse).

    Normalizations use the statistics of each batch, and those that they collect are used afterwards.
    """
    network = load_network(lab, repaired)
    channels = network.prunable_weight.shape[1]
    draw = seeded_generator(lab.compute.device, "feature mask", stage.planned.stream)
    search = FeatureMask(network, torch.randn(channels, device=lab.compute.device, generator=draw))

    def objective(search: Network, batch: Batch) -> Tensor:
        assert isinstance(search, FeatureMask)
        benign = F.cross_entropy(search.logits_through(search.mask, batch.x), batch.labels)
        return benign - F.cross_entropy(search.logits_through(1 - search.mask, batch.x), batch.labels)

    recipe = adam_recipe(spec, lab, spec.mask_learning_rate, objective)
    train_part(lab, stage, search, recipe, spec.mask_steps)
    return stage.finish(copy_state(search.network) | {MASK: search.mask.detach()})


def inversion_objective(spec: BtiDbf, network: Network, mask: Tensor, target: Tensor | None) -> Objective:
    """Change the features outside the mask, unless the image or those inside change too much (btidbfu.py, reverse).

    From the second round on images must also be classified as the ``target`` that the first one found.
    """

    def objective(generator: Network, batch: Batch) -> Tensor:
        made = generator(batch.x)
        before, after = network.prunable_activity(batch.x), network.prunable_activity(made)
        benign, other = (
            F.mse_loss(mask * before, mask * after),
            F.mse_loss((1 - mask) * before, (1 - mask) * after),
        )
        change = squared_change(network, batch.x, made)
        is_bounded = (change <= spec.change_bound) & (benign <= spec.feature_bound)
        loss = torch.where(is_bounded, 0.01 * benign - other, change)
        if target is not None:
            loss = loss + F.cross_entropy(network(made).float(), target.expand(len(made)))
        return loss

    return objective


def invert(spec: BtiDbf, lab: RepairDefense, stage: StageRun, decoupled: Outcome, made: Outcome) -> Outcome:
    """Train the generator to make images that the backdoor reacts to."""
    tensors = dict(decoupled.tensors)
    mask = tensors.pop(MASK).to(lab.compute.device)
    network = load_network(lab, Outcome(tensors)).eval().requires_grad_(False)
    generator, target = load_generator(lab, made), made.tensors.get(TARGET)
    if target is not None:
        target = target.to(lab.compute.device)
    objective = inversion_objective(spec, network, mask, target)
    recipe = adam_recipe(spec, lab, spec.generator_learning_rate, objective)
    train_part(lab, stage, generator, recipe, spec.trigger_steps)
    if target is None:
        target = find_target(lab, network, generator)
        lab.record_flagged_classes(stage, F.one_hot(target, lab.facts.classes).bool())
    lab.recorder.log(f"the generated trigger leads to class {int(target)}")
    return stage.finish(copy_state(generator) | {TARGET: target})


@torch.no_grad()
def find_target(lab: RepairDefense, network: Network, generator: TriggerGenerator) -> Tensor:
    """The class that most generated images are classified as; noise is added before (evaluate.py)."""
    generator.eval()
    draw = seeded_generator(lab.compute.device, "noise", lab.seed)
    counts = torch.zeros(lab.facts.classes, dtype=torch.int64, device=lab.compute.device)
    for images in lab.clean.fit.images.split(512):
        x = lab.compute.to_input(images)
        noise = torch.randn(x.shape, device=x.device, generator=draw) * NOISE * network.std
        counts += network(generator(x + noise)).argmax(1).bincount(minlength=len(counts))
    return counts.argmax()


def unlearn(spec: BtiDbf, lab: RepairDefense, stage: StageRun, repaired: Outcome, made: Outcome) -> Outcome:
    """Train the network to classify images as before the generator changed them (btidbfu.py, unlearn)."""
    network = load_network(lab, repaired)
    generator = load_generator(lab, made).eval().requires_grad_(False)

    def objective(network: Network, batch: Batch) -> Tensor:
        count = int(spec.generated_share * len(batch.x) + 1)
        order = torch.randperm(len(batch.x), device=batch.x.device, generator=batch.generator)
        mixed = batch.x.clone()
        mixed[order[:count]] = generator(mixed[order[:count]]).to(mixed.dtype)
        loss = F.cross_entropy(network(mixed).float(), batch.labels)
        return loss + F.mse_loss(network.prunable_activity(batch.x), network.prunable_activity(mixed))

    recipe = adam_recipe(spec, lab, spec.learning_rate, objective)
    train_steps(lab, stage, network, recipe, spec.steps)
    return stage.finish(copy_state(network))
