"""Trojan patch (Liu et al. 2018): a patch optimized to activate neurons of a trained model, dirty label."""

import torch
from torch import Tensor

from app.specs.attack import Trojan
from worker.lab.attacks.base import Attack, AttackLab, Picture, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.patches import patch_slices
from worker.lab.attacks.surrogate import train_surrogate
from worker.lab.compute import seeded_generator
from worker.lab.contracts import NonFiniteLossError
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun

IMAGES = 64  # clean images that the patch is optimized on


class TrojanAttack(Attack[Trojan]):
    """A square is replaced by the patch, uint8 ``[C, size, size]``, the attack's state.

    The patch minimizes the mean of ``(patch_activation - f_n(x with the patch))^2`` over clean images and over the
    features n with the largest summed absolute weight in the last layer.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        patch = lab.stage("trigger", lambda run: self._tune(network, lab, run)).tensors["patch"]
        patch = patch.to(lab.train.images.device)
        state = {"patch": patch}
        picture = Picture("the patch, optimized to activate the model's neurons", [("patch", patch[None])])
        return Prepared(state, pictures={"patch": picture})

    def _tune(self, network: Network, lab: AttackLab, run: StageRun) -> Outcome:
        device = lab.train.images.device
        generator = seeded_generator(device, run.planned.stream)
        order = torch.randperm(len(lab.train), generator=generator, device=device)[:IMAGES]
        x = lab.compute.to_input(lab.train.images[order])
        rows, columns = patch_slices(self.spec.position, self.spec.size, self.spec.margin, self.facts)
        # attack/trojannn.py:62-71 of SCLBD/BackdoorBench: the neurons most connected to the layer behind them
        strength = network.head.weight.flatten(1).abs().sum(0)
        neurons = strength.argsort(descending=True, stable=True)[: self.spec.patch_neurons]
        shape = (self.facts.channels, self.spec.size, self.spec.size)
        patch = torch.rand(shape, generator=generator, device=device).requires_grad_(True)
        optimizer = torch.optim.Adam([patch], lr=self.spec.patch_learning_rate)
        inside = torch.zeros((self.facts.height, self.facts.width), device=device)
        inside[rows, columns] = 1
        top, left = rows.start, columns.start
        around = (left, self.facts.width - columns.stop, top, self.facts.height - rows.stop)
        for _ in range(self.spec.patch_steps):
            run.recorder.check()
            padded = torch.nn.functional.pad(patch, around)
            # attack/trojannn.py:97-108, with the patch on clean images in place of the patch alone
            features = network.features(x * (1 - inside) + padded * inside)
            loss = (self.spec.patch_activation - features[:, neurons]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            patch.data.clamp_(0, 1)
        if not torch.isfinite(loss):
            raise NonFiniteLossError("the patch's loss is not finite after its last step")
        values = {"patch_loss": loss.item(), "activation": features[:, neurons].mean().item()}
        run.epoch_done(1, 1, values)
        return run.finish({"patch": to_uint8(patch.detach() * 255)})

    def trigger(self, state: State) -> Trigger:
        patch = state["patch"]
        rows, columns = patch_slices(self.spec.position, self.spec.size, self.spec.margin, self.facts)

        def stamp(images: Tensor) -> Tensor:
            images = images.clone()
            images[:, :, rows, columns] = patch.to(images.device)
            return images

        return stamp
