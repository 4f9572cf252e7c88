"""Measure the facts of torchvision's models, ``python -m worker.lab.networks.architectures``.

Prints the module `app.specs.models.architectures`. Only shapes are computed, which takes minutes and little memory.
"""

from pathlib import Path

import torch

import app.specs.models.architectures
from app.specs.models.architectures import Facts
from worker.lab.networks._torchvision import torchvision_models
from worker.lab.networks.torchvision_zoo import STEM_FAMILIES, TRACED_SIDE, adapt_stem, family_of, get_model
from worker.lab.networks.traced import trace

FIXED_SIZE = ("vit", "maxvit")
"""Families that are built for one size of images, whose least side is that of a patch."""


def list_architectures() -> list[str]:
    """The names of all classification models of torchvision."""
    models = torchvision_models()
    return sorted(models.list_models(module=models))


def measure(name: str) -> Facts:
    """The facts of an architecture."""
    more = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    family = family_of(name)
    is_fixed = family in FIXED_SIZE
    with torch.device("meta"):
        model = get_model(name, num_classes=10, **more).eval()
        side = 224 if is_fixed else TRACED_SIDE
        layout = trace(model, torch.empty(2, 3, side, side), 10)
        has_stem = family in STEM_FAMILIES
        original = 0 if is_fixed else find_least_side(model)
        if has_stem and not is_fixed:
            adapt_stem(model, name)
        small = 0 if is_fixed else find_least_side(model)
    return Facts(layout.batch_norm, layout.spatial_maps, has_stem, original, small)


def find_least_side(model: torch.nn.Module) -> int:
    """The smallest side, in pixels, of square images that the model accepts, by bisection."""

    def accepts(side: int) -> bool:
        try:
            with torch.no_grad():
                model(torch.empty(2, 3, side, side))
        except (RuntimeError, ValueError):
            return False
        return True

    if accepts(1):  # as most do
        return 1
    low, high = 1, 128
    while high - low > 1:
        side = (low + high) // 2
        low, high = (low, side) if accepts(side) else (side, high)
    return high


def main() -> None:
    """Print the module."""
    facts = {name: measure(name) for name in list_architectures()}
    lines = [f'    "{name}": Facts({", ".join(map(str, fact))}),' for name, fact in facts.items()]
    names = [f'    "{name}",' for name in facts]
    head = Path(app.specs.models.architectures.__file__).read_text().partition("Name = ")[0]
    print(head + "Name = Literal[\n" + "\n".join(names) + "\n]")
    print('"""Their names."""\n')
    print("ARCHITECTURES: dict[Name, Facts] = {\n" + "\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
