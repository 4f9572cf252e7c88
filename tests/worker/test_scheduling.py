"""Which experiment a free worker claims."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle, scheduling
from app.specs.experiment import ExperimentSpec
from app.specs.placement import CPU, GPU
from app.specs.stages import LAB_VERSION, arm_keys, plan
from app.tables.experiments import Experiment, Outbox, WorkerHeartbeat
from app.tables.owners import Owner
from app.tables.sweeps import ArmKey
from tests.worker.conftest import Backends

HEAVY: dict[str, Any] = {"model": {"name": "resnet18"}}


def submit(backends: Backends, owner: str = "ann", **fields: Any) -> str:
    """Queue an experiment of this owner."""
    experiment_id = backends.submit(**fields)
    with backends.database.writing() as session:
        if session.get(Owner, owner) is None:
            session.add(Owner(id=owner, name=owner, created_at=utcnow()))
            session.flush()
        experiment = session.get_one(Experiment, experiment_id)
        experiment.owner_id = owner
    return experiment_id


def claim(backends: Backends, hint: str = "none", queue: str = CPU) -> str | None:
    with backends.database.writing() as session:
        claimed = scheduling.claim_next(session, hint, "w", [queue], backends.settings)
        return claimed.experiment_id if claimed is not None else None


def finish(backends: Backends, experiment_id: str) -> None:
    with backends.database.writing() as session:
        attempt = session.get_one(Experiment, experiment_id).attempt
        assert lifecycle.finish(session, experiment_id, attempt, "succeeded")


def count_unpublished(backends: Backends, experiment_id: str) -> int:
    return len([m for m in backends.rows(Outbox, experiment_id) if m.published_at is None])


def mark_published(backends: Backends) -> None:
    with backends.database.writing() as session:
        session.execute(update(Outbox).values(published_at=utcnow()))


def keys_of(backends: Backends, experiment_id: str) -> set[str]:
    """The keys of the experiment's stages, and of the numbers of its arms."""
    with backends.database.reading() as session:
        stages = session.get_one(Experiment, experiment_id).stages or ()
        return {stage["key"] for stage in stages} | {row.key for row in backends.rows(ArmKey, experiment_id)}


def register(backends: Backends, *queues: str, **fields: Any) -> None:
    with backends.database.writing() as session:
        for queue in queues:
            row = {"name": f"h:1:{queue}", "queue": queue, "device": "d", "started_at": utcnow()}
            session.merge(WorkerHeartbeat(**(row | {"seen_at": utcnow()} | fields)))


def test_owners_take_turns_whatever_the_length_of_their_queues(backends: Backends) -> None:
    sweep = [submit(backends, "ann") for _ in range(5)]
    single = submit(backends, "bob")
    order = []
    for _ in range(4):  # one worker
        claimed = claim(backends)
        assert claimed is not None
        order.append(claimed)
        finish(backends, claimed)
    assert order == [sweep[0], single, sweep[1], sweep[2]]


def test_the_owner_with_fewer_running_experiments_comes_first(backends: Backends) -> None:
    sweep = [submit(backends, "ann") for _ in range(5)]
    assert [claim(backends), claim(backends)] == sweep[:2]
    late = [submit(backends, "bob") for _ in range(3)]
    assert [claim(backends) for _ in range(4)] == [late[0], late[1], sweep[2], late[2]]


def test_a_priority_applies_within_an_owner_only(backends: Backends) -> None:
    normal, low, high = (submit(backends, "ann", priority=p) for p in (0, -1, 5))
    other = submit(backends, "bob", priority=-9)
    assert [claim(backends) for _ in range(5)] == [high, other, normal, low, None]


def test_the_id_in_the_message_is_only_a_hint(backends: Backends) -> None:
    first, second = submit(backends), submit(backends)
    assert claim(backends, hint=second) == first
    assert claim(backends, hint=first) == second
    assert claim(backends, hint=first) is None


def test_an_experiment_that_waits_for_a_stage_is_not_claimed_before_it_is_due(backends: Backends) -> None:
    waits = submit(backends)
    assert claim(backends) == waits
    with backends.database.writing() as session:
        assert lifecycle.wait(session, waits, 1, 60.0)
    assert claim(backends) is None
    assert (
        claim(backends, hint=waits) == waits
    )  # its message was delivered, so it is due, whatever this clock says


