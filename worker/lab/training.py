"""The training loop that every attack and defense uses."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.training import FineTuning, TrainingSpec
from worker.lab import graphs
from worker.lab.compute import LAYOUT, seeded_generator, seeded_global_generator
from worker.lab.contracts import NonFiniteLossError
from worker.lab.data.augment import Augment
from worker.lab.data.streamed import Images, iterate_batches
from worker.lab.networks import Network
from worker.lab.sgd import Optimizer, Sgd
from worker.lab.stages import StageRun
from worker.lab.tensor_names import add_prefix, select_prefixed

Loss = Callable[[Tensor, Tensor], Tensor]
"""(per-sample cross-entropy ``[B]``, rows of the training set ``[B]``) to the scalar that is minimized.

It must be a pure function of these: on a GPU it is captured once and replayed (`graphs`)."""


@dataclass(frozen=True)
class Batch:
    """The batch that an objective is given."""

    x: Tensor
    """Augmented images, float ``[B, C, H, W]`` in [0, 1]."""
    labels: Tensor
    """int64 ``[B]``."""
    rows: Tensor
    """Rows of the training set ``[B]``."""
    generator: torch.Generator
    """The epoch's generator, on the device; an objective must draw random numbers from it alone."""


Objective = Callable[[Network, Batch], Tensor]
"""The scalar that is minimized, where it is not a function of the network's cross-entropies alone."""

Schedule = Callable[[float], float]
"""Share of the training that is done, in [0, 1), to a factor on the learning rate."""

AfterEpoch = Callable[[Network, int], dict[str, float] | None]
"""Called with the network and the number of the epoch just done, from 1; returns numbers to record."""


ChooseRows = Callable[[int], Tensor]
"""Called before every epoch with its number, from 1; returns the rows of the training set to train on."""


def record_nothing(network: Network, epoch: int) -> None:
    """The default hook."""


def mean_loss(losses: Tensor, rows: Tensor) -> Tensor:
    """Ordinary empirical risk."""
    return losses.mean()


def cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def constant(share: float) -> float:
    return 1.0


def one_cycle(share: float) -> float:
    """Linear increase over the first fifth, then linear decrease to zero."""
    return share / 0.2 if share < 0.2 else (1 - share) / 0.8


def step_down(*milestones: float) -> Schedule:
    """A tenth of the rate from each of ``milestones``, shares of the training, onwards."""
    return lambda share: 10.0 ** -sum(share >= milestone for milestone in milestones)


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "constant": constant, "one_cycle": one_cycle}


NO_AUGMENT = Augment()

MakeOptimizer = Callable[[Iterable[torch.nn.Parameter], "Recipe"], Optimizer]
"""The optimizer's ``step`` gets a closure that computes loss and gradients, and may call it several times."""


def sgd(parameters: Iterable[torch.nn.Parameter], recipe: "Recipe") -> Optimizer:
    """SGD with Nesterov momentum."""
    return Sgd(
        parameters,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )


def adam(parameters: Iterable[torch.nn.Parameter], recipe: "Recipe") -> Optimizer:
    """Adam with torch's defaults."""
    return torch.optim.Adam(parameters, lr=recipe.learning_rate)


@dataclass
class Recipe:
    """Hyperparameters, loss and hooks of one training."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: Schedule = cosine
    augment: Augment = NO_AUGMENT
    loss: Loss = mean_loss
    objective: Objective | None = None
    """Replaces ``loss`` if not None."""
    optimizer: MakeOptimizer = sgd
    head_only: bool = False
    """Train the last layer alone, with the network in evaluation mode: all other tensors stay as they are."""
    steps: int | None = None
    """Replaces ``epochs`` if not None: training ends after this many steps, even in the middle of an epoch."""
    stop: Callable[[], bool] = lambda: False
    """Called before every epoch; True ends the training."""
    memory: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the caller's hooks keep between epochs; part of every checkpoint."""

    @classmethod
    def of(cls, spec: TrainingSpec, augment: Augment) -> "Recipe":
        return cls(
            epochs=spec.epochs,
            batch_size=spec.batch_size,
            learning_rate=spec.learning_rate,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            schedule=SCHEDULES[spec.schedule],
            augment=augment,
        )

    def tuned(self, spec: FineTuning) -> "Recipe":
        """The recipe for fine-tuning."""
        return replace(
            self,
            epochs=spec.epochs,
            learning_rate=spec.learning_rate,
            weight_decay=spec.weight_decay,
            schedule=SCHEDULES[spec.schedule],
            augment=self.augment if spec.augment else NO_AUGMENT,
            head_only=spec.trained_layers == "head",
            memory={},
        )


