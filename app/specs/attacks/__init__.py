"""Attacks by family; `app.specs.attack` has them all under one union."""
