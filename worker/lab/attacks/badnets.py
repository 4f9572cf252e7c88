"""BadNets (Gu et al. 2017): a small patch in a corner, on images of any class, relabeled to the target."""

from app.specs.attack import BadNets
from worker.lab.attacks.patches import PatchedAttack


class BadNetsAttack(PatchedAttack[BadNets]):
    """A square of ``size`` pixels, ``margin`` from the edges, blended in with ``opacity``."""
