"""WaNet (Nguyen and Tran 2021): a small smooth warp, the same for every image, relabeled to the target."""

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from app.specs.attack import WaNet
from worker.lab.attacks.base import Attack, AttackLab, Prepared, State, Trigger, apply_trigger, to_uint8
from worker.lab.attacks.joint_training import train_jointly
from worker.lab.compute import seeded_generator
from worker.lab.data.streamed import Images


class WaNetAttack(Attack[WaNet]):
    """Bilinear sampling at ``identity + strength * flow / height``, in coordinates of [-1, 1], clipped to the image.

    The flow is uniform noise on a ``grid`` x ``grid``, divided by its mean absolute value and interpolated to the
    image's size. It is drawn from the experiment's seed. Section 3.2 of the paper; line numbers are those of
    VinAIResearch/Warping-based_Backdoor_Attack-release at 45e8c33.
    """

    def prepare(self, lab: AttackLab) -> Prepared:
        state = self.state_without_training(lab)
        return train_jointly(
            self,
            lab,
            state,
            lambda images, generator: self._warp_randomly(state, images, generator),
            lambda size, triggered: int(triggered * self.spec.cross_ratio),  # train.py:65
        )

    def state_without_training(self, lab: AttackLab) -> State:
        generator = seeded_generator(torch.device("cpu"), "wanet warp", lab.seed)
        k = self.spec.grid
        control = torch.rand((1, 2, k, k), generator=generator) * 2 - 1  # train.py:343-349
        control /= control.abs().mean()
        size = (self.facts.height, self.facts.width)
        flow = F.interpolate(control, size, mode="bicubic", align_corners=True)
        return {"flow": flow.permute(0, 2, 3, 1).contiguous()}

    def _grid(self, flow: Tensor) -> Tensor:
        """Sampling positions of the pixels, float ``[1, H, W, 2]``, (x, y) in [-1, 1]."""
        # train.py:350-352 and 72-73; grid_rescale is 1
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, self.facts.height, device=flow.device),
            torch.linspace(-1, 1, self.facts.width, device=flow.device),
            indexing="ij",
        )
        grid = torch.stack((x, y), 2)[None] + self.spec.strength * flow / self.facts.height
        return grid.clamp_(-1, 1)

    def trigger(self, state: State) -> Trigger:
        grid = self._grid(state["flow"])

        def warp(images: Tensor) -> Tensor:
            grids = grid.to(images.device).expand(len(images), -1, -1, -1)
            return to_uint8(F.grid_sample(images.float(), grids, align_corners=True))  # train.py:79

        return warp

    def cross(self, state: State, images: Images, seed: int) -> Images:
        return self._warp_randomly(state, images, seeded_generator(images.device, "wanet noise", seed))

    @overload
    def _warp_randomly(self, state: State, images: Tensor, generator: torch.Generator) -> Tensor: ...
    @overload
    def _warp_randomly(self, state: State, images: Images, generator: torch.Generator) -> Images: ...
    def _warp_randomly(self, state: State, images: Images, generator: torch.Generator) -> Images:
        """Each image warped along the same flow plus uniform noise (noise mode of the paper; train.py:75-85).

        The noise is at most 1 / H in coordinates of [-1, 1], which span H - 1 pixels: about half a pixel.
        """
        grid = self._grid(state["flow"].to(images.device))

        def warp(part: Tensor) -> Tensor:
            noise = torch.rand((len(part), *grid.shape[1:]), generator=generator, device=part.device) * 2 - 1
            noisy = (grid + noise / self.facts.height).clamp_(-1, 1)
            return to_uint8(F.grid_sample(part.float(), noisy, align_corners=True))

        return apply_trigger(warp, images)
