"""Forward and backward pass of a batch as one CUDA graph.

A GPU finishes a batch of small images sooner than Python can launch its kernels one by one: ResNet-18 on 128 images of
32x32 keeps an H200 busy for less than a third of the time (docs/results/gpu.md). Replayed from a graph, the same
kernels compute the same numbers at the price of a single launch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

WARM_UP_BATCHES = 3
"""Batches before the recording, in which libraries choose their kernels."""
MIN_BATCHES = 30
"""Batches; recording costs about as much as some ten of them."""


@dataclass
class GraphedGradients:
    """``gradients(x, labels, rows)`` -> loss, which leaves gradients at ``parameters``, for batches of one size.

    What ``gradients`` does on the host, it does once: it must not depend on anything that changes but its arguments'
    values. Other sizes, and everything if recording fails (as it does if it waits for the device), run as they are.
    """

    gradients: Callable[[Tensor, Tensor, Tensor], Tensor]
    parameters: list[torch.nn.Parameter]
    size: int
    log: Callable[[str], None]
    seen: int = 0
    graph: torch.cuda.CUDAGraph | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: list[Tensor | None] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.empty(0))

    def __call__(self, x: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        if len(x) != self.size:
            return self.gradients(x, labels, rows)
        if self.graph is None:
            if self.seen < WARM_UP_BATCHES:
                self.seen += 1
                return self._run_on_side_stream(x, labels, rows)
            if not self._capture(x, labels, rows):
                return self.gradients(x, labels, rows)
        assert self.graph is not None
        for ours, given in zip(self.inputs, (x, labels, rows), strict=True):
            ours.copy_(given)
        self.graph.replay()
        # A batch of another size in between leaves gradients of its own.
        for parameter, gradient in zip(self.parameters, self.outputs, strict=True):
            parameter.grad = gradient
        return self.loss

    def _run_on_side_stream(self, *batch: Tensor) -> Tensor:
        """On a stream of its own, as what is going to be recorded must be."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.gradients(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, *batch: Tensor) -> bool:
        """Whether it went well. Nothing is computed."""
        self.inputs = tuple(torch.empty_like(given) for given in batch)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.loss = self.gradients(*self.inputs)
        except RuntimeError as error:
            self.log(f"batches are launched kernel by kernel: {str(error).splitlines()[0]}")
            self.size = 0
            return False
        self.graph, self.outputs = graph, [parameter.grad for parameter in self.parameters]
        return True
