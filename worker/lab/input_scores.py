"""Scores that an input detection gives the test images, clean and triggered, without being told which are which."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worker.lab.compute import images_at_once, seeded_generator
from worker.lab.data.streamed import join
from worker.lab.evaluation import TestSet
from worker.lab.stages import StageRun

CHUNK, FLOATS = 1024, 2**22  # images scored at a time, and values of large ones
ScoreInputs = Callable[[Tensor], Tensor]
"""Suspicion ``[N]`` of uint8 images ``[N, C, H, W]``: higher is more suspicious."""


class InputScores(NamedTuple):
    """Clean test images, then triggered ones; all tensors are ``[N]`` and on the CPU."""

    suspicion: Tensor
    triggered: Tensor
    """Bool."""
    image: Tensor
    """Row of the test image, for triggered ones that from which it was made; where that is not known, its own row."""


def score_test_images(test: TestSet, score: ScoreInputs, run: StageRun) -> InputScores:
    """The scores of all clean test images, and of the triggered ones of the attack success rate.

    They are mixed, in a random order that follows from the stage. An attack on a single image has no triggered inputs:
    what it attacks is a clean image. Continues from the stage's checkpoint, if there is one.
    """
    images, sources, clean = test.clean.images, torch.arange(len(test.clean)), len(test.clean)
    if test.triggered is not None and not test.one_image:
        images = join(images, test.triggered.images)
        rows = torch.arange(len(test.triggered)) if test.origin is None else test.origin.cpu()
        sources = torch.cat([sources, rows])
    generator = seeded_generator(torch.device("cpu"), "inputs", run.planned.stream)
    chunks = torch.randperm(len(images), generator=generator).split(images_at_once(images, CHUNK, FLOATS))
    saved = run.resume()
    suspicion, done = torch.empty(len(images)), 0
    if saved is not None:
        suspicion, done = saved.tensors["suspicion"], saved.facts["epoch"]
    for rows in chunks[done:]:
        run.recorder.check()
        suspicion[rows] = score(images[rows.to(images.device)]).float().cpu()
        done += 1
        run.epoch_done(done, len(chunks), {})
        run.checkpoint(partial(_scored_so_far, suspicion, done))
    return InputScores(suspicion, torch.arange(len(images)) >= clean, sources)


def _scored_so_far(suspicion: Tensor, chunks: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {"suspicion": suspicion}, {"epoch": chunks}
