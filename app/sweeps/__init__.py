"""Batches: requests that stand for many experiments.

A batch is either a sweep (a grid over fields of one experiment) or a study (attacks x defenses). Both are rows of the
table ``sweeps``, told apart by ``kind``, and are listed, followed, canceled, retried and deleted by the same code.
"""
