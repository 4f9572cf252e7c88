"""The defences' specs, by kind; `app.specs.defense` joins them."""
