"""A random sequence of 30 faults while ten experiments run: all end, with the numbers of an undisturbed run.

On both databases with both object stores. `FAULTS_SEED` repeats a sequence; the seed is in the output.
"""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx2
import pytest
import redis

from app.core.context import Context
from app.core.objects import Objects, ObjectStoreError
from app.operations.housekeeping.service import run_housekeeping
from app.settings import RetentionPolicy, Settings
from tests.conftest import CHILDREN, Stack
from tests.processes import alive, descendants
from tests.servers import S3, Postgres, Server
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


def pause(processes: list[int], seconds: float) -> None:
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def sleep(stack: Stack, chance: random.Random) -> None:
    """Of the whole machine, mostly for longer than a lease."""
    pause([stack.process.pid, *descendants(stack.process.pid)], chance.uniform(1, 5))


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
    objects = folder_of(stack)
    away = objects.with_name("away")
    objects.rename(away)
    objects.touch()
    time.sleep(chance.uniform(1, 5))
    objects.unlink()
    away.rename(objects)


def fill_the_disk(stack: Stack, chance: random.Random) -> None:
    """That of the object store, to the last byte."""
    filler = folder_of(stack).with_name("filler")
    with filler.open("wb") as file, suppress(OSError):  # the service may have written something since
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(filler.parent).free)
    time.sleep(chance.uniform(1, 8))
    filler.unlink()


def damage_a_stage(stack: Stack, chance: random.Random) -> None:
    objects = Objects(settings_of(stack).objects)
    with suppress(ObjectStoreError):  # an earlier fault may have taken the store away
        if stages := sorted(key for key in objects.list_all() if key.startswith("stages/")):
            key = chance.choice(stages)
            content = bytearray(objects.get(key) or b"\0")
            content[len(content) // 2] ^= 0xFF
            objects.put(key, bytes(content))


def lock_the_database(stack: Stack, chance: random.Random) -> None:
    with closing(
        sqlite3.connect(stack.home / "bdlab.sqlite3", timeout=10, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(chance.uniform(1, 5))
        connection.execute("ROLLBACK")


def move_the_clock(stack: Stack, chance: random.Random) -> None:
    """Of all processes of the service. Only ahead where the database is on the same machine, since the order of times
    is looked at in the end; at most ten minutes, since S3 refuses requests of another time."""
    file = Path(stack.environment["MOVED_CLOCK"])
    ahead = stack.environment["BDLAB_DATABASE_URL"] == ""
    file.write_text(str(int(file.read_text()) + chance.randint(0 if ahead else -600, 600)))


def start_again(stack: Stack, chance: random.Random) -> None:
    """After Ctrl-C or kill -9."""
    number = chance.choice([signal.SIGINT, signal.SIGKILL])
    family = descendants(stack.process.pid)
    stack.process.send_signal(number)
    stack.process.wait(60)
    stack.eventually(lambda: not any(alive(pid) for pid in family), 10, "a process outlived the supervisor")
    (stack.home / "address").unlink(missing_ok=True)
    stack.start()


ANYWHERE = [
    kill_one,
    kill_a_run,
    sleep,
    empty_the_broker,
    damage_the_files_of_the_broker,
    remove_the_files_of_the_broker,
    damage_a_stage,
    start_again,
]


def settings_of(stack: Stack) -> Settings:
    addresses = {"database_url": "BDLAB_DATABASE_URL", "objects_url": "BDLAB_OBJECTS_URL"}
    return Settings(home=stack.home, **{field: stack.environment[name] for field, name in addresses.items()})


def folder_of(stack: Stack) -> Path:
    return Path(stack.environment["BDLAB_OBJECTS_URL"].removeprefix("file://"))


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
    assert_nothing_is_left_over(settings_of(stack))


def assert_nothing_is_left_over(settings: Settings) -> None:
    """No row without its file and, after one round of housekeeping without its day of grace, no file without a row."""
    context = Context.open(settings)
    policy = RetentionPolicy().model_copy(update={"grace_hours": 0.0})
    try:
        run_housekeeping(context, policy, delete=True)
        left = run_housekeeping(context, policy, delete=False)
    finally:
        context.close()
    assert [item for item in left.items if item.part in ("orphans", "missing")] == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own. Mounting one needs root: without it, the disk cannot be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder], check=False, capture_output=True
    ).returncode
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def clock(tmp_path: Path) -> dict[str, str]:
    """The variables of a service whose clock `move_the_clock` moves; without a C compiler it cannot be moved."""
    library, offset = tmp_path / "clock.so", tmp_path / "offset"
    offset.write_text("0")
    source = Path(__file__).with_name("moved_clock.c")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    except FileNotFoundError:
        return {}
    return {"LD_PRELOAD": str(library), "MOVED_CLOCK": str(offset)}


@pytest.mark.parametrize("store", ["folder", "s3"])
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_the_service_on_one_machine(
    database: str,
    store: str,
    disk: Path,
    clock: dict[str, str],
    new_stack: Callable[..., Stack],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(SEED)
    variables = {"BDLAB_MAX_ATTEMPTS": "5", "BDLAB_LEASE_SECONDS": "3", "BDLAB_DATABASE_URL": ""} | clock
    variables["BDLAB_OBJECTS_URL"] = f"file://{disk}/objects"
    faults = [*ANYWHERE, *([move_the_clock] if clock else [])]
    servers: list[Server] = []
    if database == "sqlite":
        faults.append(lock_the_database)
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        variables["BDLAB_DATABASE_URL"] = postgres.fresh()
        servers.append(postgres)
    if store == "folder":
        faults.append(take_the_object_store_away)
        if disk.is_mount():
            faults.append(fill_the_disk)
    else:
        s3: S3 = request.getfixturevalue("s3")
        variables |= {"BDLAB_OBJECTS_URL": f"{s3.url}/{SEED}-{database}", **s3.environment}
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        servers.append(s3)
    stack = new_stack(**variables)

    def once(fault: Callable[[Stack, random.Random], None]) -> Fault:
        def happen() -> None:
            # A process that an earlier fault ended may not be back yet.
            for name in CHILDREN:
                stack.eventually(lambda name=name: is_there(stack, name), 60, f"{name} is not back")
            fault(stack, chance)

        happen.__name__ = fault.__name__
        return happen

    survive(stack, [*map(once, faults), *faults_of(servers, chance)], chance)


def faults_of(servers: list[Server], chance: random.Random) -> list[Fault]:
    """Each server dies and is started again, or does not answer, as if the network to it were cut."""

    def kill_a_server() -> None:
        server = chance.choice(servers)
        server.kill()
        time.sleep(chance.uniform(0, 5))
        server.start()

    def cut_the_network() -> None:
        pause(chance.choice(servers).processes(), chance.uniform(1, 5))

    return [kill_a_server, cut_the_network] if servers else []


def test_the_service_on_servers(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    service = team.service
    for name, value in team.s3.environment.items():
        monkeypatch.setenv(name, value)

    def kill_a_part() -> None:
        service.kill(chance.choice(["api", "relay", "worker", "interactive", "checks"]))

    def kill_the_run() -> None:
        kill_a_run(service, chance)

    servers = [team.postgres, team.broker, team.s3]
    survive(service, [kill_a_part, kill_the_run, *faults_of(servers, chance)], chance)
