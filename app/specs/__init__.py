"""The experiment language: pydantic models and pure functions on them. No I/O, and no dependency but pydantic."""
