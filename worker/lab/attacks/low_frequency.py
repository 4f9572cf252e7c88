"""A smooth additive pattern, the low-frequency trigger of Zeng et al. 2021, section 5."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from app.specs.attack import LowFrequency
from worker.lab.attacks.base import Attack, AttackLab, Picture, Prepared, State, Trigger, to_uint8
from worker.lab.attacks.patterns import decode_pattern
from worker.lab.attacks.surrogate import train_surrogate
from worker.lab.attacks.universal_perturbation import add_image, changed_share, scale
from worker.lab.compute import seeded_generator
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


def cosine_basis(length: int, waves: int) -> Tensor:
    """The first ``waves`` basis functions ``cos(pi u (x + 1/2) / length)`` of the discrete cosine transform, float64
    ``[waves, length]``."""
    wave, position = torch.arange(waves, dtype=torch.float64), torch.arange(length, dtype=torch.float64)
    return torch.cos(math.pi / length * wave[:, None] * (position + 0.5))


class LowFrequencyAttack(Attack[LowFrequency]):
    """``x + pattern``, rounded. The pattern, float ``[C, H, W]`` from 0 to ``amplitude``, is the attack's state."""

    def prepare(self, lab: AttackLab) -> Prepared:
        prepared = self._prepare_training(lab)
        return replace(prepared, state=prepared.state | self._test_pattern(prepared.state["pattern"]))

    def _test_pattern(self, pattern: Tensor) -> State:
        """The pattern at test time; empty if it is that of training."""
        png, amplitude = self.spec.test_pattern_png, self.spec.test_amplitude or self.spec.amplitude
        if png is not None:
            return {
                "test_pattern": scale(decode_pattern(png, self.facts, "test_pattern_png").float(), amplitude)
            }
        if amplitude != self.spec.amplitude:
            return {"test_pattern": pattern * (amplitude / self.spec.amplitude)}
        return {}

    def _prepare_training(self, lab: AttackLab) -> Prepared:
        if self.spec.pattern == "search":
            network = train_surrogate(self.spec, lab)
            pattern = lab.stage("trigger", lambda run: self._search(network, lab, run)).tensors["pattern"]
            picture = Picture(
                "the pattern, scaled to all gray levels", [("pattern", to_uint8(scale(pattern, 255))[None])]
            )
            return Prepared({"pattern": pattern}, pictures={"pattern": picture})
        if self.spec.pattern_png is not None:
            uploaded = decode_pattern(self.spec.pattern_png, self.facts).float()
            return Prepared({"pattern": scale(uploaded, self.spec.amplitude)})
        return Prepared({"pattern": self.mixture()})

    def mixture(self) -> Tensor:
        """A sum of the lowest cosine waves but the constant one, with normal weights."""
        waves = self.spec.waves
        generator = seeded_generator(torch.device("cpu"), "low-frequency pattern", self.spec.pattern_seed)
        weights = torch.randn((self.facts.channels, waves, waves), generator=generator, dtype=torch.float64)
        weights[:, 0, 0] = 0  # the constant wave only changes the brightness
        rows, columns = cosine_basis(self.facts.height, waves), cosine_basis(self.facts.width, waves)
        return scale(rows.T @ weights @ columns, self.spec.amplitude).float()

    def _search(self, network: Network, lab: AttackLab, run: StageRun) -> Outcome:
        """The authors' universal_pert.py, with the target class given: theirs changes it to the one that most
        perturbed images go to."""
        device = lab.train.images.device
        generator = seeded_generator(device, run.planned.stream)
        rows = torch.randperm(len(lab.train), generator=generator, device=device)[: self.spec.search_images]
        images = lab.compute.to_input(lab.train.images[rows])
        highest = self.spec.amplitude / 255
        pattern = best = torch.zeros_like(images[:1])
        highest_share = -1.0
        for _ in range(self.spec.search_passes):
            for row in torch.randperm(len(images), generator=generator, device=device).tolist():
                run.recorder.check()
                pattern = add_image(
                    network,
                    pattern,
                    images[row : row + 1],
                    self.spec.target_class,
                    self.spec.search_smoothing,
                    highest,
                )
            share = changed_share(network, images, pattern)
            if share >= highest_share:
                best, highest_share = pattern, share
            if share >= self.spec.search_success:
                break
        run.recorder.log(f"the pattern changes the prediction of {highest_share:.0%} of {len(images)} images")
        run.epoch_done(1, 1, {})
        return run.finish({"pattern": best[0] * 255})

    def training_trigger(self, state: State) -> Trigger:
        return self._adding(state["pattern"])

    def trigger(self, state: State) -> Trigger:
        return self._adding(state.get("test_pattern", state["pattern"]))

    def _adding(self, pattern: Tensor) -> Trigger:
        def add(images: Tensor) -> Tensor:
            return to_uint8(images.float().add_(pattern.to(images.device)))

        return add
