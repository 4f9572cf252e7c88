"""What the service lets be seen of itself: ids, logs without secrets, counts that add up, names that documents use."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy import select
from structlog.contextvars import bound_contextvars

from app.core import logs, metrics
from app.core.database import Database
from app.operations.health.shared_counters import Pusher
from app.settings import Settings
from app.tables.counters import SharedCounter
from app.tables.experiments import Experiment
from tests.app.conftest import QUICK, Service

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"bdlab_[a-z_]+")
KEY = "bdlab_abcdefgh_" + "k" * 43


def samples(service: Service) -> dict[str, dict[frozenset[str], float]]:
    """Every sample of /metrics: name -> values of the labels -> value."""
    found: dict[str, dict[frozenset[str], float]] = {}
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/experiments/none", None, 404),
        ("GET", "/nowhere", None, 404),
        ("PUT", "/v1/experiments", None, 405),
        ("POST", "/v1/experiments", b"{", 400),
        ("POST", "/v1/experiments", b'{"name": 1}', 422),
        ("POST", "/v1/experiments", b" " * 30_000, 413),
        ("GET", "/v1/experiments?limit=0", None, 422),
        ("GET", "/v1/experiments?text=%00", None, 400),
        ("POST", "/v1/previews", b"{}", 503),
    ],
)
def test_every_error_names_its_request(
    service: Service, method: str, path: str, body: bytes | None, status: int
) -> None:
    headers = {"X-Request-ID": "mine-1", "Content-Type": "application/json"}
    answer = service.http.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.headers["X-Request-ID"]) == (status, "mine-1")
    assert answer.json()["request_id"] == "mine-1"
    given = service.http.request(method, path, content=body, headers={**headers, "X-Request-ID": "no good\\"})
    assert re.fullmatch("[0-9a-f]{32}", given.json()["request_id"])


def test_an_experiment_keeps_the_request_that_asked_for_it(service: Service) -> None:
    def kept(experiment_id: str) -> str | None:
        with service.database.reading() as session:
            return session.get_one(Experiment, experiment_id).request_id

    experiment = service.submit(QUICK, **{"X-Request-ID": "first"})["id"]
    assert kept(experiment) == "first"
    service.end(experiment, "failed", "for a test")
    retried = service.http.post(f"/v1/experiments/{experiment}:retry", headers={"X-Request-ID": "second"})
    assert retried.status_code == 202
    assert kept(experiment) == "second"
    grid = {"grid": {"seeds": [[0], [1]]}}
    answer = service.http.post("/v1/sweeps", json=grid, headers={"X-Request-ID": "many"})
    assert answer.status_code == 202
    with service.database.reading() as session:
        assert len(session.scalars(select(Experiment).where(Experiment.request_id == "many")).all()) == 2


def test_secrets_are_blotted_out_of_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", 'aws/"quoted"/key')
    scrub = logs.scrubber(
        Settings(
            secret=SecretStr("a secret, signed"),
            key_pepper=SecretStr("pepper-pepper"),
            database_url="postgresql+psycopg://bdlab:p%40ssw0rd@host/db",
            broker_url="redis://:broker-word@host:6379/0",
        )
    )
    for line, gone in [
        (f"GET /x?key={KEY}", "kkkk"),
        ("Authorization: Bearer abcdefghijklmnop", "abcdefgh"),
        ("authorization: basic dXNlcjpwYXNzd29yZA==", "dXNl"),
        ("cannot reach postgresql://me:hidden-word@db/x", "hidden-word"),
        ("cannot reach redis://:hidden-word@db/0", "hidden-word"),
        ("https://b.s3/x?X-Amz-Credential=AKIA1/s3&X-Amz-Signature=0123abcd&x=1", "0123abcd"),
        ("GET /v1/downloads/QUJDREVGZ2hpamts", "QUJDR"),
        ("webhook signed with whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r"),
        ("the secret is a secret, signed", "a secret, signed"),
        ("pepper-pepper", "pepper-pepper"),
        ("p@ssw0rd and p%40ssw0rd", "ssw0rd"),
        ("broker-word", "broker-word"),
        (json.dumps({"key": 'aws/"quoted"/key'}), "quoted"),
    ]:
        assert gone not in scrub(line), line
        assert logs.HIDDEN in scrub(line), line
    assert scrub("GET /v1/experiments/0197 of bdlab_abcdefgh") == "GET /v1/experiments/0197 of bdlab_abcdefgh"


@pytest.fixture
def restored() -> Any:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.mark.parametrize("form", ["json", "console", "auto"])
def test_lines_are_json_or_for_people(form: Any, restored: None, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("api", Settings(log_format=form))
    try:
        raise ValueError(f"no {KEY}")
    except ValueError:
        with bound_contextvars(request_id="r1", experiment_id="e1"):
            logging.getLogger("somewhere").exception("it %s", "broke", extra={"status": 500})
    text = capsys.readouterr().err
    assert KEY not in text
    # A service of another test may still end, and log its last request.
    text = "".join(line for line in text.splitlines(True) if form == "console" or "it broke" in line)
    assert "ValueError: no bdlab_abcdefgh_***" in text
    if form == "console":
        assert "request_id=r1" in text
        assert "it broke" in text
        return
    line = json.loads(text)
    assert (line["message"], line["level"], line["process"]) == ("it broke", "error", "api")
    assert (line["request_id"], line["experiment_id"], line["status"]) == ("r1", "e1", 500)


def test_processes_add_up_and_nothing_counted_while_the_database_was_away_is_lost(service: Service) -> None:
    one, other = Pusher("worker"), Pusher("relay")
    metrics.EPOCHS.labels("a test").inc(3)
    away = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    one.push(away)
    away.close()
    metrics.EPOCHS.labels("a test").inc(2)
    metrics.OBJECTS_SECONDS.labels("a test").observe(0.03)
    for _ in range(2):  # what was told once is not told again
        one.push(service.database)
        other.push(service.database)
    found = samples(service)
    epochs = {key: value for key, value in found["bdlab_epochs_total"].items() if "a test" in key}
    assert epochs == {frozenset(("a test", name)): 5 for name in ("api", "worker", "relay")}
    buckets = [key for key in found["bdlab_objects_seconds_bucket"] if "a test" in key and "worker" in key]
    assert len(buckets) == len(metrics.SLOW) + 1
    with service.database.reading() as session:
        rows = session.scalars(
            select(SharedCounter).where(SharedCounter.sample == "bdlab_epochs_total")
        ).all()
    assert sum(row.value for row in rows if "a test" in row.labels) == 10


def test_what_happened_is_counted_once_it_is_there(service: Service) -> None:
    succeeded = frozenset(("succeeded", "api"))
    before = samples(service).get("bdlab_experiments_ended_total", {}).get(succeeded, 0)
    experiment = service.submit()["id"]
    service.end(experiment)
    after = samples(service)
    assert after["bdlab_experiments_ended_total"][succeeded] == before + 1
    assert after["bdlab_database_seconds_count"][frozenset(("insert", "api"))] > 0


def test_documents_alerts_and_dashboard_name_metrics_that_exist(service: Service) -> None:
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    named = {family.name.removesuffix("_total") for family in families}
    named.add("bdlab_queue_messages")  # which this service lacks, since it has no broker
    samples_of = {
        f"{n}{suffix}" for n in named for suffix in ("", "_total", "_bucket", "_count", "_sum", "_info")
    }
    rules = yaml.safe_load((ROOT / "deploy/monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((ROOT / "deploy/monitoring/grafana.json").read_text())["panels"]
    asked = [rule["expr"] for rule in rules] + [t["expr"] for panel in panels for t in panel["targets"]]
    for expression in asked:
        used = set(NAME.findall(expression))
        assert used, expression
        assert used <= samples_of, expression
        assert expression.count("(") == expression.count(")"), expression
    document = (ROOT / "docs/monitoring.md").read_text()
    told = {name.removesuffix("_total").removesuffix("_info") for name in NAME.findall(document)}
    ours = {name.removesuffix("_info") for name in named if name.startswith("bdlab_")}
    assert told == ours
