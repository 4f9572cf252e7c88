"""Sleeper Agent (Souri et al. 2022): target-class images whose gradient teaches a hidden patch.

The steps are those of hsouri/Sleeper-Agent at 9a5fdd2, forest/witchcoven/witch_base.py and forest/data/kettle_base.py.
"""

import torch
from torch import Tensor

from app.specs.attack import SleeperAgent
from worker.lab.attacks.base import SHOWN, AttackLab, Picture, Prepared, apply_trigger
from worker.lab.attacks.gradient_matching import craft_poisons, goal_gradient, largest_gradients
from worker.lab.attacks.hidden_patch import HiddenPatchAttack
from worker.lab.attacks.surrogate import train_surrogate
from worker.lab.data.streamed import change_rows, select_rows
from worker.lab.networks import Network
from worker.lab.stages import Outcome, StageRun


class SleeperAgentAttack(HiddenPatchAttack[SleeperAgent]):
    """At test time a square is replaced by a patch of random colors, at a place that follows from the image.

    The changes ``d``, within ``craft_epsilon``, minimize ``1 - cos(mean grad L(x + d, target_class), g)``, ``g`` the
    mean of ``grad L(s, target_class)`` over training images ``s`` of the source class with the patch (section 3 of the
    paper).
    """

    stream = "sleeper agent patch"

    def prepare(self, lab: AttackLab) -> Prepared:
        network = train_surrogate(self.spec, lab)
        state = self.state_without_training(lab)
        sources = lab.train.images[lab.train.labels == self.spec.source_class]
        patched = apply_trigger(self.trigger(state), sources)
        parts, start, tensors = self.spec.craft_retrainings + 1, None, dict[str, Tensor]()
        device = lab.train.images.device
        for part in range(parts):
            if part:
                every = torch.arange(len(lab.train), device=device)
                images = change_rows(
                    select_rows(lab.train.images, every), [(tensors["rows"], tensors["images"])]
                )
                network = train_surrogate(self.spec, lab, f"retraining_{part}", images)
            steps = self.spec.craft_steps
            span = range(part * steps // parts, (part + 1) * steps // parts)

            def compute(
                run: StageRun,
                network: Network = network,
                span: range = span,
                start: dict[str, Tensor] | None = start,
            ) -> Outcome:
                network.requires_grad_(True)
                rows = self._select(network, lab) if start is None else start["rows"]
                goal = goal_gradient(network, lab, patched, self.spec.target_class)
                clean = lab.train.images[rows]
                made = craft_poisons(run, lab, self.spec, network, clean, goal, span=span, start=start)
                return run.finish(made | {"rows": rows})

            stored = lab.stage(f"poisons_{part + 1}", compute).tensors
            start = tensors = {name: tensor.to(device) for name, tensor in stored.items()}
        shown = {
            "target class": lab.train.images[tensors["rows"][:SHOWN]],
            "poisoned": tensors["images"][:SHOWN],
            "hidden patch": patched[:SHOWN],
        }
        picture = Picture("poisoned images, and images whose gradient they imitate", list(shown.items()))
        return Prepared(state, tensors["images"], rows=tensors["rows"], pictures={"poisons": picture})

    def _select(self, network: Network, lab: AttackLab) -> Tensor:
        """Rows to poison, sorted."""
        if self.spec.craft_selection == "random":
            return lab.chosen
        eligible = (lab.train.labels == self.spec.target_class).nonzero().flatten()
        return largest_gradients(network, lab, eligible, self.spec.target_class, len(lab.chosen))
