"""Specs of the attacks, by family; `app.specs.attack` is their union."""
