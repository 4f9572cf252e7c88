"""Which kind of worker runs an experiment."""

from typing import Any

import pytest

from app.specs.experiment import ExperimentSpec
from app.specs.placement import CPU, GPU, choose_queue, claimable_placements, placement_of
from app.specs.stages import arm_keys, plan

HEAVY: dict[str, Any] = {"dataset": {"name": "cifar10"}, "model": {"name": "resnet18"}}


@pytest.mark.parametrize(
    ("spec", "live", "queue"),
    [
        ({}, {CPU, GPU}, CPU),
        ({}, {CPU}, CPU),
        ({}, {GPU}, GPU),
        ({}, set(), CPU),
        (HEAVY, {CPU, GPU}, GPU),
        (HEAVY, {CPU}, CPU),
        (HEAVY, {GPU}, GPU),
        (HEAVY, set(), GPU),
        ({"model": {"name": "resnet18"}}, {CPU, GPU}, GPU),
        ({"device": "cuda"}, {CPU}, GPU),
        (HEAVY | {"device": "cpu"}, {CPU, GPU}, CPU),
        (HEAVY | {"device": "cpu"}, {GPU}, GPU),
    ],
)
def test_a_preference_gives_way_but_a_need_does_not(spec: dict[str, Any], live: set[str], queue: str) -> None:
    placement = placement_of(ExperimentSpec.model_validate(spec))
    assert choose_queue(placement, live) == queue
    for kind in live:
        assert (placement in claimable_placements([kind], live)) == (kind == queue)


def test_work_for_a_gpu_waits_for_one_that_is_started_on_demand() -> None:
    heavy = placement_of(ExperimentSpec.model_validate(HEAVY))
    light = placement_of(ExperimentSpec())
    assert choose_queue(heavy, {CPU}, gpu_on_demand=True) == GPU
    assert choose_queue(light, {GPU}, gpu_on_demand=True) == GPU
    assert claimable_placements([CPU], {CPU}, gpu_on_demand=True) == [light]


def test_a_single_worker_claims_all_that_it_can_run() -> None:
    assert claimable_placements([GPU], set()) == ["needs_gpu", "rather_gpu", "rather_cpu"]
    assert claimable_placements([CPU], set()) == ["rather_gpu", "rather_cpu"]


def test_stage_keys_depend_on_neither_device_nor_priority() -> None:
    plain = ExperimentSpec.model_validate(HEAVY)
    for fields in ({"device": "cuda"}, {"priority": 5}):
        other = ExperimentSpec.model_validate(HEAVY | fields)
        assert [stage.key for stage in plan(other)] == [stage.key for stage in plan(plain)]


def test_the_priority_does_not_affect_the_numbers() -> None:
    plain, urgent = ExperimentSpec(), ExperimentSpec(priority=9)
    assert urgent.spec_hash == plain.spec_hash
    assert arm_keys(urgent, plan(urgent)) == arm_keys(plain, plan(plain))
    assert "priority" not in plain.model_dump()
    assert ExperimentSpec.model_validate(urgent.model_dump()).priority == 9
