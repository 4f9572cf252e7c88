"""Neural Attention Distillation (Li et al. 2021b).

A copy of the victim, fine-tuned on clean images, is the teacher. The victim is fine-tuned on the same images, and the
distance between the attention maps of both is added to the cross-entropy (section 3.2).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.repair import Nad
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.repair import (
    copy_network,
    finish_repair,
    load_network,
    small_set_recipe,
    train_steps,
)
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, Recipe, Schedule


def attention_map(feature_map: Tensor, power: float) -> Tensor:
    """``[N, C, H, W]`` to unit vectors ``[N, H W]``: the channel mean of |a|^power, flattened (equations 1 and 2)."""
    return F.normalize(feature_map.float().abs().pow(power).mean(1).flatten(1), dim=1)


def distillation_objective(spec: Nad, teacher: Network) -> Objective:
    """Cross-entropy plus the weighted mean squared distances of the last three attention maps (equation 3).

    The mean is over images and positions, as in the authors' at.py, so the betas weigh small maps more.
    The last map is the last stage's output, before a final normalization (their models/wresnet.py, activation3).
    """

    def objective(student: Network, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_maps = teacher.stage_maps(batch.x)[-3:]
        logits, maps = student.logits_and_maps(batch.x)
        loss = F.cross_entropy(logits.float(), batch.labels)
        for beta, own, target in zip(spec.betas, maps[-3:], teacher_maps, strict=True):
            distance = F.mse_loss(attention_map(own, spec.power), attention_map(target, spec.power))
            loss = loss + beta * distance
        return loss

    return objective


def two_rates(spec: Nad, steps: int) -> Schedule:
    """The authors' schedule (utils/util.py, adjust_learning_rate): the first rate for two epochs, then a constant one.

    It is the teacher's as well: the authors train it by the same code with betas of zero (README).
    """
    return lambda share: (
        1.0 if share * steps < spec.first_steps else spec.learning_rate / spec.first_learning_rate
    )


def run(spec: Nad, lab: RepairDefense) -> Network:
    """Fine-tune the teacher, then distill it into the victim."""

    def recipe_of(steps: int) -> Recipe:
        recipe = small_set_recipe(
            lab,
            len(lab.clean.fit),
            epochs=1,
            learning_rate=spec.first_learning_rate,
            schedule=two_rates(spec, steps),
            batch_size=spec.batch_size,
            weight_decay=spec.weight_decay,
        )
        # data_loader.py, get_train_loader: crop, flip and Cutout(1, 3), for teacher and student
        recipe.augment = replace(recipe.augment, cutout=spec.cutout or recipe.augment.cutout)
        return recipe

    def teach(stage: StageRun) -> Outcome:
        teacher = copy_network(lab, lab.victim)
        train_steps(lab, stage, teacher, recipe_of(spec.teacher_steps), spec.teacher_steps)
        return stage.finish(copy_state(teacher))

    taught = lab.stage("teacher", teach)

    def distill(stage: StageRun) -> Outcome:
        student, teacher = copy_network(lab, lab.victim), load_network(lab, taught).eval()
        recipe = recipe_of(spec.steps)
        recipe.objective = distillation_objective(spec, teacher)
        train_steps(lab, stage, student, recipe, spec.steps)
        return finish_repair(lab, stage, student, lab.clean)

    return load_network(lab, lab.stage("repair", distill))
