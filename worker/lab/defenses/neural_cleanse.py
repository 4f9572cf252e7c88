"""Neural Cleanse (Wang et al. 2019).

For every class, find the smallest mask and a pattern that make the model predict it for all clean images (equation 2).
For the target of a backdoor the mask is far smaller than for other classes: its L1 norm is an outlier by the median
absolute deviation (section 4.2). The inverted trigger is then unlearned: the model is fine-tuned on clean images with
the trigger and their true labels (section 6.2).
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.defenses.detection import NeuralCleanse
from worker.lab.compute import derive_seed
from worker.lab.defenses.base import DetectionDefense, copy_state
from worker.lab.defenses.clean_set import CleanSet
from worker.lab.defenses.detection import median_and_deviation
from worker.lab.defenses.repair import copy_network, finish_repair, load_network, small_set_recipe
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun
from worker.lab.training import NO_AUGMENT, Batch, Objective, constant, train

MIN_STEPS = 20  # per epoch: as many as 5 % of CIFAR-10 give
PATIENCE = 5  # consecutive epochs of success, or of failure, before the cost changes (authors' code)
FACTOR = 2.0  # the cost is multiplied by it, and divided by its 1.5th power (authors' gtsrb_visualize_example.py:62)
ROUNDING = 1e-6  # keeps the inverse of tanh finite


class InvertedTriggers(Network):
    """A mask ``[K, 1, H, W]`` and a pattern ``[K, C, H, W]`` for every class, uniform in [0, 1] at the start.

    Each is ``tanh(t) / 2 + 1 / 2`` of a parameter ``t``, as in the authors' code (visualizer.py). The learning rate
    refers to ``t``: with a sigmoid the same rate would move masks half as fast.
    """

    def __init__(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> None:
        super().__init__(shape[0])
        device = generator.device

        def uniform(*size: int) -> nn.Parameter:
            start = torch.rand(size, device=device, generator=generator)
            return nn.Parameter(((2 * start - 1) * (1 - ROUNDING)).atanh())

        self.mask_tanh = uniform(classes, 1, *shape[1:])
        self.pattern_tanh = uniform(classes, *shape)

    @property
    def masks(self) -> Tensor:
        return self.mask_tanh.tanh() / 2 + 0.5

    @property
    def patterns(self) -> Tensor:
        return self.pattern_tanh.tanh() / 2 + 0.5


def blend_pattern(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    """``(1 - mask) x + mask pattern`` on float images."""
    return (1 - mask) * x + mask * pattern


def mask_norms(masks: Tensor) -> Tensor:
    """L1 norms ``[K]`` of masks ``[K, 1, H, W]``."""
    return masks.sum((1, 2, 3))


def anomaly_index(sizes: Tensor) -> Tensor:
    """How many deviations each size is below the median: ``(median - size) / (1.4826 MAD)``.

    1.4826 scales the median absolute deviation to the standard deviation of a normal distribution.
    """
    median, deviation = median_and_deviation(sizes)
    return ((median - sizes.double()) / deviation.clamp(min=1e-12)).float()


class TriggerSearch:
    """The inversion of all classes' triggers; costs and smallest successful masks are in the recipe's memory."""

    def __init__(self, spec: NeuralCleanse, triggers: InvertedTriggers, memory: dict[str, Tensor]) -> None:
        self.spec = spec
        self.memory = memory
        zeros = torch.zeros(len(triggers.masks), device=triggers.mask_tanh.device)
        memory |= {
            "cost": torch.full_like(zeros, spec.mask_cost),
            "hits": zeros.clone(),
            "seen": zeros.clone(),
        }
        memory |= {
            "worked": zeros.clone(),
            "failed": zeros.clone(),
            "size": torch.full_like(zeros, torch.inf),
        }
        memory |= {"mask": triggers.masks.detach().clone(), "pattern": triggers.patterns.detach().clone()}

    def objective(self, victim: Network) -> Objective:
        """Sum over classes of cross-entropy towards the class plus cost times the mask's L1 norm."""

        def objective(triggers: Network, batch: Batch) -> Tensor:
            assert isinstance(triggers, InvertedTriggers)
            masks, patterns = triggers.masks, triggers.patterns
            classes, images = len(masks), len(batch.x)
            # Every image under every class's trigger, in one forward pass: [K, B, C, H, W] to [K B, C, H, W].
            x = blend_pattern(batch.x, masks[:, None], patterns[:, None]).flatten(0, 1)
            targets = torch.arange(classes, device=x.device).repeat_interleave(images)
            logits = victim(x).float()
            self.memory["hits"] += (logits.argmax(1) == targets).view(classes, images).sum(1)
            self.memory["seen"] += images
            classification = F.cross_entropy(logits, targets, reduction="sum") / images
            return classification + (self.memory["cost"] * mask_norms(masks)).sum()

        return objective

    def after_epoch(self, network: Network, epoch: int) -> dict[str, float]:
        """Keep the smallest successful masks, and adapt each class's cost."""
        assert isinstance(network, InvertedTriggers)
        memory = self.memory
        with torch.no_grad():
            masks, patterns = network.masks.detach(), network.patterns.detach()
        rate = memory["hits"] / memory["seen"].clamp(min=1)
        works = rate >= self.spec.success
        better = works & (mask_norms(masks) < memory["size"])
        memory["size"] = torch.where(better, mask_norms(masks), memory["size"])
        for name, new in (("mask", masks), ("pattern", patterns)):
            memory[name] = torch.where(better[:, None, None, None], new, memory[name])
        memory["worked"] = torch.where(works, memory["worked"] + 1, 0)
        memory["failed"] = torch.where(works, 0, memory["failed"] + 1)
        up, down = memory["worked"] >= PATIENCE, memory["failed"] >= PATIENCE
        memory["cost"] = memory["cost"] * torch.where(up, FACTOR, 1.0) / torch.where(down, FACTOR**1.5, 1.0)
        memory["worked"][up], memory["failed"][down] = 0, 0
        memory["hits"], memory["seen"] = torch.zeros_like(rate), torch.zeros_like(rate)
        return {"mask_norm": float(mask_norms(masks).median()), "inversion_success": float(rate.mean())}


