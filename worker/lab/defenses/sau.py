"""Shared adversarial unlearning (Wei et al. 2023).

A perturbation that leads the victim and the model under repair to the same wrong class is shared. The trigger is such
a perturbation, so unlearning what is shared unlearns the trigger, at less cost for accuracy than unlearning all
adversarial examples. The steps are those of BackdoorBench's defense/sau.py, which the authors contributed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.unlearning import Sau
from worker.lab.defenses.base import RepairDefense
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, adam, constant


def share_perturbation(spec: Sau, network: Network, victim: Network, x: Tensor, labels: Tensor) -> Tensor:
    """A perturbation of each image ``[B, C, H, W]`` that leads both models to the same wrong class (Shared_PGD).

    Signed gradient steps from the corner of the ball of ``radius`` lower the divergence of both predictions, and raise
    the cross-entropy of a model that is not fooled yet. Images whose perturbation is shared are left as they are. As in
    the reference, perturbed images are not clipped to [0, 1].
    """
    with torch.no_grad():
        own, original = network(x).argmax(1), victim(x).argmax(1)
    delta = torch.full_like(x, spec.radius)
    for _ in range(spec.attack_steps):
        delta.requires_grad_()
        logits, victim_logits = network(x + delta).float(), victim(x + delta).float()
        fooled, victim_fooled = logits.argmax(1) != own, victim_logits.argmax(1) != original
        shared = fooled & victim_fooled & (logits.argmax(1) == victim_logits.argmax(1))
        adversarial = F.cross_entropy(logits, labels, reduction="none") * ~fooled
        adversarial = adversarial + F.cross_entropy(victim_logits, labels, reduction="none") * ~victim_fooled
        divergence = jensen_shannon(logits.softmax(1), victim_logits.softmax(1)) * ~shared
        loss = divergence.mean() - spec.adversarial_weight * adversarial.mean() / 2
        (gradient,) = torch.autograd.grad(loss, delta)
        stepped = delta.detach() - spec.attack_step_size * gradient.sign()
        delta = stepped.clamp(-spec.radius, spec.radius)
    return delta


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """The Jensen-Shannon divergence ``[B]``, in nats, of distributions ``[B, classes]``."""
    p, q = p.clamp(min=1e-8), q.clamp(min=1e-8)
    mixed = (p + q) / 2
    return ((p * (p / mixed).log() + q * (q / mixed).log()) / 2).sum(1)


def shared_loss(logits: Tensor, victim_labels: Tensor, is_victim_fooled: Tensor) -> Tensor:
    """``-log(1 - p)``, ``p`` the probability of the victim's class for a perturbed image, where the victim is fooled.

    The sum over these images, divided by the number of all. As in the reference the same term is computed in two ways,
    and has no gradient below a probability of 0.001.
    """
    p = logits.softmax(1).gather(1, victim_labels[:, None]).squeeze(1)
    rest = 1 - p
    terms = -(1e-6 + rest.clamp(max=0.999)).log() - (1 + 1e-6 - p.clamp(min=0.001)).log()
    return (terms / 2 * is_victim_fooled).mean()


def unlearning_objective(spec: Sau, victim: Network) -> Objective:
    """Cross-entropy on clean images plus the loss on shared perturbations; batch normalizations are not trained.

    The reference's weight of the loss on all perturbations, lmd_2, is zero in its configuration, so it is left out.
    """

    def objective(network: Network, batch: Batch) -> Tensor:
        network.eval()
        x, labels = batch.x, batch.labels
        perturbed = x + share_perturbation(spec, network, victim, x, labels)
        with torch.no_grad():
            original, victim_labels = victim(x).argmax(1), victim(perturbed).argmax(1)
        fooled = (victim_labels != labels) & (victim_labels != original)
        logits, perturbed_logits = network(torch.cat([x, perturbed])).float().chunk(2)
        clean = F.cross_entropy(logits, labels)
        return clean + spec.shared_weight * shared_loss(perturbed_logits, victim_labels, fooled)

    return objective


def run(spec: Sau, lab: RepairDefense) -> Network:
    """Find and unlearn a perturbation for every batch."""

    def unlearn(stage: StageRun) -> Outcome:
        network, victim = copy_network(lab, lab.victim), copy_network(lab, lab.victim).eval()
        recipe = small_set_recipe(
            lab,
            len(lab.clean.fit),
            epochs=1,
            learning_rate=spec.learning_rate,
            schedule=constant,
            batch_size=spec.batch_size,
            weight_decay=0.0,
        )
        recipe.objective = unlearning_objective(spec, victim)
        recipe.optimizer = adam
        recipe.augment = NO_AUGMENT
        train_steps(lab, stage, network, recipe, spec.steps)
        return finish_repair(lab, stage, network, lab.clean)

    return load_network(lab, lab.stage("repair", unlearn))
