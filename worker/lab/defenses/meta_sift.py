"""Meta-Sift (Zeng et al. 2023), from the authors' code, ruoxi-jia-group/Meta-Sift (files and lines in brackets).

A model that is trained on clean samples has a high loss on poisoned ones. A sifter is a model and a small network that
gives each loss a weight. The weights are chosen such that, after a virtual step on the weighted samples, the loss on
the samples without weight is as high as possible; then the model is trained with these weights. A sample that keeps a
high weight even when it is moved and rotated is clean, by the mean of several sifters.

Differences: the derivative of the virtual step passes through all tensors of the model. In the code it passes through
the last layer and, by random gates, through some of the 13 tensors before it [util.py:79]; the gates get no gradient,
since their output is detached from it [util.py:130], so that they only save time.
"""

import math
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from app.specs.defenses.sifting import REPAIRS, MetaSift
from worker.lab.compute import EVALUATION_BATCH, seeded_generator
from worker.lab.data.augment import Augment
from worker.lab.defenses import defend
from worker.lab.defenses.base import Defense, DetectionDefense, RepairDefense
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.perceptron import apply_layers, make_layers
from worker.lab.defenses.sensitivity import turn_and_shift
from worker.lab.evaluation import sample_losses
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, constant, train

UNITS = (1, 100, 150, 1)  # of the small network [meta_sift_func.py:34]
BETAS, WEIGHT_DECAY = (0.9, 0.95), 0.05  # of AdamW [meta_sift_func.py:32]
LEAST_SUM = 1e-4  # of weights that are divided by it [util.py:44]
LARGEST_TURN = 25 / 360  # [meta_sift_func.py:155]
LAYER = "layer."  # before the number of a tensor of the small network


def run(spec: MetaSift, lab: DetectionDefense) -> Network:
    """Train the sifters, keep the samples of the highest mean weight, and repair the victim with them."""
    weights = [
        lab.stage(f"sifter_{n}", lambda stage: sift(spec, lab, stage)).tensors["weights"]
        for n in range(1, spec.sifters + 1)
    ]
    mean = torch.stack(weights).mean(0).to(lab.labels.device)
    detection = lab.stage("detection", lambda stage: keep_highest(spec, lab, stage, mean))
    if spec.then == "nothing":
        return lab.victim
    kept = lab.split.rows(detection.tensors["kept"].to(lab.labels.device))
    clean = CleanSet(kept, lab.split.rows(torch.empty(0, dtype=torch.int64, device=lab.labels.device)))
    common = {part.name: getattr(lab, part.name) for part in fields(Defense)}
    return defend(REPAIRS[spec.then](), RepairDefense(**common, victim=lab.victim, clean=clean))


def sift(spec: MetaSift, lab: DetectionDefense, stage: StageRun) -> Outcome:
    """Train a sifter. Leaves the ``weights`` ``[N]`` of all samples, each moved and rotated at random."""
    device, stream = lab.compute.device, stage.planned.stream
    network = lab.new_network(stage.planned.kind)
    layers = make_layers(UNITS, seeded_generator(device, stream, "weights"))
    memory = {f"{LAYER}{i}": layer.detach() for i, layer in enumerate(layers)} | {"done": torch.tensor(0)}
    recipe = replace(
        lab.recipe,
        steps=spec.warm_up_steps + spec.steps,
        batch_size=min(spec.batch_size, len(lab.labels)),
        learning_rate=spec.learning_rate,
        schedule=constant,
        augment=NO_AUGMENT,
        optimizer=lambda parameters, recipe: torch.optim.AdamW(
            parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        ),
        objective=sifting_objective(spec, memory),
        memory=memory,
    )
    train(stage, network, lab.images, lab.labels, recipe)
    generator = seeded_generator(device, stream, "views")
    padding = min(lab.facts.height, lab.facts.width) // 8  # RandomCrop(32, padding=4)
    parts = []
    for rows in torch.arange(len(lab.labels), device=device).split(EVALUATION_BATCH):
        moved = Augment(padding)(lab.images[rows], generator)
        turns = LARGEST_TURN * (2 * torch.rand(len(rows), device=device, generator=generator) - 1)
        moved = turn_and_shift(moved, turns, torch.zeros(len(rows), 2, device=device))
        losses = sample_losses(network, moved, lab.labels[rows], lab.compute)
        parts.append(apply_layers(layers_of(memory), losses[:, None]))
    return stage.finish({"weights": torch.cat(parts)})