def train(
    run: StageRun,
    network: Network,
    images: Images,
    labels: Tensor,
    recipe: Recipe,
    *,
    rows: Tensor | ChooseRows | None = None,
    after_epoch: AfterEpoch = record_nothing,
) -> int:
    """Train ``network`` in place; returns the epochs done.

    ``images`` uint8 ``[N, C, H, W]`` and ``labels`` int64 ``[N]`` are on the device of ``run``, or the images are
    streamed to it; ``rows`` restricts training to some of them, which may differ by epoch.
    Resumes from the stage's checkpoint if there is one.
    The order of samples and all augmentation follow from the stage's stream and the epoch, so a resumed run equals an
    uninterrupted one.
    Raises NonFiniteLossError after restoring the network to the end of the last finite epoch.
    """
    device = run.compute.device
    network.to(device=device).to(memory_format=LAYOUT)  # type: ignore[call-overload]
    if recipe.head_only:
        network.requires_grad_(False)
        network.head.requires_grad_(True)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = recipe.optimizer(trained, recipe)
    chosen = rows.to(device) if isinstance(rows, Tensor) else torch.arange(len(labels), device=device)
    if recipe.steps is not None:
        full, last = divmod(len(chosen), recipe.batch_size)
        recipe = replace(recipe, epochs=math.ceil(recipe.steps / max(1, full + (last > 1))))
    start = _restore(run, network, optimizer, recipe)
    gradients = _make_gradients(run, network, optimizer, recipe, len(chosen))
    epoch = start
    while epoch < recipe.epochs and not recipe.stop():
        epoch += 1
        before = _snapshot(network)
        if rows is not None and not isinstance(rows, Tensor):
            chosen = rows(epoch).to(device)
        network.train(not recipe.head_only)
        generator = seeded_generator(device, run.planned.stream, epoch)
        order = chosen[torch.randperm(len(chosen), device=device, generator=generator)]
        # Batch normalization cannot train on a single image, so a last batch of one is left out.
        batches = [batch for batch in order.split(recipe.batch_size) if len(batch) > 1] or [order]
        if recipe.steps is not None:
            batches = batches[: recipe.steps - (epoch - 1) * len(batches)]
        losses = torch.zeros(len(batches), device=device)
        with seeded_global_generator(device, "dropout", run.planned.stream, epoch):
            read = iterate_batches(images, batches)
            for step, (batch, pixels) in enumerate(zip(batches, read, strict=True)):
                run.recorder.check()
                share = (epoch - 1 + step / len(batches)) / recipe.epochs
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * recipe.schedule(share)
                x = run.compute.to_input(recipe.augment(pixels, generator))
                losses[step] = _optimizer_step(
                    optimizer, partial(gradients, Batch(x, labels[batch], batch, generator))
                )
        with _restored_on_error(before, run, network, f"epoch {epoch}, batch"):
            _check_finite(losses, network)
        with _restored_on_error(before, run, network, f"epoch {epoch}, after batch {len(batches)}:"):
            values = {"train_loss": losses.mean().item()} | (after_epoch(network, epoch) or {})
        run.epoch_done(epoch, recipe.epochs, values)
        run.checkpoint(partial(_checkpoint_state, network, optimizer, recipe, epoch))
    if recipe.head_only:
        network.requires_grad_(True)
    optimizer.zero_grad(set_to_none=True)  # else the gradients occupy memory as long as the network exists
    return epoch


