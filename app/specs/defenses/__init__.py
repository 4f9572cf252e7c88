"""The defenses' specs, by kind; `app.specs.defense` joins them."""
