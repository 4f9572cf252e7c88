"""What only a GPU can show. Skipped where there is none; needs nothing of ours but the lab:

``python -m pytest --noconftest -c /dev/null --rootdir . tests/lab/test_on_a_gpu.py``
"""

from typing import Any

import pytest
import torch

from app.specs.experiment import ExperimentSpec
from tests.lab.memory import DIGITS_ONLY, MemoryRecorder, MemoryStore
from worker.lab import graphs, training
from worker.lab.contracts import CanceledError
from worker.lab.experiment import run_experiment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
EPOCHS = {"isolation_epochs": 4, "ranking_window": 2}
SPEC = {
    "dataset": {"name": "digits"},
    "attack": {"name": "badnets"},
    "defenses": [
        {"name": "abl", **EPOCHS, "finetune_epochs": 4, "unlearning_epochs": 3},
        {"name": "abl_plus"},
        {"name": "fine_tuning", "steps": 160, "batch_size": 128},
        {"name": "ft_sam", "steps": 160, "batch_size": 128},
    ],
    "training": {"epochs": 4},
}


def results(spec: dict[str, Any], recorder: MemoryRecorder, store: MemoryStore) -> Any:
    parsed = ExperimentSpec.model_validate(spec)
    document = run_experiment(
        parsed, recorder, store, data_dir=DIGITS_ONLY, device="cuda", checkpoint_seconds=0
    )
    for arm in document["arms"]:
        for values in arm["seeds"]:
            values.pop("seconds")
        arm.pop("aggregate")
    return document


def test_a_recorded_batch_gives_the_same_numbers_as_one_launched_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recordings: list[bool] = []
    record = graphs.GraphedGradients._capture

    def noted(self: graphs.GraphedGradients, *batch: torch.Tensor) -> bool:
        recordings.append(record(self, *batch))
        return recordings[-1]

    monkeypatch.setattr(graphs.GraphedGradients, "_capture", noted)
    recorded = results(SPEC, MemoryRecorder(), MemoryStore())
    assert len(recordings) > 5
    assert all(recordings)
    monkeypatch.setattr(graphs, "WORTH_IT", 10**9)
    count = len(recordings)
    assert results(SPEC, MemoryRecorder(), MemoryStore()) == recorded
    assert len(recordings) == count


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers() -> None:
    whole = results(SPEC, MemoryRecorder(), MemoryStore())
    store, batches = MemoryStore(), 0

    def stop() -> None:
        nonlocal batches
        batches += 1
        if batches % 60 == 0:
            raise CanceledError

    stops = 0
    while True:
        try:
            assert results(SPEC, MemoryRecorder(stop), store) == whole
            break
        except CanceledError:
            stops += 1
    assert stops > 3


def test_a_loss_that_waits_for_the_device_is_launched_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def waiting(losses: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return losses.mean() * (1.0 if losses.max().item() >= 0 else 0.0)

    usual = training.Recipe.of
    spec = {**SPEC, "defenses": []}
    plain = results(spec, MemoryRecorder(), MemoryStore())

    def changed(*given: Any) -> training.Recipe:
        recipe = usual(*given)
        recipe.loss = waiting
        return recipe

    monkeypatch.setattr(training.Recipe, "of", changed)
    recorder = MemoryRecorder()
    assert results(spec, recorder, MemoryStore()) == plain
    assert any("kernel by kernel" in line for line in recorder.lines)
