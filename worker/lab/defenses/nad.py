"""Neural Attention Distillation (Li et al. 2021b).

A copy of the victim, fine-tuned on clean images, is the teacher. The victim is fine-tuned on the same images, and the
distance between the attention maps of both is added to the cross-entropy (section 3.2).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.repair import Nad
from worker.lab.defenses.base import RepairDefense, copy_state
from worker.lab.defenses.repair import copy_network, fine_tune, finish_repair, load_network, small_set_recipe
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective


def attention_map(feature_map: Tensor, power: float) -> Tensor:
    """``[N, C, H, W]`` to unit vectors ``[N, H W]``: the channel mean of |a|^power, flattened (equations 1 and 2)."""
    return F.normalize(feature_map.float().abs().pow(power).mean(1).flatten(1), dim=1)


def distillation_objective(spec: Nad, teacher: Network) -> Objective:
    """Cross-entropy plus the weighted squared distances of the last three attention maps (equation 3).

    The authors' code takes the mean over a map's positions, so that the same betas weigh 64 times more on maps of 1x1
    than on 8x8. The sum used here does not depend on the image's size.
    """

    def objective(student: Network, batch: Batch) -> Tensor:
        with torch.no_grad():
            teacher_maps = teacher.feature_maps(batch.x)[-3:]
        maps = student.feature_maps(batch.x)
        loss = F.cross_entropy(student.head(maps[-1].mean((2, 3))).float(), batch.labels)
        for beta, own, target in zip(spec.betas, maps[-3:], teacher_maps, strict=True):
            distance = attention_map(own, spec.power) - attention_map(target, spec.power)
            loss = loss + beta * distance.square().sum(1).mean()
        return loss

    return objective


def run(spec: Nad, lab: RepairDefense) -> Network:
    """Fine-tune the teacher, then distill it into the victim."""

    def teach(stage: StageRun) -> Outcome:
        teacher = copy_network(lab, lab.victim)
        fine_tune(lab, stage, teacher, spec.teacher_epochs, spec.learning_rate)
        return stage.finish(copy_state(teacher))

    taught = lab.stage("teacher", teach)

    def distill(stage: StageRun) -> Outcome:
        student, teacher = copy_network(lab, lab.victim), load_network(lab, taught).eval()
        fit = lab.clean.fit
        recipe = small_set_recipe(lab, len(fit), epochs=spec.epochs, learning_rate=spec.learning_rate)
        recipe.objective = distillation_objective(spec, teacher)
        lab.fit_on(stage, student, fit, recipe)
        return finish_repair(lab, stage, student, lab.clean)

    return load_network(lab, lab.stage("repair", distill))
