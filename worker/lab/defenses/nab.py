"""NAB, the non-adversarial backdoor (Liu et al. 2023).

Samples that are learned too fast are isolated, as in ABL. Each gets the label that a model trained on the clean set
predicts for it and, if that differs from the given one, the defender's own trigger, the stamp. The model learns that a
stamped image has its true class, with or without the attacker's trigger. At test time every image is stamped. The
paper's optional filter, which rejects images whose prediction the stamp changes, is left out: rejections cannot be
scored as predictions.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.defenses.abl import Abl
from app.specs.defenses.nab import Nab
from worker.lab.attacks import apply_trigger
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import StreamedImages, count_levels, select_rows
from worker.lab.defenses import abl
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.repair import small_set_recipe
from worker.lab.evaluation import accuracy, predict_classes
from worker.lab.networks import Network
from worker.lab.networks.trigger_input import TriggerInput
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import Batch, Objective, cosine, step_down, train

MIN_LABEL_ACCURACY = 0.7  # of the relabeling model on held-out clean images; below it there is a warning

TWO_STEPS = step_down(0.2, 0.6)  # shares of the training (pseudo_label_vd.py, adjust_lr)


def run(spec: Nab, lab: TrainingDefense) -> Network:
    """Isolate, relabel, and train with the stamp."""
    ranking = Abl(
        isolation_loss=spec.isolation_loss,
        isolation_augmentation=spec.isolation_augmentation,
        isolation_reduction="batch_mean",
        isolation_ratio=spec.isolation_ratio,
        isolation_epochs=spec.isolation_epochs,
        isolation_learning_rate=spec.isolation_learning_rate,
        ranking_window=spec.ranking_window,
        gamma=spec.gamma,
    )
    isolation = lab.stage("isolation", lambda stage: abl.isolate_samples(ranking, lab, stage))
    suspects = isolation.tensors["isolated"].to(lab.labels.device)
    labeled = lab.stage("labelling", lambda stage: relabel_suspects(spec, lab, stage, suspects))
    trained = lab.stage("training", lambda stage: train_with_stamp(spec, lab, stage, suspects, labeled))
    return load_state(_new_stamping_network(spec, lab), trained.tensors, lab.compute.device)


def relabel_suspects(spec: Nab, lab: TrainingDefense, stage: StageRun, suspects: Tensor) -> Outcome:
    """Labels ``[K]`` of the suspects by a model trained on the clean set alone ("verified data" in the paper)."""
    assert lab.clean is not None
    fit, held_out = lab.clean.fit, lab.clean.held_out
    network = lab.new_network("labelling")
    recipe = small_set_recipe(
        lab,
        len(fit),
        epochs=spec.labelling_epochs,
        learning_rate=spec.labelling_learning_rate,
        schedule=cosine if spec.labelling_schedule == "cosine" else TWO_STEPS,
    )
    train(stage, network, fit.images, fit.labels, recipe)
    right = accuracy(network, held_out, lab.compute)
    if right < MIN_LABEL_ACCURACY:
        lab.warn(
            stage,
            f"the relabeling model has an accuracy of only {right:.0%} on {len(held_out)} held-out clean images",
        )
    images = select_rows(lab.images, suspects)
    if spec.labelling_with_stamp:  # pseudo_label_vd.py, update_pseudo_label
        mask, value = (255 * tensor for tensor in stamp(spec, lab))
        images = apply_trigger(
            lambda part: torch.where(mask.to(part.device) > 0, value.round().to(part), part), images
        )
    labels = predict_classes(network, images, lab.compute)
    lab.record_label_accuracy(stage, spec.labelling_epochs, suspects, labels)
    return stage.finish({"labels": labels})


def train_with_stamp(
    spec: Nab, lab: TrainingDefense, stage: StageRun, suspects: Tensor, labeled: Outcome
) -> Outcome:
    """Train on all samples, with the suspects relabeled, and stamped where the label changes."""
    labels = lab.labels.clone()
    labels[suspects] = labeled.tensors["labels"].to(labels.device)
    is_stamped = labels != lab.labels  # damianliumin/non-adversarial_backdoor, train_nab.py:56
    network = _new_stamping_network(spec, lab)
    recipe = replace(lab.recipe, memory={}, objective=stamp_objective(is_stamped))
    lab.fit_on(stage, network, Split(lab.images, labels), recipe)
    return stage.finish(copy_state(network))


def stamp_objective(is_stamped: Tensor) -> Objective:
    """Cross-entropy; the rows of ``is_stamped`` (bool ``[N]``) get the stamp, after augmentation."""

    def objective(network: Network, batch: Batch) -> Tensor:
        assert isinstance(network, TriggerInput)
        with_stamp = is_stamped[batch.rows][:, None, None, None]
        x = torch.where(with_stamp, network.add_trigger(batch.x), batch.x)
        return F.cross_entropy(network.network(x).float(), batch.labels)

    return objective


def stamp(spec: Nab, lab: TrainingDefense) -> tuple[Tensor, Tensor]:
    """The stamp's mask ``[1, 1, H, W]`` and its values under the mask ``[1, 1 or C, H, W]``, both in [0, 1]."""
    mask = torch.zeros(1, 1, lab.facts.height, lab.facts.width)
    mask[:, :, : spec.stamp_size, : spec.stamp_size] = 1
    if spec.stamp_value is None:  # zero after normalization (train_nab.py:58)
        if isinstance(lab.images, StreamedImages):
            counts = count_levels(lab.images).double()
            value = (counts @ torch.arange(256).double() / counts.sum(1)).float()[None, :, None, None] / 255
        else:
            value = lab.images.float().mean((0, 2, 3), keepdim=True).cpu() / 255
    else:
        value = torch.full((1, 1, 1, 1), spec.stamp_value / 255)
    return mask, mask * value


def _new_stamping_network(spec: Nab, lab: TrainingDefense) -> TriggerInput:
    return TriggerInput(lab.new_network("nab"), *stamp(spec, lab)).to(lab.compute.device)
