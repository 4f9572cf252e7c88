"""Repair defenses that prune neurons which stand out in their layer; none of them trains anything."""

from typing import Any, ClassVar, Literal

from app.specs.base import Preset, field, preset_field
from app.specs.defenses.base import Defense, Kind

CLP_CODE = "the CLP authors' published code"


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
