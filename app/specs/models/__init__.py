"""Architectures of the victim."""
