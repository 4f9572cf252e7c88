"""Readers of foreign formats: each gives a `worker.lab.data.checking.Source`, not yet checked."""
