"""Specs of the defenses, by kind; `app.specs.defense` is their union."""
