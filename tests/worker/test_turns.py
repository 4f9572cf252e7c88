"""Whose turn it is when a worker is free."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

from sqlalchemy import update

from app.core.database import utcnow
from app.experiments import lifecycle, scheduling
from app.specs.experiment import ExperimentSpec
from app.specs.placement import CPU, GPU
from app.specs.stages import LAB_VERSION, arm_keys, plan
from app.tables.experiments import Experiment, Outbox, WorkerHeartbeat
from app.tables.owners import Owner
from app.tables.sweeps import ArmKey
from tests.worker.conftest import House

HEAVY: dict[str, Any] = {"model": {"name": "resnet18"}}


def submit(house: House, owner: str = "ann", **fields: Any) -> str:
    """An experiment of this owner's, queued a moment after those before it."""
    experiment_id = house.submit(**fields)
    with house.database.writing() as session:
        if session.get(Owner, owner) is None:
            session.add(Owner(id=owner, name=owner, created_at=utcnow()))
            session.flush()
        experiment = session.get_one(Experiment, experiment_id)
        experiment.owner_id = owner
    return experiment_id


def take(house: House, hint: str = "none", serves: str = CPU) -> str | None:
    with house.database.writing() as session:
        taken = scheduling.claim_next(session, hint, "w", [serves], house.settings)
        return taken.experiment_id if taken is not None else None


def finish(house: House, experiment_id: str) -> None:
    with house.database.writing() as session:
        attempt = session.get_one(Experiment, experiment_id).attempt
        assert lifecycle.finish(session, experiment_id, attempt, "succeeded")


def messages(house: House, experiment_id: str) -> int:
    return len([m for m in house.rows(Outbox, experiment_id) if m.published_at is None])


def sent(house: House) -> None:
    """As if the relay had published everything."""
    with house.database.writing() as session:
        session.execute(update(Outbox).values(published_at=utcnow()))


def live(house: House, *queues: str, **fields: Any) -> None:
    with house.database.writing() as session:
        for queue in queues:
            row = {"name": f"h:1:{queue}", "queue": queue, "device": "d", "started_at": utcnow()}
            session.merge(WorkerHeartbeat(**(row | {"seen_at": utcnow()} | fields)))


def test_owners_take_turns_however_much_one_has(house: House) -> None:
    sweep = [submit(house, "ann") for _ in range(5)]
    single = submit(house, "bob")
    order = []
    for _ in range(4):  # one worker
        taken = take(house)
        assert taken is not None
        order.append(taken)
        finish(house, taken)
    assert order == [sweep[0], single, sweep[1], sweep[2]]


def test_who_has_fewer_running_comes_first(house: House) -> None:
    sweep = [submit(house, "ann") for _ in range(5)]
    assert [take(house), take(house)] == sweep[:2]
    late = [submit(house, "bob") for _ in range(3)]
    assert [take(house) for _ in range(4)] == [late[0], late[1], sweep[2], late[2]]


def test_a_priority_orders_an_owners_own_work_alone(house: House) -> None:
    usual, idle, urgent = (submit(house, "ann", priority=p) for p in (0, -1, 5))
    other = submit(house, "bob", priority=-9)
    assert [take(house) for _ in range(5)] == [urgent, other, usual, idle, None]


def test_what_the_message_names_is_only_a_hint(house: House) -> None:
    first, second = submit(house), submit(house)
    assert take(house, hint=second) == first
    assert take(house, hint=first) == second
    assert take(house, hint=first) is None


def test_who_waits_for_a_stage_is_not_taken_before_its_time(house: House) -> None:
    waits = submit(house)
    assert take(house) == waits
    with house.database.writing() as session:
        assert lifecycle.wait(session, waits, 1, 60.0)
    assert take(house) is None
    assert take(house, hint=waits) == waits  # its message has come, so it is time, whatever this clock says


def test_each_kind_of_worker_takes_its_own_kind_of_work(house: House) -> None:
    light, heavy, needs = submit(house), submit(house, **HEAVY), submit(house, device="cuda")
    live(house, CPU, GPU)
    assert [take(house, serves=CPU) for _ in range(2)] == [light, None]
    assert [take(house, serves=GPU) for _ in range(3)] == [heavy, needs, None]


def test_a_machine_without_a_gpu_takes_all_but_what_needs_one(house: House) -> None:
    light, heavy, needs = submit(house), submit(house, **HEAVY), submit(house, device="cuda")
    live(house, CPU)
    live(house, GPU, seen_at=utcnow() - timedelta(minutes=2))  # dead
    assert [take(house, serves=CPU) for _ in range(3)] == [light, heavy, None]
    sent(house)
    assert take(house, hint=needs, serves=CPU) is None
    assert messages(house, needs) == 1  # the message that this worker had in error is not lost


def test_a_worker_that_drains_is_not_waited_for(house: House) -> None:
    heavy = submit(house, **HEAVY)
    live(house, CPU)
    live(house, GPU, state="draining")
    assert take(house, serves=CPU) == heavy


def test_an_older_worker_takes_nothing_of_a_newer_lab(house: House) -> None:
    newer, mine = submit(house), submit(house)
    with house.database.writing() as session:
        session.get_one(Experiment, newer).lab_version = LAB_VERSION + 1
    sent(house)
    assert take(house, hint=newer) == mine
    assert take(house, hint=newer) is None
    assert messages(house, newer) == 1


def test_an_experiment_of_an_older_lab_is_described_anew(house: House) -> None:
    old = submit(house)
    with house.database.writing() as session:
        session.get_one(Experiment, old).lab_version = LAB_VERSION - 1
        session.add(ArmKey(experiment_id=old, arm="undefended", seed=0, key="of the older lab"))

    def run(spec: Any, recorder: Any, store: Any, **_: Any) -> dict[str, Any]:
        return {}

    assert house.try_(old, run) == "succeeded"
    keys = {(row.arm, row.seed): row.key for row in house.rows(ArmKey, old)}
    assert keys == arm_keys(ExperimentSpec(), plan(ExperimentSpec()))
    with house.database.reading() as session:
        experiment = session.get_one(Experiment, old)
        assert experiment.lab_version == LAB_VERSION
        assert [stage["key"] for stage in experiment.stages or ()] == [s.key for s in plan(ExperimentSpec())]


def test_many_workers_at_once_take_each_experiment_once(house: House) -> None:
    wanted = {submit(house, owner) for owner in ("ann", "bob") for _ in range(8)}
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: take(house), range(20)))
    assert sorted(one for one in taken if one is not None) == sorted(wanted)
