"""The same on PostgreSQL: schema, races, pages."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, make_url, select, text
from sqlalchemy.exc import DatabaseError

from app.core import database
from app.core.database import Database, make_engine, utcnow
from app.core.security import Limits
from app.data.uploads import repository
from app.experiments import lifecycle, scheduling
from app.operations import schema
from app.results.search import plans
from app.settings import Settings
from app.specs.placement import CPU
from app.sweeps.completion import finish_sweeps
from app.tables.experiments import Experiment
from app.tables.results import ResultValue
from app.tables.uploads import Upload
from app.team.quotas import admit_bytes
from app.webhooks.sender import Sender
from tests.app.conftest import QUICK, Service
from tests.app.numbers import arm, check_compared_curves, check_downsampling, done
from tests.app.people import people
from tests.app.receiver import Authority, receiving
from tests.app.sending import MODEL, post, sent_model, weights
from tests.app.test_audit import check_append_only, check_pruning
from tests.processes import wait_for
from tests.servers import Postgres
from worker.checking import check


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    return postgres.fresh()


def test_the_schema_goes_up_and_down(url: str) -> None:
    for _ in range(2):
        schema.upgrade(url)
        engine = make_engine(url)
        assert schema.differences(engine) == []
        schema.downgrade(url)
        assert inspect(engine).get_table_names() == ["alembic_version"]
        engine.dispose()


def test_parts_of_names_are_found_by_an_index_where_its_extension_may_be_made(
    url: str, postgres: Postgres
) -> None:
    schema.upgrade(url)
    engine = make_engine(url)
    with engine.connect() as connection:
        for other in ("seqscan", "indexscan", "indexonlyscan"):
            connection.execute(text(f"SET enable_{other} = off"))
        query = "EXPLAIN SELECT id FROM experiments WHERE name ILIKE '%part%'"
        assert any(schema.OPTIONAL_INDEX in line for line in connection.scalars(text(query)))
    engine.dispose()

    restricted = postgres.fresh()
    engine = make_engine(restricted)
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE tenant LOGIN"))
        connection.execute(text("GRANT ALL ON SCHEMA public TO tenant"))
    engine.dispose()
    as_tenant = make_url(restricted).set(username="tenant").render_as_string(hide_password=False)
    schema.upgrade(as_tenant)
    engine = make_engine(as_tenant)
    assert schema.differences(engine) == []
    indexes = {index["name"] for index in inspect(engine).get_indexes("experiments")}
    assert "ix_experiments_created" in indexes
    assert schema.OPTIONAL_INDEX not in indexes
    engine.dispose()


def test_the_audit_log_is_append_only(
    url: str, tmp_path: Path, serving: Callable[[Settings], AbstractContextManager[Service]]
) -> None:
    schema.upgrade(url)
    database = Database(url)
    check_append_only(database)
    with pytest.raises(DatabaseError, match="append-only"), database.writing() as session:
        session.execute(text("TRUNCATE audit"))
    with serving(Settings(home=tmp_path, database_url=url)) as service:
        check_pruning(database, lambda body: service.http.post("/v1/housekeeping", json=body))
    database.close()


def test_a_locked_table_is_an_answer_soon(
    url: str,
    tmp_path: Path,
    serving: Callable[[Settings], AbstractContextManager[Service]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "REQUEST_BUSY_SECONDS", 0.3)
    with serving(Settings(home=tmp_path, database_url=url)) as service, service.database.writing() as session:
        session.execute(text("LOCK TABLE experiments"))
        began = time.monotonic()
        answer = service.http.post("/v1/experiments", json={})
        assert (answer.status_code, "lock timeout" in answer.json()["detail"]) == (503, True)
        assert time.monotonic() - began < 3


def test_an_experiment_from_end_to_end(
    url: str, tmp_path: Path, serving: Callable[[Settings], AbstractContextManager[Service]]
) -> None:
    with serving(Settings(home=tmp_path, database_url=url)) as service, ThreadPoolExecutor(8) as pool:
        key = {"Idempotency-Key": "race"}
        answers = list(
            pool.map(lambda _: service.http.post("/v1/experiments", json=QUICK, headers=key), range(8))
        )
        assert [a.status_code for a in answers] == [202] * 8
        assert len({a.text for a in answers}) == 1
        experiment = answers[0].json()

        def claim(worker: str) -> int | None:
            with service.database.writing() as session:
                return lifecycle.claim(session, experiment["id"], worker, 60)

        assert sorted(pool.map(claim, "abcdefgh"), key=str) == [1] + [None] * 7
        with service.database.writing() as session:
            assert lifecycle.renew(session, experiment["id"], 1, -1) is False
            [(expired, expired_at)] = scheduling.expired(session, 30)
            assert expired == experiment["id"]
            assert scheduling.reap(session, expired, expired_at)
            assert len(scheduling.due(session)) == 2
            scheduling.purge(session, 60, 60)
        check_downsampling(service)
        check_compared_curves(service)
        service.end(experiment["id"])
        found = service.get(experiment["id"])
        assert [a["outcome"] for a in found["attempts"]] == ["lost", "succeeded"]
        names = [service.submit({"name": f"e{i}", "tags": {"set": "pages"}})["name"] for i in range(4)]
        first = service.http.get("/v1/experiments?tag=set:pages&limit=3").json()
        second = service.http.get(first["next"]).json()
        assert [e["name"] for p in (first, second) for e in p["experiments"]] == names[::-1]
        assert service.http.get("/readyz").json()["checks"]["database"]["ok"]
        assert 'bdlab_experiments{status="queued"}' in service.http.get("/metrics").text
        assert service.http.delete(experiment["links"]["self"]).status_code == 204


def test_a_long_submission_keeps_no_worker_from_its_claim(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.fresh()
    settings = Settings(home=tmp_path, database_url=url)
    schema.upgrade(url)
    database = Database(url)

    def experiment() -> Experiment:
        now = utcnow()
        return Experiment(
            name="",
            spec={},
            spec_hash="",
            dataset="",
            model="",
            attack="",
            created_at=now,
            queued_at=now,
            attempts_left=1,
        )

    with database.writing() as session:
        waiting = experiment()
        session.add(waiting)
    with database.writing() as long:
        long.add(experiment())
        long.flush()  # now it refers to the owner
        with database.writing() as session:
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            assert scheduling.claim_next(session, waiting.id, "worker", [CPU], settings) == (waiting.id, 1)
    database.close()


def test_sweeps_and_studies(
    url: str, tmp_path: Path, serving: Callable[[Settings], AbstractContextManager[Service]]
) -> None:
    with serving(Settings(home=tmp_path, database_url=url)) as service, ThreadPoolExecutor(4) as pool:
        grid = {"training.epochs": [2, 3], "seeds": [[0], [1]], "attack": [{"name": "sig"}]}

        def post(_: int) -> Any:
            return service.http.post("/v1/sweeps", json={"grid": grid}, headers={"Idempotency-Key": "many"})

        answers = [answer.json() for answer in pool.map(post, range(4))]
        assert answers[0]["cells"] == 4
        assert [a["id"] for a in answers] == [answers[0]["id"]] * 4
        links = answers[0]["links"]
        page = service.http.get(f"{links['cells']}?limit=3").json()
        cells = page["cells"] + service.http.get(page["next"]).json()["cells"]
        assert [(c["coordinates"]["seeds"], c["coordinates"]["training.epochs"]) for c in cells] == [
            ([0], 2),
            ([0], 3),
            ([1], 2),
            ([1], 3),
        ]
        service.end(cells[0]["experiment_id"], "failed", "no")
        canceled = list(pool.map(lambda _: service.http.post(links["cancel"]).json(), range(4)))
        assert [c["experiments"]["canceled"] for c in canceled] == [3] * 4
        assert service.http.post(links["retry"]).json()["experiments"]["queued"] == 1

        body = {"attacks": [{"attack": {"name": "sig"}}], "training": {"epochs": 9}, "reference": False}
        study = service.http.post("/v1/studies", json=body).json()
        (experiment,) = service.http.get(study["links"]["experiments"]).json()["experiments"]
        numbers = {"clean_accuracy": 0.9, "attack_success_rate": 1.0}
        service.add(
            *(
                ResultValue(experiment_id=experiment["id"], arm="undefended", seed=0, metric=m, value=v)
                for m, v in numbers.items()
            )
        )
        service.end(experiment["id"])
        more = {"defenses": [{"name": "nad"}]}
        extended = list(
            pool.map(lambda _: service.http.post(study["links"]["extend"], json=more).json(), range(4))
        )
        assert [(e["cells"], e["experiments"]["queued"]) for e in extended] == [(2, 1)] * 4
        table = service.http.get(study["links"]["table"] + "?format=markdown").text
        assert table.splitlines()[4] == "| sig | 90.0 / 100.0 | queued |"
        assert service.http.post("/v1/studies", json=body).json()["reused"] == 1
        for link in (links["self"], study["links"]["self"]):
            assert service.http.delete(link).status_code == 204
        assert (
            service.http.get(f"/v1/experiments/{experiment['id']}").status_code == 200
        )  # another study uses it


def test_results_are_searched_and_ranked(
    url: str,
    tmp_path: Path,
    serving: Callable[[Settings], AbstractContextManager[Service]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving(Settings(home=tmp_path, database_url=url)) as service:
        made = [
            done(
                service,
                {"attack": {"name": name}, "defenses": [{"name": "abl"}], "tags": {"set": "search"}},
                {("undefended", 0): arm(0.9, 1.0), ("abl", 0): arm(0.8 + n / 100, 0.1 * n)},
            )["id"]
            for n, name in enumerate(("badnets", "sig", "blend"))
        ]
        for few in (plans.FEW, 0):
            monkeypatch.setattr(plans, "FEW", few)
            for sort, expected in (
                ("-results.clean_accuracy", made[::-1]),
                ("attack.name", [made[0], made[2], made[1]]),
                ("created_at", made),
            ):
                query = {
                    "where": ["tag.set=search", "arm=abl", "attack.name!=null"],
                    "sort": sort,
                    "limit": 2,
                }
                first = service.http.get("/v1/results", params=query).json()
                second = service.http.get(first["next"]).json()
                rows = first["rows"] + second["rows"]
                assert [row["experiment_id"] for row in rows] == expected, (few, sort)
        cells = service.http.get("/v1/leaderboard").json()["cells"]
        assert {(cell["attack"], cell["defense"]) for cell in cells} == {
            (attack, defense) for attack in ("badnets", "sig", "blend") for defense in ("undefended", "abl")
        }
        compared = service.http.get("/v1/compare", params={"ids": ",".join(made)}).json()
        assert compared["arms"][1]["metrics"][0]["differences"][2]["mean"] == pytest.approx(0.02)
        assert service.http.delete(f"/v1/experiments/{made[0]}").status_code == 204
        assert len(service.http.get("/v1/leaderboard").json()["cells"]) == 4


def test_an_upload_from_end_to_end(
    url: str, tmp_path: Path, serving: Callable[[Settings], AbstractContextManager[Service]]
) -> None:
    settings = Settings(home=tmp_path, database_url=url)
    with serving(settings) as service, ThreadPoolExecutor(4) as pool:
        data = weights()
        ids = set(pool.map(lambda _: sent_model(service.http, data), range(4)))
        assert len(ids) == 1
        [model_id] = ids
        with service.database.reading() as session:
            assert repository.due(session) == {model_id: True}
            assert repository.count_unclaimed(session) == 1
        assert check(model_id, settings) == "ready"
        spec = {"model": MODEL, "victim": {"model_id": model_id}}
        experiment = service.submit(spec)
        assert service.http.delete(f"/v1/models/{model_id}").status_code == 409
        assert service.http.get("/v1/models?limit=1&status=ready").json()["models"][0]["id"] == model_id
        service.http.post(experiment["links"]["cancel"])
        assert service.http.delete(experiment["links"]["self"]).status_code == 204
        assert service.http.delete(f"/v1/models/{model_id}").status_code == 204
        odd = weights(labels={"backdoored": "tr\0ue"})
        answer = post(service.http, "/v1/models", odd, {"model": MODEL, "dataset": {"name": "digits"}})
        assert check(answer.json()["id"], settings) == "ready"


def test_an_upload_waits_for_another_one_of_its_owner_that_is_being_stored(
    postgres: Postgres, tmp_path: Path
) -> None:
    """By another API process. Together they would exceed the quota, which each of them alone does not."""
    size = 100_000
    with (
        people(tmp_path, database_url=postgres.fresh(), quota_bytes=size * 3 // 2) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        ann = made.of("ann")
        sent_model(ann, b"x")
        database = made.service.database
        with database.reading() as session:
            row = session.scalars(select(Upload)).one()
        with database.of(row.owner_id, Limits(bytes=size * 3 // 2)).writing() as session:
            admit_bytes(session, size)
            session.get_one(Upload, row.id).stored_bytes = size
            session.flush()
            answer = pool.submit(post, ann, "/v1/models", bytes(size), {"name": "at the same time"})
            time.sleep(0.3)
            assert not answer.done()
        assert answer.result().status_code == 429
        assert ann.get("/v1/me").json()["quotas"]["bytes"]["used"] == size


def test_two_senders_tell_of_everything_once(
    url: str,
    tmp_path: Path,
    serving: Callable[[Settings], AbstractContextManager[Service]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the experiments of a sweep end, and are canceled, all at the same time."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    settings = Settings(home=tmp_path, database_url=url, webhook_private=True, relay_seconds=0.01)
    stop = threading.Event()
    with (
        serving(settings) as service,
        receiving(authority) as receiver,
        ThreadPoolExecutor(12) as pool,
    ):
        hook = service.http.post("/v1/webhooks", json={"url": receiver.url}).json()
        senders = [pool.submit(Sender(settings, finish_sweeps).run, stop) for _ in range(2)]
        for _ in range(3):
            sweep = service.http.post(
                "/v1/sweeps", json={"grid": {"training.epochs": list(range(2, 10))}}
            ).json()
            cells = service.http.get(sweep["links"]["cells"]).json()["cells"]
            attempts = {c["experiment_id"]: service.start(c["experiment_id"]) for c in cells[:6]}

            def finish(experiment: str, attempts: dict[str, int] = attempts) -> None:
                with service.database.writing() as session:
                    assert lifecycle.finish(session, experiment, attempts[experiment], "succeeded")

            cancels = [pool.submit(service.http.post, sweep["links"]["cancel"]) for _ in range(2)]
            list(pool.map(finish, attempts))
            assert [cancel.result().status_code for cancel in cancels] == [202, 202]
        wait_for(lambda: len(receiver.got) == 3 * 9, "every event")
        time.sleep(0.2)
        stop.set()
        for sender in senders:
            sender.result(20)
        told = Counter(json.loads(got.body)["type"] for got in receiver.got)
        assert told == {"experiment.succeeded": 18, "experiment.canceled": 6, "sweep.finished": 3}
        page = service.http.get(f"/v1/webhooks/{hook['id']}/deliveries?limit=200&status=delivered").json()
        assert len(page["deliveries"]) == 27
        assert service.http.delete(f"/v1/webhooks/{hook['id']}").status_code == 204
