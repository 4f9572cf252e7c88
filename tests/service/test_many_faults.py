"""A random sequence of 30 faults while ten experiments run: all end, with the numbers of an undisturbed run.

`FAULTS_SEED` repeats a sequence; the seed is in the output.
"""

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing

import httpx2
import pytest
import redis

from app.settings import Settings
from tests.conftest import CHILDREN, Stack
from tests.processes import alive, descendants
from tests.service.conftest import Team
from tests.service.phases import assert_completed_once
from tests.service.specs import numbers, spec

EXPERIMENTS, FAULTS = 10, 30
SEED = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(10**6)))
pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
Fault = Callable[[], None]


def kill_one(stack: Stack, chance: random.Random) -> None:
    stack.kill(chance.choice(list(CHILDREN)))


def kill_a_run(stack: Stack, _chance: random.Random) -> None:
    for pid in descendants(stack.pid("worker")):
        os.kill(pid, signal.SIGKILL)


def sleep(stack: Stack, chance: random.Random) -> None:
    """Of the whole machine, mostly for longer than a lease."""
    family = [stack.process.pid, *descendants(stack.process.pid)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(chance.uniform(1, 5))
    for pid in family:
        os.kill(pid, signal.SIGCONT)


def empty_the_broker(stack: Stack, _chance: random.Random) -> None:
    with closing(redis.Redis(unix_socket_path=str(Settings(home=stack.home).broker_socket))) as client:
        client.flushall()


def damage_the_files_of_the_broker(stack: Stack, _chance: random.Random) -> None:
    for file in (stack.home / "valkey/appendonlydir").glob("*.incr.aof"):
        with file.open("ab") as appended:
            appended.write(bytes(4096))
    stack.kill("broker")


def remove_the_files_of_the_broker(stack: Stack, _chance: random.Random) -> None:
    shutil.rmtree(stack.home / "valkey")


def take_the_object_store_away(stack: Stack, chance: random.Random) -> None:
    objects, away = stack.home / "objects", stack.home / "away"
    objects.rename(away)
    objects.touch()
    time.sleep(chance.uniform(1, 5))
    objects.unlink()
    away.rename(objects)


def damage_a_stage(stack: Stack, chance: random.Random) -> None:
    if stages := sorted((stack.home / "objects/stages").glob("*.safetensors")):
        file = chance.choice(stages)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)


def lock_the_database(stack: Stack, chance: random.Random) -> None:
    with closing(
        sqlite3.connect(stack.home / "bdlab.sqlite3", timeout=10, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(chance.uniform(1, 5))
        connection.execute("ROLLBACK")


def start_again(stack: Stack, chance: random.Random) -> None:
    """After Ctrl-C or kill -9."""
    number = chance.choice([signal.SIGINT, signal.SIGKILL])
    family = descendants(stack.process.pid)
    stack.process.send_signal(number)
    stack.process.wait(60)
    stack.eventually(lambda: not any(alive(pid) for pid in family), 10, "a process outlived the supervisor")
    (stack.home / "address").unlink(missing_ok=True)
    stack.start()


EMBEDDED_FAULTS = [
    kill_one,
    kill_a_run,
    sleep,
    empty_the_broker,
    damage_the_files_of_the_broker,
    remove_the_files_of_the_broker,
    take_the_object_store_away,
    damage_a_stage,
    lock_the_database,
    start_again,
]


def is_ready(stack: Stack) -> bool:
    try:
        return stack.client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


def is_there(stack: Stack, name: str) -> bool:
    try:
        return stack.pid(name) > 0
    except AssertionError:
        return False


def survive(stack: Stack, faults: list[Fault], chance: random.Random) -> None:
    """Reproductions use no stage of another experiment, so each computes everything."""
    print("FAULTS_SEED =", SEED)
    original = stack.submit(spec(seed=SEED, epochs=10))
    stack.wait(original)
    expected = numbers(stack.results(original))
    ids = [stack.post(f"/v1/experiments/{original}:reproduce")["id"] for _ in range(EXPERIMENTS)]
    for _ in range(FAULTS):
        fault = chance.choice(faults)
        print(time.strftime("%X"), fault.__name__)
        fault()
        time.sleep(chance.uniform(0, 4))
        if chance.random() < 0.5:  # else the next fault comes before the last one is over
            stack.eventually(lambda: is_ready(stack), 120, "it is not ready again")
    stack.eventually(lambda: is_ready(stack), 120, "it is not ready again")
    for experiment_id in ids:
        stack.wait(experiment_id, timeout=300)
        assert numbers(stack.results(experiment_id)) == expected
        assert_completed_once(stack, experiment_id)
    assert [
        item for item in stack.post("/v1/housekeeping", {}, 200)["items"] if item["part"] == "missing"
    ] == []


def test_the_service_on_one_machine(new_stack: Callable[..., Stack]) -> None:
    chance = random.Random(SEED)
    stack = new_stack(BDLAB_MAX_ATTEMPTS="5", BDLAB_LEASE_SECONDS="3")

    def once(fault: Callable[[Stack, random.Random], None]) -> Fault:
        def happen() -> None:
            # A process that an earlier fault ended may not be back yet.
            for name in CHILDREN:
                stack.eventually(lambda name=name: is_there(stack, name), 60, f"{name} is not back")
            fault(stack, chance)

        happen.__name__ = fault.__name__
        return happen

    survive(stack, [once(fault) for fault in EMBEDDED_FAULTS], chance)


def test_the_service_on_servers(team: Team) -> None:
    chance = random.Random(SEED)
    service = team.service

    def kill_a_part() -> None:
        service.kill(chance.choice(["api", "relay", "worker", "interactive", "checks"]))

    def kill_a_server() -> None:
        server = chance.choice([team.postgres, team.broker, team.s3])
        server.kill()
        time.sleep(chance.uniform(0, 5))
        server.start()

    def kill_the_run() -> None:
        kill_a_run(service, chance)

    survive(service, [kill_a_part, kill_a_server, kill_the_run], chance)
