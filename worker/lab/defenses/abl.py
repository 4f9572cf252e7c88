"""Anti-Backdoor Learning (Li et al. 2021).

Stage 1 trains with a loss that is increased again where it falls below gamma. The loss of clean samples stays near
gamma; that of poisoned ones, whose trigger is learned in a few steps, still falls lowest. The share with the lowest
ranks is isolated. Stage 2 trains on the rest, then unlearns the isolated samples.
"""

from dataclasses import replace

import torch
from torch import Tensor

from app.specs.defenses.abl import Abl
from worker.lab.compute import derive_seed
from worker.lab.data.augment import Augment
from worker.lab.data.datasets import Split
from worker.lab.defenses.base import TrainingDefense, copy_state, load_state
from worker.lab.evaluation import accuracy, sample_losses
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed
from worker.lab.training import Loss, constant, step_down

NETWORK = "network."  # before the names of a network's tensors that are stored beside others
PATIENCE = 5
"""Consecutive epochs below the accuracy floor after which unlearning stops. Accuracy drops before it recovers: the
first unlearning steps cost most (digits: 0.98, then 0.94 after the first epoch, 0.97 after the fifth)."""


def isolation_loss(spec: Abl) -> Loss:
    """Local gradient ascent ``sign(l - gamma) l`` or flooding ``|l - gamma| + gamma`` (section 4.2;
    Ishida et al. 2020).

    ``l`` is the batch's mean loss (bboylyg/ABL, backdoor_isolation.py:107; BackdoorBench, defense/abl.py:67), or each
    sample's with the mean taken afterwards.
    """

    def keep_near_gamma(loss: Tensor) -> Tensor:
        if spec.isolation_loss == "flooding":
            return (loss - spec.gamma).abs() + spec.gamma
        # The sign is a constant factor: no gradient flows through it.
        return torch.sign(loss.detach() - spec.gamma) * loss

    if spec.isolation_reduction == "batch_mean":
        return lambda losses, rows: keep_near_gamma(losses.mean())
    return lambda losses, rows: keep_near_gamma(losses).mean()


def unlearning_loss(spec: Abl, isolated: Tensor) -> Loss:
    """What unlearning minimizes; ``isolated`` is a bool mask over the training set.

    joint: ``E_rest[l] - E_isolated[l]`` (section 4.3, equation 4). ascent: ``-E_isolated[l]`` (bboylyg/ABL,
    backdoor_unlearning.py:61).
    unlikelihood: ``E_rest[l] + E_isolated[-log(1 - p)]`` with ``p = exp(-l)`` the label's probability: like joint it
    drives p to zero, but its gradient vanishes once that is done, where joint's keeps growing.
    """

    def mean_where(values: Tensor, mask: Tensor) -> Tensor:
        return (values * mask).sum() / mask.sum().clamp(min=1)

    def loss(losses: Tensor, rows: Tensor) -> Tensor:
        is_isolated = isolated[rows]
        rest = mean_where(losses, ~is_isolated)
        if spec.unlearning_objective == "unlikelihood":
            # The small constant keeps log and gradient finite where p rounds to one.
            return rest + mean_where(-torch.log(-torch.expm1(-losses - 1e-7)), is_isolated)
        return rest - mean_where(losses, is_isolated)

    return loss


def smoothed_ranks(window: list[Tensor]) -> Tensor:
    """Mean over epochs of each sample's loss rank, in [0, 1], 0 the lowest loss; ``window`` holds losses ``[N]``.

    The order of a single epoch is noisy; ranks, unlike losses, give every epoch the same weight.
    """
    ranks = [losses.argsort(stable=True).argsort(stable=True).double() for losses in window]
    return torch.stack(ranks).mean(0) / max(1, len(window[0]) - 1)


def lowest_ranked(ranks: Tensor, ratio: float) -> Tensor:
    """Rows of the lowest-ranked share, at least one."""
    return ranks.argsort(stable=True)[: max(1, round(ratio * len(ranks)))]


def run(spec: Abl, lab: TrainingDefense) -> Network:
    """Isolate, fine-tune, and unlearn."""
    isolation = lab.stage("isolation", lambda stage: isolate_samples(spec, lab, stage))
    finetuned = lab.stage("finetune", lambda stage: finetune(spec, lab, stage, isolation))
    unlearned = lab.stage(
        "unlearning", lambda stage: unlearn_isolated(spec, lab, stage, isolation, finetuned)
    )
    return load_prefixed_network(lab, unlearned)