def run(spec: NeuralCleanse, lab: DetectionDefense) -> Network:
    """Invert a trigger for every class, flag the outliers, and unlearn them."""
    assert lab.clean is not None
    clean = lab.clean
    detection = lab.stage("detection", lambda stage: invert_triggers(spec, lab, clean, stage))
    if spec.then == "nothing":
        return lab.victim
    return load_network(
        lab, lab.stage("repair", lambda stage: unlearn_triggers(spec, lab, clean, stage, detection))
    )


def invert_triggers(spec: NeuralCleanse, lab: DetectionDefense, clean: CleanSet, stage: StageRun) -> Outcome:
    """Find a trigger for every class. Leaves masks, patterns, mask norms, anomaly indices, and the flagged classes.

    For a class without a successful trigger the last mask counts.
    """
    device = lab.compute.device
    images = clean.images
    labels = torch.cat([clean.fit.labels, clean.held_out.labels])
    generator = torch.Generator(device).manual_seed(derive_seed(stage.planned.stream, "triggers"))
    triggers = InvertedTriggers(
        lab.facts.classes, (lab.facts.channels, lab.facts.height, lab.facts.width), generator
    )
    recipe = small_set_recipe(
        lab, len(images), epochs=spec.epochs, learning_rate=spec.learning_rate, schedule=constant
    )
    search = TriggerSearch(spec, triggers, recipe.memory)
    victim = copy_network(lab, lab.victim).eval().requires_grad_(False)
    recipe = replace(recipe, augment=NO_AUGMENT, objective=search.objective(victim))
    recipe.optimizer = lambda parameters, recipe: torch.optim.Adam(
        parameters, lr=recipe.learning_rate, betas=(0.5, 0.9)
    )
    # A small clean set is repeated within an epoch: the masks take many steps to converge.
    repeats = math.ceil(MIN_STEPS / math.ceil(len(images) / recipe.batch_size))
    rows = torch.arange(len(images), device=device).repeat(repeats)
    train(stage, triggers, images, labels, recipe, rows=rows, after_epoch=search.after_epoch)
    memory = recipe.memory
    failed = memory["size"].isinf()
    with torch.no_grad():
        memory["size"] = torch.where(failed, mask_norms(triggers.masks), memory["size"])
        for name, last in (("mask", triggers.masks), ("pattern", triggers.patterns)):
            memory[name] = torch.where(failed[:, None, None, None], last, memory[name])
    anomaly = anomaly_index(memory["size"])
    flagged = (anomaly > spec.anomaly_threshold) & ~failed
    median, deviation = median_and_deviation(memory["size"])
    lab.record(
        stage,
        spec.epochs,
        {
            "anomaly_index": anomaly.max().item(),  # of the model: that of its smallest mask (section 4.2)
            "smallest_mask_norm": memory["size"].min().item(),
            "median_mask_norm": median.item(),
            "mad_mask_norm": deviation.item(),
        },
    )
    lab.record_flagged_classes(stage, flagged)
    names = [lab.facts.class_names[c] for c in flagged.nonzero().flatten().tolist()]
    if not names:
        lab.warn(stage, "no class was flagged; the model is left as it is")
    elif len(names) > lab.facts.classes / 2:
        lab.warn(stage, f"{len(names)} of {lab.facts.classes} classes were flagged, too many for a detection")
    if failed.any():
        lab.warn(stage, f"no successful trigger was found for {int(failed.sum())} of {len(failed)} classes")
    return stage.finish(
        {
            "mask": memory["mask"],
            "pattern": memory["pattern"],
            "class_mask_norm": memory["size"],
            "class_anomaly_index": anomaly,
            "class_flagged": flagged,
        }
    )


def unlearn_triggers(
    spec: NeuralCleanse, lab: DetectionDefense, clean: CleanSet, stage: StageRun, detection: Outcome
) -> Outcome:
    """Fine-tune on clean images, a share of them with one of the flagged triggers, under true labels."""
    network = copy_network(lab, lab.victim)
    flagged = detection.tensors["class_flagged"].nonzero().flatten()
    if not len(flagged):
        return stage.finish(copy_state(network))
    masks, patterns = (
        detection.tensors[name][flagged].to(lab.compute.device) for name in ("mask", "pattern")
    )

    def objective(network: Network, batch: Batch) -> Tensor:
        device, size = batch.x.device, len(batch.x)
        is_stamped = torch.rand(size, device=device, generator=batch.generator) < spec.stamped_share
        which = torch.randint(len(masks), (size,), device=device, generator=batch.generator)
        mask = masks[which] * is_stamped[:, None, None, None]
        return F.cross_entropy(network(blend_pattern(batch.x, mask, patterns[which])).float(), batch.labels)

    recipe = small_set_recipe(
        lab, len(clean.fit), epochs=spec.unlearning_epochs, learning_rate=spec.unlearning_learning_rate
    )
    lab.fit_on(stage, network, clean.fit, replace(recipe, objective=objective))
    return finish_repair(lab, stage, network, clean)
