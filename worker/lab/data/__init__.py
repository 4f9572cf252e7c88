"""Data sets: as tensors on the device, on disk, and brought in from outside."""
