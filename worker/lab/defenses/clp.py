"""Channel Lipschitzness pruning (Zheng et al. 2022): repair from the weights alone.

A small trigger changes the channels of the backdoor by much, so these have a large Lipschitz constant. An upper bound
of it follows from the weights of a convolution and of the batch normalization behind it. Channels whose bound exceeds
the mean of their layer by ``u`` standard deviations are pruned.
"""

import torch
from torch import Tensor, nn

from app.specs.defenses.pruning import Clp
from worker.lab.defenses.base import DataFreeRepair, copy_state
from worker.lab.defenses.neurons import prune_outliers, report_outliers
from worker.lab.defenses.repair import copy_network, load_network
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def run(spec: Clp, lab: DataFreeRepair) -> Network:
    """Prune the channels with large bounds; nothing is trained."""

    def prune(stage: StageRun) -> Outcome:
        network = copy_network(lab, lab.victim).eval()
        image = torch.zeros(1, lab.facts.channels, lab.facts.height, lab.facts.width)
        pairs = find_normalized_convolutions(network, image.to(lab.compute.device))
        bounds = {names[1]: lipschitz_bounds(network, *names) for names in pairs}
        report_outliers(lab, stage, prune_outliers(network, bounds, spec.deviations), bounds)
        return stage.finish(copy_state(network))

    return load_network(lab, lab.stage("repair", prune))


def find_normalized_convolutions(network: Network, x: Tensor) -> list[tuple[str, str]]:
    """Names of every convolution whose output a batch normalization reads directly, and of that normalization.

    The authors' defense.py takes for a normalization's convolution the one that is registered before it, and says to
    adapt that to networks where it is another one. A normalization that reads a sum, as the first one of a block
    does in a pre-activation ResNet, has none here, and stays whole.
    """
    made: list[tuple[Tensor, str]] = []
    pairs: list[tuple[str, str]] = []
    handles = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(
                layer.register_forward_hook(lambda _, given, output, name=name: made.append((output, name)))
            )
        elif isinstance(layer, nn.BatchNorm2d):
            handles.append(
                layer.register_forward_pre_hook(
                    lambda _, given, name=name: pairs.extend(
                        (conv, name) for out, conv in made if out is given[0]
                    )
                )
            )
    try:
        with torch.no_grad():
            network(x)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


@torch.no_grad()
def lipschitz_bounds(network: Network, convolution: str, normalization: str) -> Tensor:
    """The bound of every channel ``[C]``: the spectral norm of its kernel, times what the normalization scales it by.

    A kernel is taken as a matrix of input channels by positions, as in the authors' defense.py (CLP). Unlike there, the
    deviation includes the small constant that the normalization adds to it.
    """
    kernel = network.get_parameter(f"{convolution}.weight").float().flatten(2)
    layer = network.get_submodule(normalization)
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_var is not None
    scale = layer.weight.abs() / (layer.running_var + layer.eps).sqrt()
    bounds: Tensor = torch.linalg.matrix_norm(kernel, ord=2) * scale
    return bounds
