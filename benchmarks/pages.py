"""Latency, processor time and size of the dashboard's pages with 100,000 experiments in the database.

Fills a database with synthetic experiments and their files. 300 sweeps and 60 studies have created some of them, one
study as large as the service allows; 20 are running, 300 queued, some failed. There are 40 workers, 200 keys, 60 owners
and 20 webhooks. Then it starts the API as a process of its own with a broker, as `bdlab up` does, and requests each
page with a key, one after another. Prints the median and the 95th percentile of the latency, the API's processor time
(on Linux), which other load of the machine affects less, and the size; exits 1 if a processor time, or where there is
none a median, or a size is above the target. A folder given as home keeps the database, so that the next run need not
fill it.

    python benchmarks/pages.py [--experiments 100000] [--database URL] [--repeat 30] [--home FOLDER]
"""

import argparse
import http.client
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from _filling import Filling, varied

from app.core.database import Database, new_id, utcnow
from app.core.security import LOCAL
from app.operations import embedded_broker, schema
from app.results.leaderboard.service import attacks, defenses
from app.settings import Settings
from app.specs.experiment import CLEAN, UNDEFENDED, ExperimentSpec
from app.specs.study import StudySpec
from app.tables.experiments import CANCELED, FAILED, QUEUED, RUNNING, SUCCEEDED, WorkerHeartbeat
from app.tables.sweeps import STUDY, SWEEP
from app.tables.webhooks import DELIVERED, Delivery, Webhook
from app.team.keys import service as keys
from app.team.keys.schemas import KeyRequest
from app.team.keys.secrets import Pepper

TARGET_MS, TARGET_KB = 100.0, 200.0
SWEEPS, CELLS, STUDIES = 300, 25, 60
RUN, WAIT, WORKERS, KEYS, OWNERS, HOOKS, DELIVERIES = 20, 300, 40, 200, 60, 20, 1_000
EVERY_DEFENSE = [name for name in defenses() if name not in (CLEAN, UNDEFENDED)]