def isolate_samples(spec: Abl, lab: TrainingDefense, stage: StageRun) -> Outcome:
    """Stage 1. Leaves ``suspicion`` ``[N]``, 1 the most suspicious, ``isolated`` rows, ``losses``, and the network."""
    network = lab.new_network("abl")
    recipe = replace(
        lab.recipe,
        epochs=spec.isolation_epochs,
        learning_rate=spec.isolation_learning_rate,
        schedule=constant,
        weight_decay=_weight_decay(spec, lab),
        loss=isolation_loss(spec),
        augment=lab.recipe.augment if spec.isolation_augmentation else Augment(),
        memory={},
    )
    memory = recipe.memory

    def rank(network: Network, epoch: int) -> None:
        losses = sample_losses(network, lab.images, lab.labels, lab.compute)
        window = memory.get("losses", losses.new_empty((0, len(losses))))
        memory["losses"] = torch.cat([window, losses[None]])[-spec.ranking_window :]
        ranks = smoothed_ranks(list(memory["losses"]))
        isolated = lowest_ranked(ranks, spec.isolation_ratio)
        lab.record_isolation(stage, epoch, 1 - ranks, isolated, final=epoch == spec.isolation_epochs)

    lab.fit(stage, network, recipe, after_epoch=rank)
    ranks = smoothed_ranks(list(memory["losses"]))
    return stage.finish(
        {
            "suspicion": 1 - ranks,
            "isolated": lowest_ranked(ranks, spec.isolation_ratio),
            "losses": memory["losses"][-1],
            **prefixed_state(network),
        }
    )


def finetune(spec: Abl, lab: TrainingDefense, stage: StageRun, isolation: Outcome) -> Outcome:
    """First part of stage 2: train on the samples that were not isolated, without the hold-out."""
    network = load_prefixed_network(lab, isolation)
    recipe = replace(
        lab.recipe,
        epochs=spec.finetune_epochs,
        learning_rate=spec.finetune_learning_rate,
        schedule=step_down(2 / 3),  # 0.1, then 0.01 from epoch 40 of 60 (backdoor_unlearning.py:225)
        weight_decay=_weight_decay(spec, lab),
        augment=replace(lab.recipe.augment, cutout=spec.finetune_cutout or lab.recipe.augment.cutout),
    )
    held_out = _holdout_rows(spec, lab, isolation)
    kept = torch.ones_like(lab.labels, dtype=torch.bool)
    kept[isolation.tensors["isolated"].to(kept.device)] = False
    kept[held_out] = False
    lab.fit(stage, network, recipe, rows=kept.nonzero().flatten())
    lab.record_before_unlearning(stage, spec.finetune_epochs, network)
    return stage.finish(prefixed_state(network))


def unlearn_isolated(
    spec: Abl, lab: TrainingDefense, stage: StageRun, isolation: Outcome, finetuned: Outcome
) -> Outcome:
    """Second part of stage 2 (section 4.3): unlearn the isolated samples, monitoring accuracy on the hold-out."""
    network = load_prefixed_network(lab, finetuned)
    isolated = torch.zeros_like(lab.labels, dtype=torch.bool)
    isolated[isolation.tensors["isolated"].to(isolated.device)] = True
    held_out = _holdout_rows(spec, lab, isolation)
    anchor = _anchor_rows(spec, lab, isolation)
    anchor = anchor[~torch.isin(anchor, torch.cat([isolated.nonzero().flatten().cpu(), held_out.cpu()]))]
    trained_on = torch.cat([isolated.nonzero().flatten().cpu(), anchor])
    hold_out, isolated_split = lab.split.rows(held_out), lab.split.rows(isolated)
    retained = _retained_split(lab, isolation)
    accuracy_before = accuracy(network, retained, lab.compute)
    floor = accuracy(network, hold_out, lab.compute) - spec.max_accuracy_drop if len(hold_out) else 0.0
    # In memory, and so in every checkpoint: a resumed run ends at the same epoch with the same weights.
    memory = {"below": torch.tensor(0), **prefixed_state(network)}

    def monitor(network: Network, epoch: int) -> dict[str, float]:
        values = {"isolated_accuracy": accuracy(network, isolated_split, lab.compute)}
        if len(hold_out):
            values["holdout_accuracy"] = accuracy(network, hold_out, lab.compute)
            if values["holdout_accuracy"] < floor:
                memory["below"] = memory["below"] + 1
                return values
        memory.update({"below": torch.tensor(0), **prefixed_state(network)})
        return values

    recipe = replace(
        lab.recipe,
        epochs=spec.unlearning_epochs,
        steps=spec.unlearning_steps,
        learning_rate=spec.unlearning_learning_rate,
        schedule=constant,
        weight_decay=_weight_decay(spec, lab),
        augment=lab.recipe.augment if spec.unlearning_augmentation else Augment(),
        loss=unlearning_loss(spec, isolated),
        stop=lambda: int(memory["below"]) >= PATIENCE,
        memory=memory,
    )
    lab.fit(stage, network, recipe, rows=trained_on, after_epoch=monitor)
    if int(memory["below"]):
        lab.warn(
            stage,
            "unlearning ended below the accuracy floor; the weights of the last epoch above it were kept",
        )
    network.load_state_dict(select_prefixed(memory, NETWORK))
    accuracy_after = accuracy(network, retained, lab.compute)
    if accuracy_before - accuracy_after > spec.max_accuracy_drop:
        lab.warn(
            stage,
            f"unlearning cost accuracy: on the training images to be retained it fell from {accuracy_before:.0%} to "
            f"{accuracy_after:.0%}",
        )
    accuracy_on_isolated = accuracy(network, isolated_split, lab.compute)
    if accuracy_on_isolated > 0.5:
        lab.warn(
            stage,
            f"after unlearning {accuracy_on_isolated:.0%} of the isolated samples are still given their label; the "
            "backdoor may be intact",
        )
    return stage.finish(prefixed_state(network))