def test_each_kind_of_worker_claims_its_own_kind_of_experiment(backends: Backends) -> None:
    light, heavy, needs_gpu = submit(backends), submit(backends, **HEAVY), submit(backends, device="cuda")
    register(backends, CPU, GPU)
    assert [claim(backends, queue=CPU) for _ in range(2)] == [light, None]
    assert [claim(backends, queue=GPU) for _ in range(3)] == [heavy, needs_gpu, None]


def test_without_gpu_workers_cpu_workers_claim_all_but_what_needs_a_gpu(backends: Backends) -> None:
    light, heavy, needs_gpu = submit(backends), submit(backends, **HEAVY), submit(backends, device="cuda")
    register(backends, CPU)
    register(backends, GPU, seen_at=utcnow() - timedelta(minutes=2))  # dead
    assert [claim(backends, queue=CPU) for _ in range(3)] == [light, heavy, None]
    mark_published(backends)
    assert claim(backends, hint=needs_gpu, queue=CPU) is None
    assert (
        count_unpublished(backends, needs_gpu) == 1
    )  # the message that this worker received is published again


def test_a_draining_gpu_worker_does_not_count(backends: Backends) -> None:
    heavy = submit(backends, **HEAVY)
    register(backends, CPU)
    register(backends, GPU, state="draining")
    assert claim(backends, queue=CPU) == heavy


def test_an_older_worker_claims_nothing_of_a_newer_lab(backends: Backends) -> None:
    newer, older = submit(backends), submit(backends)
    with backends.database.writing() as session:
        session.get_one(Experiment, newer).lab_version = LAB_VERSION + 1
    mark_published(backends)
    assert claim(backends, hint=newer) == older
    assert claim(backends, hint=newer) is None
    assert count_unpublished(backends, newer) == 1


def test_an_experiment_of_an_older_lab_gets_new_keys(backends: Backends) -> None:
    old = submit(backends)
    with backends.database.writing() as session:
        session.get_one(Experiment, old).lab_version = LAB_VERSION - 1
        session.add(ArmKey(experiment_id=old, arm="undefended", seed=0, key="of the older lab"))

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        return {}

    assert backends.run_attempt(old, run) == "succeeded"
    keys = {(row.arm, row.seed): row.key for row in backends.rows(ArmKey, old)}
    assert keys == arm_keys(ExperimentSpec(), plan(ExperimentSpec()))
    with backends.database.reading() as session:
        experiment = session.get_one(Experiment, old)
        assert experiment.lab_version == LAB_VERSION
        assert [stage["key"] for stage in experiment.stages or ()] == [s.key for s in plan(ExperimentSpec())]


def test_an_experiment_on_a_gpu_gets_keys_of_its_precision(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        return {}

    def claimed(**training: Any) -> set[str]:
        one = submit(backends, training=training)
        assert backends.run_attempt(one, run) == "succeeded"
        return keys_of(backends, one)

    auto, float32 = claimed(), claimed(precision="float32")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert claimed(precision="float32") == float32
    assert not claimed() & auto


def test_bfloat16_arithmetic_of_a_processor_changes_keys_of_larger_images(
    backends: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        return {}

    def claimed(dataset: str, native: bool, **training: Any) -> set[str]:
        monkeypatch.setattr("worker.lab.compute.has_native_bfloat16", lambda: native)
        one = submit(backends, dataset={"name": dataset}, training=training)
        assert backends.run_attempt(one, run) == "succeeded"
        return keys_of(backends, one)

    assert claimed("digits", native=True) == claimed("digits", native=False)
    auto, native = claimed("cifar10", native=False), claimed("cifar10", native=True)
    assert not native & auto
    assert claimed("cifar10", native=True, precision="float32") == claimed(
        "cifar10", native=False, precision="float32"
    )


def test_concurrent_workers_claim_each_experiment_once(backends: Backends) -> None:
    submitted = {submit(backends, owner) for owner in ("ann", "bob") for _ in range(8)}
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: claim(backends), range(20)))
    assert sorted(one for one in claimed if one is not None) == sorted(submitted)
