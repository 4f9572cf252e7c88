"""Repair defenses that prune neurons which stand out in their layer; none of them trains anything."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import BENCHMARK, Defense, Kind
from app.specs.defenses.repair_fields import Repair

CLP_CODE = "the CLP authors' published code"
EP_CODE = "the EP and BNP authors' published code"


def deviations_field(what: str, source: str) -> Any:
    """The threshold of these methods, which all their sources call u or k."""
    return field(
        3.0,
        f"Neurons {what} by more than this many standard deviations are pruned (u). No value of a layer with n neurons "
        "is further from the mean than (n - 1) / sqrt(n) of them, so layers of ten neurons or fewer stay whole at 3.",
        unit="standard deviations",
        source=source,
        ge=0,
        le=20,
    )


_CLP_PRESETS = {"authors": Preset("u = 3, as in BackdoorBench.", CLP_CODE, {})}


class Clp(Defense):
    """CLP (Zheng et al., 2022): prune the neurons with the largest Lipschitz bound, from the weights alone."""

    kind: ClassVar[Kind] = "repair"
    needs_batch_norm: ClassVar[bool] = True

    name: Literal["clp"] = "clp"
    presets = _CLP_PRESETS
    preset: Literal["authors"] = preset_field(_CLP_PRESETS, "authors")
    deviations: float = deviations_field("whose Lipschitz bound exceeds the mean of their layer", CLP_CODE)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), 1)]


_BNP_PRESETS = {
    "recommended": Preset("u = 3 on the clean set of the other repairs, as in BackdoorBench.", EP_CODE, {}),
    "authors": Preset("u = 3 on 500 images, 1 % of the training set.", EP_CODE, {"clean_ratio": 0.01}),
}


class Bnp(Repair):
    """BNP (Zheng et al., 2022b): prune the neurons whose statistics on clean images are not those of the training."""

    needs_batch_norm: ClassVar[bool] = True

    name: Literal["bnp"] = "bnp"
    presets = _BNP_PRESETS
    preset: Literal["recommended", "authors"] = preset_field(_BNP_PRESETS, "recommended")
    deviations: float = deviations_field("whose divergence exceeds the mean of their layer", EP_CODE)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), 1)]


_EP_PRESETS = {
    "authors": Preset("u = 3 on 500 training images, in bins of 0.01.", EP_CODE, {}),
    "benchmark": Preset("256 training images in bins of 0.1.", BENCHMARK, {"images": 256, "bin_width": 0.1}),
}


class Ep(Defense):
    """EP (Zheng et al., 2022b): prune the neurons whose inputs on training images have the least entropy."""

    kind: ClassVar[Kind] = "repair"
    needs_batch_norm: ClassVar[bool] = True
    needs_poisoned_images: ClassVar[bool] = True

    name: Literal["ep"] = "ep"
    presets = _EP_PRESETS
    preset: Literal["authors", "benchmark"] = preset_field(_EP_PRESETS, "authors")
    images: int = field(
        500,
        "Images of the poisoned set, drawn by the seed, on which entropies are computed; all if it has fewer.",
        unit="images",
        source=EP_CODE,
        ge=2,
        le=1_000_000,
    )
    bin_width: float = field(
        0.01,
        "Width of the histogram's bins.",
        unit="standard deviations of the neuron",
        source=EP_CODE,
        gt=0,
        le=10,
    )
    deviations: float = deviations_field("whose entropy is below the mean of their layer", EP_CODE)

    def stages(self) -> list[tuple[str, dict[str, Any], int]]:
        return [("repair", self.fields(), 1)]