def _weight_decay(spec: Abl, lab: TrainingDefense) -> float:
    return lab.recipe.weight_decay if spec.weight_decay is None else spec.weight_decay


def _anchor_rows(spec: Abl, lab: TrainingDefense, isolation: Outcome) -> Tensor:
    """Rows trained on as usual while the isolated ones are unlearned; a row may occur several times.

    The paper takes all rows that were not isolated. But most of the poison is among them, and teaches the backdoor
    again in every step; so for unlikelihood only the least suspicious tenth of the suspected target class is taken,
    repeated to the weight of an average class. Ascent takes none.
    """
    labels = lab.labels.cpu()
    target = _suspected_target(lab, isolation)
    if spec.unlearning_objective == "ascent":
        return torch.empty(0, dtype=torch.int64)
    if spec.unlearning_objective == "joint":
        isolated = isolation.tensors["isolated"].cpu()
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[isolated] = False
        return kept.nonzero().flatten()
    order = isolation.tensors["suspicion"].cpu().argsort(stable=True)
    if target is None:  # several target classes, or no attack: every class may contain poison
        classes = (order[labels[order] == label] for label in labels.unique())
        return torch.cat([rows[: -(-len(rows) // 3)] for rows in classes])
    others = order[labels[order] != target]
    own = order[labels[order] == target]
    own = own[: -(-len(own) // 10)]
    return torch.cat([others, own.repeat(max(1, round(len(others) / (lab.facts.classes - 1) / len(own))))])


def _holdout_rows(spec: Abl, lab: TrainingDefense, isolation: Outcome) -> Tensor:
    """Rows to monitor accuracy with, from the less suspicious half of all classes but the suspected target.

    A poisoned sample among them would have the target's label, and would make successful unlearning look like a loss
    of accuracy.
    """
    unsuspicious = _unsuspicious_rows(lab, isolation).cpu()
    generator = torch.Generator().manual_seed(derive_seed("abl hold-out", lab.seed))
    order = torch.randperm(len(unsuspicious), generator=generator)
    return (
        unsuspicious[order[: round(spec.holdout_ratio * len(lab.labels))]].sort().values.to(lab.labels.device)
    )


def _unsuspicious_rows(lab: TrainingDefense, isolation: Outcome) -> Tensor:
    """Rows of the less suspicious half of all samples, without the suspected target class."""
    labels, suspicion = lab.labels.cpu(), isolation.tensors["suspicion"].cpu()
    target = _suspected_target(lab, isolation)
    unsuspicious = suspicion <= suspicion.median()
    if target is not None:
        unsuspicious &= labels != target
    return unsuspicious.nonzero().flatten().to(lab.labels.device)


def _retained_split(lab: TrainingDefense, isolation: Outcome) -> Split:
    """Samples on which unlearning should keep the accuracy: the other classes, without the isolated samples.

    Without a suspected target any class may contain poison, and only the less suspicious half is used.
    """
    target = _suspected_target(lab, isolation)
    if target is None:
        rows = _unsuspicious_rows(lab, isolation)
    else:
        others = lab.labels != target
        others[isolation.tensors["isolated"].to(others.device)] = False
        rows = others.nonzero().flatten()
    return lab.split.rows(rows)


def _suspected_target(lab: TrainingDefense, isolation: Outcome) -> int | None:
    """The class that is taken to be the target; None if there is no clear one."""
    return majority_class(lab.labels.cpu()[isolation.tensors["isolated"].cpu()])


def majority_class(isolated_labels: Tensor) -> int | None:
    """The label of more than half of the isolated samples; None if there is none."""
    label = isolated_labels.mode().values
    count = int((isolated_labels == label).sum())
    return int(label) if 2 * count > len(isolated_labels) else None


def prefixed_state(network: Network) -> dict[str, Tensor]:
    """A copy of the network's tensors, named ``network.*`` to be stored beside others."""
    return add_prefix(NETWORK, copy_state(network))


def load_prefixed_network(lab: TrainingDefense, outcome: Outcome) -> Network:
    """The network that a stage stored by `prefixed_state`."""
    return load_state(lab.new_network("abl"), select_prefixed(outcome.tensors, NETWORK), lab.compute.device)
