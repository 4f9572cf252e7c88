"""The experiment language: pydantic models and pure functions on them, no I/O."""
