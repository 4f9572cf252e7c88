"""Forward and backward pass of a batch as one CUDA graph.

A GPU computes a batch of small images faster than Python launches its kernels: ResNet-18 on 128 images of 32x32 keeps
an H200 busy for less than a third of the time (docs/results/gpu.md). Replayed from a graph, the same kernels compute
the same numbers with a single launch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

WARM_UP_BATCHES = 3
"""Batches before the capture, in which libraries choose their kernels."""
MIN_BATCHES = 30
"""Shorter trainings use no graph: a capture costs about as much as ten batches."""


@dataclass
class GraphedGradients:
    """Calls ``gradients(x, labels, rows)`` through a CUDA graph; it returns the loss and fills the gradients.

    ``gradients`` runs on the host only during the capture, so it may depend on nothing but its arguments' values.
    Batches of another size than ``size`` are computed without the graph, and so are all if the capture fails, as it
    does if ``gradients`` synchronizes with the device.
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
        for buffer, tensor in zip(self.inputs, (x, labels, rows), strict=True):
            buffer.copy_(tensor)
        self.graph.replay()
        # A batch of another size in between has replaced the parameters' gradient tensors.
        for parameter, gradient in zip(self.parameters, self.outputs, strict=True):
            parameter.grad = gradient
        return self.loss

    def _run_on_side_stream(self, *batch: Tensor) -> Tensor:
        """Warm up on a side stream, as torch requires before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            loss = self.gradients(*batch)
        torch.cuda.current_stream().wait_stream(stream)
        return loss

    def _capture(self, *batch: Tensor) -> bool:
        """Capture the graph, which computes nothing yet. Returns False if that failed."""
        self.inputs = tuple(torch.empty_like(tensor) for tensor in batch)
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
