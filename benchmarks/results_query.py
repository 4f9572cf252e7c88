"""Search latency with 100,000 experiments.

Fills a database with synthetic experiments (four datasets, three models, six attacks at random rates, four defenses
with random fields, two seeds; so nearly all specs are different), then requests lists, filters, sorts, deep pages, the
leaderboard and a comparison from the API, which runs in this process as in production. Prints the median and the 95th
percentile of each.

    python benchmarks/results_query.py [--experiments 100000] [--database URL] [--repeat 30]
"""

import argparse
import http.client
import json
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import uvicorn
from _filling import Filling, varied

from app.core.database import Database, utcnow
from app.main import create_app
from app.operations import schema
from app.settings import Settings

QUESTIONS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "list, newest first": ("/v1/results", []),
    "one attack": ("/v1/results", [("where", "attack.name=sig")]),
    "narrow range of a spec field": ("/v1/results", [("where", "attack.poisoning_rate>=0.4999")]),
    "three conditions (attack, rate, success rate)": (
        "/v1/results",
        [
            ("where", "attack.name=sig"),
            ("where", "attack.poisoning_rate>=0.05"),
            ("where", "results.attack_success_rate<=0.05"),
        ],
    ),
    "tag": ("/v1/results", [("where", "tag.study=study-7")]),
    "sorted by a metric": ("/v1/results", [("sort", "-results.clean_accuracy"), ("where", "arm=abl")]),
    "sorted by a field of the spec": (
        "/v1/results",
        [("sort", "attack.poisoning_rate"), ("where", "arm=abl")],
    ),
    "sorted by a defense's field": (
        "/v1/results",
        [("sort", "-defense.isolation_ratio"), ("where", "dataset.name=cifar10")],
    ),
    "many rows match each condition, none matches both": (
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
        schema.upgrade(settings.database)
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
    print(f"{'query':<50} {'p50 ms':>8} {'p95 ms':>8} {'rows':>6} {'kB':>7}")

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
        print(f"{name:<50} {times[len(times) // 2]:8.1f} {at95:8.1f} {count:6} {len(body) / 1000:7.1f}")
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
    """Insert experiments and their index; return the number of rows of results."""
    filling, began = Filling(database), utcnow() - timedelta(days=365)
    for n in range(experiments):
        filling.experiment(varied(n), began + timedelta(seconds=60 * n))
    filling.flush()
    database.close()
    return filling.rows


if __name__ == "__main__":
    main()
