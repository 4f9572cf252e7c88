"""ASD, adaptively splitting the dataset (Gao et al. 2023).

One semi-supervised training, before each epoch of which the samples are split into those that keep their labels and
those that do not: at first the clean images and the samples of the lowest loss of each class, then the half of the
lowest loss, and at last the half whose loss falls least in an epoch of ordinary training. Poison of which the model has
not learned the label has a high loss, that falls fast.
"""

import torch
from torch import Tensor

from app.specs.defenses.asd import Asd
from worker.lab.data.datasets import Split
from worker.lab.data.streamed import join
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.defenses.inner import train_for_an_epoch
from worker.lab.defenses.semi_supervised import lowest, symmetric_losses, train_mixmatch
from worker.lab.defenses.signs import unit_ranks
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: Asd, lab: TrainingDefense) -> Network:
    """All phases are one training."""
    trained = lab.stage("training", lambda stage: train_with_splits(spec, lab, stage))
    return load_state(lab.new_network("asd"), trained.tensors, lab.compute.device)


def train_with_splits(spec: Asd, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """The clean images follow the training set; there the authors' are rows of it that they know to be clean."""
    assert lab.clean is not None
    clean = lab.clean.fit
    split = Split(join(lab.images, clean.images), torch.cat([lab.labels, clean.labels]))
    size = len(lab.labels)
    is_clean = torch.arange(len(split), device=split.labels.device) >= size
    half = int(spec.labeled_ratio * len(split))
    epochs = spec.growth_epochs + spec.loss_epochs + spec.meta_epochs

    def choose_labeled(network: Network, epoch: int) -> Tensor:
        losses = symmetric_losses(lab, network, split)
        if epoch <= spec.growth_epochs:
            taken = spec.growth * ((epoch - 1) // spec.growth_interval)
            labeled = lowest_of_each_class(losses, split.labels, is_clean, taken)
        else:
            if epoch > spec.growth_epochs + spec.loss_epochs:
                losses = losses - symmetric_losses(
                    lab, train_virtual(spec, lab, stage, network, split, epoch), split
                )
            labeled = lowest(losses, half)
        of_set = losses[:size]
        ranks = unit_ranks(of_set)
        unlabeled = (~labeled[:size]).nonzero().flatten()
        lab.record_isolation(stage, epoch, ranks, unlabeled, final=epoch == epochs)
        return labeled

    network = lab.new_network("asd")
    train_mixmatch(lab, stage, network, split, spec, epochs, choose_labeled)
    return stage.finish(copy_state(network))


def lowest_of_each_class(losses: Tensor, labels: Tensor, is_clean: Tensor, count: int) -> Tensor:
    """Bool ``[N]``: the clean samples, and of each label ``count`` others of the lowest loss
    (ASD.py, class_aware_loss_guided_split)."""
    labeled = is_clean.clone()
    for label in labels.unique():
        rows = ((labels == label) & ~is_clean).nonzero().flatten()
        labeled[rows[losses[rows].argsort(stable=True)[:count]]] = True
    return labeled


def train_virtual(
    spec: Asd, lab: TrainingDefense, stage: StageRun, network: Network, split: Split, epoch: int
) -> Network:
    """A copy of ``network`` after an epoch of ordinary training of its later half (ASD.py, train_the_virtual_model).

    That half is, in the order of the parameters, what follows the first; in ResNet-18 the authors' last two stages and
    the last layer.
    """
    device = lab.compute.device
    virtual = load_state(lab.new_network("asd"), copy_state(network), device)
    parameters = list(virtual.parameters())
    for parameter in parameters[: len(parameters) // 2]:
        parameter.requires_grad_(False)
    optimizer = torch.optim.Adam(parameters[len(parameters) // 2 :], lr=spec.meta_learning_rate)
    rows = torch.arange(len(split), device=device)
    train_for_an_epoch(lab, virtual, split, rows, optimizer, stage.planned.stream, epoch)
    return virtual
