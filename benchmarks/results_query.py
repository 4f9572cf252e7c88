"""How fast results are found among 100,000 experiments.

Fills a database with synthetic experiments (four data sets, three models, six attacks at random rates, four
defences with random fields, two seeds; so nearly every spec is a new one), then asks the API in this process, as it
runs it in production, for lists, filters, sorts, deep pages, the leaderboard and a comparison. Prints the median and
the 95th percentile of each and the plan that was chosen.

    python benchmarks/results_query.py [--experiments 100000] [--database URL] [--repeat 30]
"""

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import uvicorn
from sqlalchemy import insert, select

from app.core import migrations
from app.core.database import Base, Database, new_id, utcnow
from app.core.owners import LOCAL
from app.experiments.tables import Experiment, Label
from app.leaderboard.tables import LeaderboardSetting, LeaderboardValue
from app.main import create_app
from app.results.tables import ResultValue
from app.search.facts import arm_of, dataset_label, facts
from app.search.tables import ResultMean, ResultRow, SpecNumber, SpecPart, SpecText
from app.settings import Settings
from app.specs.base import digest
from app.specs.experiment import ExperimentSpec
from app.specs.summary import EFFECTIVENESS, summarise

BATCH = 2_000
METRICS = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "train_accuracy", "seconds")
QUESTIONS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "list, newest first": ("/v1/results", []),
    "one attack": ("/v1/results", [("where", "attack.name=sig")]),
    "narrow range of a spec field": ("/v1/results", [("where", "attack.poisoning_rate>=0.4999")]),
    "three conditions": (
        "/v1/results",
        [
            ("where", "attack.name=sig"),
            ("where", "attack.poisoning_rate>=0.05"),
            ("where", "results.attack_success_rate<=0.05"),
        ],
    ),
    "tag": ("/v1/results", [("where", "tag.study=study-7")]),
    "sorted by a metric": ("/v1/results", [("sort", "-results.clean_accuracy"), ("where", "arm=abl")]),
    "sorted by a spec field": ("/v1/results", [("sort", "attack.poisoning_rate"), ("where", "arm=abl")]),
    "sorted by a defence's field": (
        "/v1/results",
        [("sort", "-defense.isolation_ratio"), ("where", "dataset.name=cifar10")],
    ),
    "many fit each, none fits both": (
        "/v1/results",
        [("where", "attack.name=sig"), ("where", "attack.opacity>0"), ("sort", "-results.clean_accuracy")],
    ),
    "1,000 rows as CSV": ("/v1/results", [("limit", "1000"), ("format", "csv")]),
    "leaderboard": ("/v1/leaderboard", [("dataset", "cifar10"), ("model", "resnet18")]),
    "leaderboard at a rate": (
        "/v1/leaderboard",
        [("dataset", "cifar10"), ("model", "resnet18"), ("poisoning_rate", "0.1")],
    ),
    "Pareto front": ("/v1/leaderboard/pareto", [("dataset", "cifar10"), ("model", "resnet18")]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=100_000)
    parser.add_argument("--database", default="", help="SQLAlchemy URL of an empty database; default: SQLite")
    parser.add_argument("--repeat", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), database_url=options.database)
        migrations.upgrade(settings.database)
        began = time.perf_counter()
        rows = fill(Database(settings.database), options.experiments)
        print(
            f"{options.experiments} experiments, {rows} rows, filled in {time.perf_counter() - began:.0f} s"
        )
        server = uvicorn.Server(uvicorn.Config(create_app(settings), port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        measure(server.servers[0].sockets[0].getsockname()[1], options.repeat)
        server.should_exit = True
        thread.join(20)


def measure(port: int, repeat: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    print(f"{'question':<34} {'p50 ms':>8} {'p95 ms':>8} {'rows':>6} {'kB':>7}")

    def ask(path: str) -> tuple[float, bytes]:
        start = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return 1000 * (time.perf_counter() - start), body

    def report(name: str, path: str) -> bytes:
        ask(path)
        times = sorted(ask(path)[0] for _ in range(repeat))
        _, body = ask(path)
        count = body.count(b'"experiment_id"') or body.count(b'"setting"') or body.count(b"\n") - 1
        at95 = times[min(len(times) - 1, int(0.95 * len(times)))]
        print(f"{name:<34} {times[len(times) // 2]:8.1f} {at95:8.1f} {count:6} {len(body) / 1000:7.1f}")
        return body

    for name, (path, query) in QUESTIONS.items():
        report(name, f"{path}?{urlencode(query)}")
    following: str | None = "/v1/results?limit=1000&sort=attack.poisoning_rate&fields=experiment_id,arm"
    for _ in range(100):
        if following is None:
            break
        deepest = following
        following = json.loads(ask(following)[1])["next"]
    report("page 100 of 1,000 rows each", urlsplit(deepest).path + "?" + urlsplit(deepest).query)
    ids = [row["experiment_id"] for row in json.loads(ask("/v1/results?limit=200")[1])["rows"]]
    report("comparison of four", f"/v1/compare?ids={','.join(list(dict.fromkeys(ids))[:4])}")


def fill(database: Database, experiments: int) -> int:
    """Write experiments and their index in bulk, as the indexing would; returns the number of rows."""
    random.seed(0)
    parts: dict[str, int] = {}
    settings: dict[str, int] = {}
    rows = 0
    began = utcnow() - timedelta(days=365)
    for first in range(0, experiments, BATCH):
        batch: dict[type[Base], list[dict[str, Any]]] = {}
        for n in range(first, min(first + BATCH, experiments)):
            rows = _experiment(batch, n, began + timedelta(seconds=60 * n), parts, settings, rows)
        order = (
            Experiment,
            Label,
            ResultValue,
            SpecPart,
            SpecNumber,
            SpecText,
            ResultRow,
            ResultMean,
            LeaderboardSetting,
            LeaderboardValue,
        )
        with database.writing() as session:
            for table in order:
                if batch.get(table):
                    session.execute(insert(table), batch[table])
    with database.reading() as session:
        assert session.scalar(select(ResultRow.id).order_by(ResultRow.id.desc()).limit(1)) == rows
    database.close()
    return rows


def _experiment(
    batch: dict[type[Base], list[dict[str, Any]]],
    n: int,
    at: Any,
    parts: dict[str, int],
    settings: dict[str, int],
    rows: int,
) -> int:
    rate = random.choice((0.1, round(random.uniform(0.01, 0.5), 4)))
    spec = ExperimentSpec.model_validate(
        {
            "name": f"run {n}",
            "dataset": {"name": random.choice(("digits", "cifar10", "cifar10", "gtsrb"))},
            "model": {"name": random.choice(("resnet18", "resnet18", "small_cnn", "wide_resnet_16_1"))},
            "attack": {
                "name": random.choice(("badnets", "blend", "sig", "wanet", "refool", "trojan")),
                "poisoning_rate": rate,
            },
            "defenses": [
                {"name": "abl", "isolation_ratio": round(random.uniform(0.005, 0.1), 3)},
                {"name": random.choice(("nad", "anp", "fine_pruning"))},
            ],
            "seeds": [2 * (n % 3), 2 * (n % 3) + 1],
            "tags": {"study": f"study-{n % 500}"},
        }
    )
    identity = new_id()

    def add(table: type[Base], **values: Any) -> None:
        batch.setdefault(table, []).append(values)

    add(
        Experiment,
        id=identity,
        owner_id=LOCAL,
        name=spec.name,
        status="succeeded",
        spec=spec.model_dump(mode="json"),
        spec_hash=spec.spec_hash,
        dataset=spec.dataset.name,
        model=spec.model.name,
        attack=spec.attack.name,
        created_at=at,
        queued_at=at,
        attempt=1,
        attempts_left=3,
        progress={},
    )
    add(Label, experiment_id=identity, kind="tag", key="study", value=spec.tags["study"])
    for arm in spec.arms:
        described = arm_of(spec, arm)
        ids: dict[str, int | None] = {"defense_id": None}
        for name, fields in described.parts.items():
            key = digest([name, fields])
            if key not in parts:
                parts[key] = len(parts) + 1
                add(SpecPart, id=parts[key], digest=key)
                for path, value in facts(name, fields):
                    table = SpecText if isinstance(value, str) else SpecNumber
                    add(table, part_id=parts[key], path=path, value=value)
            ids[f"{name}_id"] = parts[key]
        rows += 1
        common = {"experiment_id": identity, "arm": arm}
        add(
            ResultRow,
            id=rows,
            owner_id=LOCAL,
            name=spec.name,
            created_at=at,
            seeds=2,
            setting=described.setting,
            **common,
            **ids,
        )
        values = {
            metric: [random.random() ** (3 if metric == "attack_success_rate" else 0.2) for _ in spec.seeds]
            for metric in METRICS
        }
        for metric, numbers in values.items():
            for seed, number in zip(spec.seeds, numbers, strict=True):
                add(ResultValue, seed=seed, metric=metric, value=number, **common)
            add(ResultMean, row_id=rows, metric=metric, **(summarise(numbers) or {}))
        add(ResultMean, row_id=rows, metric=EFFECTIVENESS, **(summarise([0.9, 0.8]) or {}))
        if described.setting not in settings:
            settings[described.setting] = len(settings) + 1
            add(
                LeaderboardSetting,
                id=settings[described.setting],
                owner_id=LOCAL,
                setting=described.setting,
                dataset=dataset_label(described.parts["dataset"]),
                model=spec.model.name,
                attack=spec.attack.name,
                defense=described.defense,
                poisoning_rate=rate,
                seeds=2,
            )
            for seed, clean, attack in zip(
                spec.seeds, values["clean_accuracy"], values["attack_success_rate"], strict=True
            ):
                add(
                    LeaderboardValue,
                    setting_id=settings[described.setting],
                    seed=seed,
                    clean_accuracy=clean,
                    attack_success_rate=attack,
                    defense_effectiveness=0.85,
                    **common,
                )
    return rows


if __name__ == "__main__":
    main()
