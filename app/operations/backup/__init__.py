"""A copy of everything that the service cannot recreate, made while it runs, and its restore."""
