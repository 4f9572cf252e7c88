"""Presets: named settings of a method, each with the source that has them."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from pydantic import model_validator

from app.specs.base import Spec, field


class Preset(NamedTuple):
    """A setting of a method that a source publishes, or that this project recommends."""

    summary: str
    """Whose setting it is, and why to choose it."""
    source: str
    values: Mapping[str, Any]
    """The fields that differ from the defaults of the class. Empty for the default preset."""


class PresetSpec(Spec):
    """Base class of specs with presets.

    A subclass defines ``presets`` and a field ``preset`` made by `preset_field`. The preset sets every field that is
    omitted; a field that is given takes precedence. The canonical spec shows the resulting values.
    """

    presets: ClassVar[dict[str, Preset]] = {}

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(name := fields.get("preset"), str):
            return fields
        preset = cls.presets.get(name)  # an unknown name is reported by the field itself
        return fields if preset is None else {**preset.values, **fields}


def preset_field(presets: dict[str, Preset], default: str) -> Any:
    """The field ``preset`` of a `PresetSpec`; its values are the names of ``presets``."""
    summaries = " ".join(f"{name}: {preset.summary}" for name, preset in presets.items())
    return field(
        default,
        f"Settings that fill the fields that are omitted. {summaries}",
        source="; ".join(dict.fromkeys(preset.source for preset in presets.values())),
    )
