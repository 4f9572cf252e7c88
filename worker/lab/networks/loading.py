"""A stored checkpoint as a network."""

import torch
from torch import Tensor

from app.specs.facts import DatasetFacts
from app.specs.model import ModelSpec
from worker.lab.networks import Network, build_network, polarized
from worker.lab.networks.checkpoints import find_variant, rename_tensors, shapes_of
from worker.lab.networks.trigger_input import TriggerInput


def wrap_like_checkpoint(network: Network, tensors: dict[str, Tensor]) -> Network:
    """``network``, or one around it that adds a trigger or a layer if ``tensors`` are those of such a network."""
    if polarized.KERNEL in tensors:
        return polarized.PolarizedNetwork(network)
    return TriggerInput.for_checkpoint(network, tensors) if "stamp_mask" in tensors else network


def load_model(spec: ModelSpec, facts: DatasetFacts, tensors: dict[str, Tensor]) -> Network:
    """A network of ``spec`` with the weights of a stored checkpoint, in evaluation mode on the CPU."""
    tensors = rename_tensors(spec, tensors)
    variant = find_variant(spec, shapes_of(tensors))
    network = wrap_like_checkpoint(build_network(variant, facts, "load"), tensors)
    network.load_state_dict(tensors)
    return network.eval().to(torch.device("cpu"))
