"""A copy of everything that the service cannot make again, taken while it runs, and its way back."""