def layers_of(memory: dict[str, Tensor]) -> list[Tensor]:
    """The tensors of the small network."""
    return [memory[f"{LAYER}{i}"] for i in range(2 * len(UNITS) - 2)]


def sifting_objective(spec: MetaSift, memory: dict[str, Tensor]) -> Objective:
    """The mean loss during the warm-up; then the loss weighted by the small network, which is trained before."""

    def objective(network: Network, batch: Batch) -> Tensor:
        memory["done"] += 1
        if memory["done"] <= spec.warm_up_steps:
            return F.cross_entropy(network(batch.x).float(), batch.labels)
        learn_weights(spec, memory, network, batch)
        losses = losses_of(network(batch.x), batch.labels)
        weights = normalize(apply_layers(layers_of(memory), losses.detach()[:, None]))
        return (weights * losses).sum()

    return objective


@sdpa_kernel(SDPBackend.MATH)  # faster kernels of attention have no second derivative
def learn_weights(spec: MetaSift, memory: dict[str, Tensor], network: Network, batch: Batch) -> None:
    """A step of the small network: up the loss of the samples with little weight, after a virtual step of the model
    on those with much [meta_sift_func.py:58-92]."""
    layers = [layer.requires_grad_() for layer in layers_of(memory)]
    parameters: dict[str, Tensor] = dict(network.named_parameters())

    def losses_with(tensors: dict[str, Tensor]) -> Tensor:
        # The running statistics of normalizations are those of the actual steps alone.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        return losses_of(functional_call(network, tensors | buffers, (batch.x,)), batch.labels)

    losses = losses_with(parameters)
    weights = normalize(apply_layers(layers, losses.detach()[:, None]))
    gradients = torch.autograd.grad(
        (weights * losses).sum(), list(parameters.values()), create_graph=True, allow_unused=True
    )
    virtual = {
        name: parameter if gradient is None else parameter - spec.virtual_learning_rate * gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
    losses = losses_with(virtual)
    others = normalize(1 - apply_layers(layers, losses.detach()[:, None]))
    steps = torch.autograd.grad(-(others * losses).sum(), layers)
    for i, (layer, step) in enumerate(zip(layers, steps, strict=True)):
        memory[f"{LAYER}{i}"] = layer.detach() - spec.weight_learning_rate * step


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample ``[B]``."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def normalize(weights: Tensor) -> Tensor:
    """``weights`` ``[B]`` divided by their sum, unless that is nearly zero [util.py:42]."""
    total = weights.sum()
    return torch.where(total >= LEAST_SUM, weights / total, weights)


def keep_highest(spec: MetaSift, lab: DetectionDefense, stage: StageRun, weights: Tensor) -> Outcome:
    """Keep of each class the samples of the highest ``weights`` ``[N]``. All others are suspects only by their rank."""
    kept = highest_of_each_class(weights, lab.labels, spec.kept_ratio)
    lab.record_clean_subset(stage, 1, -weights, kept)
    nothing = torch.empty(0, dtype=torch.int64)
    return stage.finish({"suspicion": -weights, "isolated": nothing, "kept": kept})


def highest_of_each_class(weights: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Rows of the highest weights of each label, a share of it that is rounded up [meta_sift_func.py:127-146]."""
    kept = []
    for label in labels.unique():
        rows = (labels == label).nonzero().flatten()
        order = weights[rows].argsort(descending=True, stable=True)
        kept.append(rows[order[: math.ceil(ratio * len(rows))]])
    return torch.cat(kept)