def _cross_entropy_objective(forward: Callable[[Tensor], Tensor], loss: Loss) -> Objective:
    """The ordinary objective: ``loss`` of each sample's cross-entropy."""

    def objective(network: Network, batch: Batch) -> Tensor:
        logits = forward(batch.x)
        return loss(F.cross_entropy(logits.float(), batch.labels, reduction="none"), batch.rows)

    return objective


def _make_gradients(
    run: StageRun, network: Network, optimizer: Optimizer, recipe: Recipe, samples: int
) -> Callable[[Batch], Tensor]:
    """A function that computes a batch's loss, detached, and leaves the gradients in the parameters."""
    objective = recipe.objective or _cross_entropy_objective(
        torch.compile(network) if run.compute.compile else network, recipe.loss
    )

    def gradients(batch: Batch) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with run.compute.autocast():
            loss = objective(network, batch)
        loss.backward()
        return loss.detach()

    # A custom objective may draw random numbers, which a graph would repeat in every replay.
    ordinary = recipe.objective is None and not run.compute.compile
    batches = recipe.epochs * (samples // recipe.batch_size)
    if run.compute.device.type != "cuda" or not ordinary or batches < graphs.MIN_BATCHES:
        return gradients
    unused = torch.Generator(run.compute.device)
    graphed = graphs.GraphedGradients(
        lambda x, labels, rows: gradients(Batch(x, labels, rows, unused)),
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        recipe.batch_size,
        run.recorder.log,
    )
    return lambda batch: graphed(batch.x, batch.labels, batch.rows)


def _optimizer_step(optimizer: Optimizer, gradients: Callable[[], Tensor]) -> Tensor:
    """One step of the optimizer; returns the loss of its last call of the closure."""
    last = torch.empty(0)

    def closure() -> float:
        nonlocal last
        last = gradients()
        return last  # type: ignore[return-value]  # torch's stub wants a float, which would synchronize with the device

    optimizer.step(closure)
    return last


@contextmanager
def _restored_on_error(
    before: dict[str, Tensor], run: StageRun, network: Network, where: str
) -> Iterator[None]:
    """On NonFiniteLossError restore and store the network as before this epoch, and prefix the error with ``where``."""
    try:
        yield
    except NonFiniteLossError as error:
        network.load_state_dict(before)
        run.save_last_finite(before)
        raise NonFiniteLossError(f"{where} {error}") from error


def _check_finite(losses: Tensor, network: Network) -> None:
    """Check the losses of all batches and the network together, so that an epoch synchronizes with the device once."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        raise NonFiniteLossError(f"{int(bad[0]) + 1}: the loss became {losses[bad[0]].item()}")
    # Running statistics can overflow while the losses, which use each batch's own statistics, are still finite.
    if not torch.stack([torch.isfinite(tensor).all() for tensor in network.state_dict().values()]).all():
        raise NonFiniteLossError(
            f"{len(losses)}: the network's parameters or statistics are no longer finite"
        )


def _snapshot(network: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _checkpoint_state(
    network: Network, optimizer: Optimizer, recipe: Recipe, epoch: int
) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = add_prefix("network.", network.state_dict())
    for i, parameter in enumerate(network.parameters()):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{i}.{name}"] = value
    tensors |= add_prefix("memory.", recipe.memory)
    return tensors, {"epoch": epoch}


def _restore(run: StageRun, network: Network, optimizer: Optimizer, recipe: Recipe) -> int:
    """Load the checkpoint, if any; returns its epoch, else 0."""
    saved = run.resume()
    if saved is None:
        return 0

    def part(prefix: str) -> dict[str, Tensor]:
        return select_prefixed(saved.tensors, prefix, run.compute.device)

    network.load_state_dict(part("network."))
    parameters = list(network.parameters())
    for key, tensor in part("optimizer.").items():
        i, name = key.split(".", 1)
        # Adam's step counters are scalars, which torch keeps on the CPU.
        optimizer.state[parameters[int(i)]][name] = tensor if tensor.ndim else tensor.cpu()
    recipe.memory.clear()
    recipe.memory.update(part("memory."))
    return int(saved.facts["epoch"])