class Made(NamedTuple):
    """The key and the ids with which pages are requested."""

    key: str
    experiment: str
    largest_experiment: str
    waiting: str
    sweep: str
    study: str
    largest_study: str
    webhook: str
    recent: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=100_000)
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: SQLite")
    parser.add_argument("--repeat", type=int, default=30)
    parser.add_argument("--home", help="folder that keeps the filled database; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.home or temporary
        settings = Settings(home=Path(folder), database_url=options.database)
        schema.upgrade(settings.database)
        known = settings.home_dir / "made.json"
        if not known.exists():
            began = time.perf_counter()
            known.write_text(json.dumps(fill(settings, options.experiments)))
            print(
                f"{options.experiments} experiments, filled in {time.perf_counter() - began:.0f} s",
                flush=True,
            )
        made = Made(*json.loads(known.read_text()))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            embedded_broker.create_folders(settings)
            broker = subprocess.Popen(embedded_broker.server_command(settings), stdout=subprocess.DEVNULL)
            while not embedded_broker.is_ready(settings):
                time.sleep(0.05)
            api = subprocess.Popen(
                [sys.executable, "-m", "app.operations.server", "--fd", str(listener.fileno())],
                pass_fds=(listener.fileno(),),
                env=os.environ
                | {"BDLAB_HOME": str(settings.home_dir), "BDLAB_DATABASE_URL": options.database},
                stderr=subprocess.DEVNULL,
            )
            try:
                return measure(listener.getsockname()[1], api.pid, made, options.repeat)
            finally:
                for process in (api, broker):
                    process.terminate()
                    process.wait()


def pages(made: Made) -> dict[str, str]:
    """The URL of each page, and of variants that may be slow."""

    def address(path: str, **query: Any) -> str:
        return f"{path}?{urlencode(query, doseq=True)}"

    one, largest = f"/experiments/{made.experiment}", f"/experiments/{made.largest_experiment}"
    return {
        "experiments": "/",
        "experiments: queued": address("/", status="queued"),
        "experiments: failed": address("/", status="failed"),
        "experiments: one attack": address("/", attack="sig"),
        "experiments: one defense": address("/", defense="nad"),
        "experiments: a rare defense": address("/", defense="strip"),
        "experiments: a tag": address("/", tag="study:study-7"),
        "experiments: name, many matches": address("/", text="run 7"),
        "experiments: name, few matches": address("/", text="run 123"),
        "experiments: name, no match": address("/", text="nothing"),
        "experiments: all filters": address(
            "/", text="run 1", status="succeeded", attack="sig", defense="nad", tag="study:study-7"
        ),
        "experiment": one,
        "queued experiment": f"/experiments/{made.waiting}",
        "experiment, every defense, ten seeds": largest,
        "predictions": f"{one}/explore",
        "isolation": f"{one}/isolation",
        "isolation, every defense, ten seeds": f"{largest}/isolation",
        "new experiment": "/new",
        "new experiment, prefilled": address("/new", **{"from": made.experiment}),
        "new sweep": "/new/sweep",
        "new study": "/new/study",
        "comparison of two": address("/compare", ids=made.recent[:2]),
        "comparison of ten": address("/compare", ids=made.recent[:10]),
        "studies and sweeps": "/sweeps",
        "sweep": f"/sweeps/{made.sweep}",
        "study": f"/studies/{made.study}",
        "largest study": f"/studies/{made.largest_study}",
        "leaderboard": "/leaderboard",
        "leaderboard: cifar10, resnet18": address("/leaderboard", board="cifar10 resnet18"),
        "leaderboard at a rate": address("/leaderboard", board="cifar10 resnet18", rate="0.1"),
        "workers": "/workers",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{made.webhook}",
        "keys": "/keys",
        "API": "/docs",
    }


def measure(port: int, api: int, made: Made, repeat: int) -> int:
    wanted, missed = pages(made), []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def ask(path: str) -> tuple[float, bytes]:
        start = time.perf_counter()
        connection.request("GET", path, headers={"Authorization": f"Bearer {made.key}"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, body)
        return 1000 * (time.perf_counter() - start), body

    print(f"{'page':<40} {'p50 ms':>8} {'p95 ms':>8} {'cpu ms':>8} {'kB':>7}")
    for name, path in wanted.items():
        ask(path)
        before = processor_ms(api)
        times = sorted(ask(path)[0] for _ in range(repeat))
        spent = (processor_ms(api) - before) / repeat
        size = len(ask(path)[1]) / 1000
        median, at95 = times[repeat // 2], times[min(repeat - 1, int(0.95 * repeat))]
        missed += [name] if (median if math.isnan(spent) else spent) > TARGET_MS or size > TARGET_KB else []
        print(f"{name:<40} {median:8.1f} {at95:8.1f} {spent:8.1f} {size:7.1f}", flush=True)
    print(f"load average {os.getloadavg()[0]:.1f}; above the target: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def processor_ms(process: int) -> float:
    """Processor time of all threads of a process in milliseconds; NaN where the system does not provide it."""
    files = [thread / "schedstat" for thread in Path(f"/proc/{process}/task").glob("*")]
    return sum(int(file.read_text().split()[0]) for file in files) / 1e6 if files else float("nan")


def fill(settings: Settings, experiments: int) -> Made:
    database = Database(settings.database)
    filling, now = Filling(database, files=True), utcnow()
    began = now - timedelta(days=365)
    every_attack = [name for name in attacks() if name != "none"]
    seeds = settings.max_sweep_cells // (len(every_attack) * (2 + len(EVERY_DEFENSE)))
    largest = table("every attack, every defense", every_attack, EVERY_DEFENSE, seeds)
    small = table("a study", ["badnets", "blend", "sig", "wanet"], ["abl", "nad", "anp"], 3)
    studies = [study(filling, spec, began) for spec in (largest, *[small] * STUDIES)]
    grids = [grid(filling, n, began) for n in range(SWEEPS)]
    everything = ExperimentSpec.model_validate(
        {
            "name": "every defense, ten seeds",
            "defenses": [{"name": name} for name in EVERY_DEFENSE],
            "reference": True,
            "seeds": range(10),
        }
    )
    largest_experiment = filling.experiment(everything, began)
    recent: list[str] = []
    for n in range(experiments - filling.experiments - RUN - WAIT):
        status = random.choices((SUCCEEDED, FAILED, CANCELED), (95, 3, 2))[0]
        one = filling.experiment(varied(n), began + timedelta(seconds=300 * n), status)
        recent = [*recent[-9:], one] if status == SUCCEEDED else recent
    for n in range(RUN):
        filling.experiment(varied(n), now - timedelta(minutes=9), RUNNING, worker=f"host-{n}:1:experiments")
    waiting = [filling.experiment(varied(n), now - timedelta(minutes=5), QUEUED) for n in range(WAIT)]
    hook = surroundings(filling)
    filling.flush()
    key = people(database, settings)
    database.close()
    return Made(
        key=key,
        experiment=recent[0],
        largest_experiment=largest_experiment,
        waiting=waiting[0],
        sweep=grids[0],
        study=studies[-1],
        largest_study=studies[0],
        webhook=hook,
        recent=recent,
    )


def table(name: str, attacks: list[str], defenses: list[str], seeds: int) -> StudySpec:
    request = {
        "name": name,
        "attacks": [{"attack": {"name": attack}} for attack in attacks],
        "defenses": [{"name": defense} for defense in defenses],
        "seeds": range(seeds),
    }
    return StudySpec.model_validate(request)


def study(filling: Filling, spec: StudySpec, at: Any) -> str:
    """A study whose experiments have all succeeded, one per attack and seed, as the service creates them."""
    made = filling.sweep(STUDY, spec.name, spec.model_dump(mode="json"), at)
    number = 0
    for attack, seed in product(spec.attacks, spec.seeds):
        one = spec.experiment(attack, seeds=[seed], defenses=spec.defenses, reference=spec.reference)
        places = [{"attack": attack.row, "arm": arm, "seed": seed} for arm in one.arms]
        numbered = list(enumerate(places, number))
        number += len(places)
        filling.cells(made, filling.experiment(one, at), {"attack": attack.row, "seed": seed}, numbered)
    return made


def grid(filling: Filling, n: int, at: Any) -> str:
    """A sweep over 25 poisoning rates."""
    base = varied(n)
    rates = [round(0.01 * (1 + i), 2) for i in range(CELLS)]
    request = {
        "name": f"sweep {n}",
        "base": base.model_dump(mode="json"),
        "grid": {"attack.poisoning_rate": rates},
    }
    made = filling.sweep(SWEEP, f"sweep {n}", request, at)
    for number, rate in enumerate(rates):
        attack = base.attack.model_copy(update={"poisoning_rate": rate})
        where = {"attack.poisoning_rate": rate}
        one = filling.experiment(base.model_copy(update={"attack": attack}), at)
        filling.cells(made, one, where, [(number, where)])
    return made


def surroundings(filling: Filling) -> str:
    """Add workers, and webhooks with deliveries; return a webhook's id."""
    now = utcnow()
    for n in range(WORKERS):
        filling.add(
            WorkerHeartbeat,
            name=f"host-{n}:1:experiments",
            queue="experiments",
            device="NVIDIA H100 80GB HBM3",
            device_kind="gpu",
            memory={"device_total": 85_000_000_000, "device_used": 20_000_000_000},
            started_at=now - timedelta(hours=5),
            seen_at=now + timedelta(hours=1),
        )
    for n in range(HOOKS):
        last = new_id()
        filling.add(
            Webhook,
            id=last,
            owner_id=LOCAL,
            url=f"https://hooks.example/{n}",
            name=f"hook {n}",
            events=["experiment.succeeded", "experiment.failed"],
            salt="00",
            digest="00",
            created_at=now,
        )
        for at in range(DELIVERIES):
            filling.add(
                Delivery,
                webhook_id=last,
                type="experiment.succeeded",
                body="{}",
                status=DELIVERED,
                created_at=now - timedelta(minutes=at),
                due_at=now,
                ended_at=now,
                attempts=1,
            )
    return last


def people(database: Database, settings: Settings) -> str:
    """Add owners and keys; return the key of an administrator, who owns the experiments."""
    pepper = Pepper(settings)
    for n in range(KEYS):
        keys.create(database, pepper, KeyRequest(owner=f"team-{n % OWNERS}", label=f"machine {n}"))
    whole = KeyRequest(owner=LOCAL, scopes=["read", "write", "artifacts:backdoored", "admin"])
    return keys.create(database, pepper, whole).key


if __name__ == "__main__":
    sys.exit(main())
