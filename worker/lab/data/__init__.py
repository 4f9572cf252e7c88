"""Datasets: as tensors on the device, on disk, and imported from other formats."""
