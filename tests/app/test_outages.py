"""What the API says while something that it depends on is away, and that it recovers by itself."""

import shutil
from typing import Any

import pytest
from sqlalchemy import text

from app.core.database import utcnow
from app.tables.artifacts import Artifact
from tests.app.conftest import Service


def refused(answer: Any, word: str) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"
    assert word in answer.json()["detail"]


def test_the_object_store(service: Service) -> None:
    experiment = service.submit()
    digest, key = service.store(b"data")
    artifact = Artifact(
        experiment_id=experiment["id"],
        name="a",
        kind="data",
        media_type="text/plain",
        size=4,
        sha256=digest,
        object_key=key,
        details={},
        created_at=utcnow(),
    )
    service.add(artifact)
    folder = service.settings.home_dir / "objects"
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.write_text("not a folder")
    link = f"/v1/artifacts/{artifact.id}/content"
    refused(service.http.get(link), "object store")
    assert service.http.get("/readyz").json()["checks"]["objects"]["ok"] is False
    assert service.http.delete(experiment["links"]["self"]).status_code == 204  # the rows go, the file stays
    folder.unlink()
    aside.rename(folder)
    assert service.objects.exists(key)
    shutil.rmtree(folder / "sha256")


def test_the_database(service: Service) -> None:
    with service.database.writing() as session:
        session.execute(text("ALTER TABLE experiments RENAME TO away"))
    refused(service.http.get("/v1/experiments"), "experiments")
    refused(service.http.post("/v1/experiments", json={}), "experiments")
    page = service.http.get("/")
    assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert "A component that the service needs does not respond" in page.text
    assert service.http.get("/readyz").json()["checks"]["database"]["ok"] is False
    assert "bdlab_database_up 0.0" in service.http.get("/metrics").text
    assert service.http.get("/healthz").status_code == 200
    with service.database.writing() as session:
        session.execute(text("ALTER TABLE away RENAME TO experiments"))
    service.submit()


@pytest.mark.parametrize(
    "url", ["/v1/experiments/a%00b", "/v1/experiments?tag=a:%00", "/v1/artifacts/%00/content"]
)
def test_a_character_that_no_database_takes(service: Service, url: str) -> None:
    answer = service.http.get(url)
    assert (answer.status_code, "U+0000" in answer.json()["detail"]) == (400, True)
