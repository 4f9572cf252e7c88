"""Any classifier as a victim: what attacks and defenses need is found by running it once.

Nothing depends on the names or classes of an architecture's layers, only on the order in which they run and on the
shapes of what they return.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs.models.base import Traits
from worker.lab.contracts import LabError
from worker.lab.networks.base import Network

MAPS = 3  # resolutions that a network with spatial maps has at least
DOWNSAMPLING = (
    1.5  # ratio of two sides from which the smaller map begins a new stage; unpadded convolutions do not
)
BLOCK_DOWNSAMPLING = 4  # a module that reduces the side by as much consists of stages
_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)


class UntraceableError(LabError):
    """A network in which something that every method needs was not found."""


@dataclass(frozen=True)
class Layout:
    """Names of modules of a network."""

    head: str
    """The last linear layer, or convolution with as many outputs as there are classes."""
    consumer: str
    """The layer that reads the last feature map, whose channels can be pruned there; the head if there is no map."""
    channels: int
    """Channels that the consumer reads; its inputs are a multiple of them if it reads several positions."""
    stages: tuple[str, ...]
    """Modules whose outputs are the last feature map before each down-sampling, first to last."""
    channels_last: frozenset[str]
    """Those stages whose outputs are ``[N, H, W, C]``."""
    batch_norm: bool

    @property
    def spatial_maps(self) -> bool:
        return len(self.stages) >= MAPS

    def has(self, traits: Traits) -> bool:
        """Whether ``traits`` say of the architecture what was found."""
        return (self.batch_norm, self.spatial_maps) == (traits.batch_norm, traits.spatial_maps)


@dataclass(frozen=True)
class _Call:
    """One run of a module: shapes of its first input and of its output, and its place in the order of completion."""

    module: nn.Module
    taken: tuple[int, ...]
    given: tuple[int, ...]
    place: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """``(outputs, inputs, ...)`` of a linear layer or a convolution; empty for other modules."""
        is_layer = isinstance(self.module, nn.Linear | nn.Conv2d)
        return tuple(self.module.get_parameter("weight").shape) if is_layer else ()


def trace(model: nn.Module, x: Tensor, classes: int) -> Layout:
    """The layout of ``model``, from running it on square images ``x``, ``[N, C, H, W]``, which may be on ``meta``.

    Raises UntraceableError.
    """
    calls, logits = _run(model, x)
    if not isinstance(logits, Tensor) or logits.shape != (len(x), classes):
        found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise UntraceableError(f"the output must be logits [{len(x)}, {classes}]; it is {found}")
    layers = [(name, call) for name, call in calls.items() if call.weight_shape]
    head = next((name for name, call in reversed(layers) if call.weight_shape[0] == classes), None)
    if head is None:
        raise UntraceableError(f"no linear layer has the {classes} classes as its outputs")
    maps = list(_find_maps(calls, model, calls[head].place))
    stages = _last_of_each_resolution(maps)
    consumer, channels = head, calls[head].weight_shape[1]
    if stages:
        name, shape = stages[-1]
        after = [(n, c) for n, c in layers if c.place > calls[name].place and len(c.taken) in (2, 4)]
        if after and after[0][1].weight_shape[1] % shape[1] == 0:
            consumer, channels = after[0][0], shape[1]
    return Layout(
        head=head,
        consumer=consumer,
        channels=channels,
        stages=tuple(name for name, _ in stages),
        channels_last=frozenset(name for name, shape in stages if calls[name].given != shape),
        batch_norm=any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()),
    )


def _run(model: nn.Module, x: Tensor) -> tuple[dict[str, _Call], Any]:
    """The runs of all modules that run once, in the order in which they end, and what the model returns."""
    calls: dict[str, _Call] = {}
    repeated: set[str] = set()

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if name in calls:
            repeated.add(name)
        elif inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls[name] = _Call(module, tuple(inputs[0].shape), tuple(output.shape), len(calls))

    handles = [
        module.register_forward_hook(partial(record, name)) for name, module in model.named_modules() if name
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {name: call for name, call in calls.items() if name not in repeated}, logits


def _find_maps(calls: dict[str, _Call], model: nn.Module, end: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape ``[N, C, H, W]`` of every feature map on the trunk, before pooling and before the ``end``."""
    for name in sorted(_trunk(calls, model, ""), key=lambda name: calls[name].place):
        call = calls[name]
        if call.place >= end or isinstance(call.module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
            return
        if len(call.given) != 4 or (isinstance(call.module, _POOLS) and call.given[2:] == (1, 1)):
            continue
        n, a, b, c = call.given
        is_channels_last = a == b != c  # the images are square
        yield name, ((n, c, a, b) if is_channels_last else call.given)


def _trunk(calls: dict[str, _Call], module: nn.Module, prefix: str) -> Iterator[str]:
    """The modules through which the image passes one after the other: blocks are not entered, as they may branch."""
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        call = calls.get(name)
        is_list = call is None and isinstance(child, nn.ModuleList | nn.ModuleDict)
        if is_list or isinstance(child, nn.Sequential) or (call is not None and _has_stages(call)):
            inner = list(_trunk(calls, child, f"{name}."))
            yield from inner
            if inner or call is None:
                continue
        if call is not None:
            yield name


def _has_stages(call: _Call) -> bool:
    if len(call.taken) != 4 or not any(True for _ in call.module.children()):
        return False
    return len(call.given) == 2 or (
        len(call.given) == 4 and call.taken[2] >= BLOCK_DOWNSAMPLING * max(1, call.given[2])
    )


def _last_of_each_resolution(
    maps: list[tuple[str, tuple[int, ...]]],
) -> list[tuple[str, tuple[int, ...]]]:
    stages: list[tuple[str, tuple[int, ...]]] = []
    for name, shape in maps:
        if stages and stages[-1][1][2] < DOWNSAMPLING * shape[2]:
            stages.pop()
        stages.append((name, shape))
    return stages


class TwiceDifferentiableHardsigmoid(nn.Module):
    """torch's own, of MobileNetV3, has no second derivative, which I-BAU needs."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(x + 3) / 6
        return y


class TracedNetwork(Network):
    """A classifier of normalized images as a victim. Its tensors have the prefix ``model.``."""

    def __init__(self, model: nn.Module, channels: int, layout: Layout) -> None:
        super().__init__(channels)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Hardsigmoid):
                model.set_submodule(name, TwiceDifferentiableHardsigmoid())
        self.model = model
        self.layout = layout

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]  # the model names the layer
        return self.model.get_submodule(self.layout.head)  # type: ignore[return-value]

    @property
    def prunable_layer(self) -> nn.Module:
        return self.model.get_submodule(self.layout.consumer)

    @property
    def prunable_weight(self) -> Tensor:
        weight = self.prunable_layer.get_parameter("weight")
        return weight if weight.ndim == 4 else weight.view(len(weight), self.layout.channels, -1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        f = self._watch(x, inputs=(self.layout.head,))[1][0]
        return f.mean((2, 3)) if f.ndim == 4 else f

    def prunable_activity(self, x: Tensor) -> Tensor:
        f = self._watch(x, inputs=(self.layout.consumer,))[1][0]
        pooled: Tensor = f.unflatten(1, (self.layout.channels, -1)).flatten(2).mean(2)
        return pooled

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        return self.logits_and_maps(x)[1]

    def logits_and_maps(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        names = self.layout.stages
        logits, maps = self._watch(x, outputs=names)
        is_last = [name in self.layout.channels_last for name in names]
        return logits, [m.permute(0, 3, 1, 2) if last else m for m, last in zip(maps, is_last, strict=True)]

    def _watch(
        self, x: Tensor, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """The logits, and what the named modules are given or return."""
        seen: dict[str, Tensor] = {}

        def keep_input(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen[name] = given[0]

        def keep_output(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = output

        named = dict(self.model.named_modules())
        handles = [named[name].register_forward_pre_hook(partial(keep_input, name)) for name in inputs]
        handles += [named[name].register_forward_hook(partial(keep_output, name)) for name in outputs]
        try:
            logits = self(x)
        finally:
            for handle in handles:
                handle.remove()
        return logits, [seen[name] for name in (*inputs, *outputs)]
