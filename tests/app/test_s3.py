"""The API on S3: streamed uploads, parts of files, links to the bucket, an outage."""

import os
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx2
import pytest

from app.core.database import utcnow
from app.settings import Settings
from app.tables.artifacts import Artifact
from tests.app.conftest import Service, serve
from tests.app.sending import ABOUT, pictures, post
from tests.processes import wait_for
from tests.servers import S3
from worker.checking import check

DATA = os.urandom(12_000_000)  # more than two parts of a streamed write


@pytest.fixture(scope="module")
def service(s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.environment.items():
            patch.setenv(name, value)
        settings = Settings(
            home=tmp_path_factory.mktemp("s3"),
            objects_url=f"{s3.url}/api",
            objects_public_endpoint=s3.environment["AWS_ENDPOINT_URL"].replace("127.0.0.1", "localhost"),
        )
        with serve(settings) as running:
            yield running


@pytest.fixture(scope="module")
def artifact(service: Service) -> dict[str, Any]:
    experiment = service.submit()
    digest, key = service.store(DATA)
    row = Artifact(
        experiment_id=experiment["id"],
        name="model.safetensors",
        kind="checkpoint",
        media_type="application/octet-stream",
        size=len(DATA),
        sha256=digest,
        object_key=key,
        details={},
        created_at=utcnow(),
    )
    service.add(row)
    return service.http.get(experiment["links"]["artifacts"]).json()["artifacts"][0]


def test_a_file_in_whole_and_in_part(service: Service, artifact: dict[str, Any]) -> None:
    assert service.http.get(artifact["content"]).content == DATA
    part = service.http.get(artifact["content"], headers={"Range": "bytes=5000000-5000009"})
    assert (part.status_code, part.content) == (206, DATA[5_000_000:5_000_010])
    assert not service.objects.exists("sha256/none")
    assert service.objects.get("sha256/none") is None
    service.objects.delete("sha256/none")


def test_a_link_leads_straight_to_the_bucket(service: Service, artifact: dict[str, Any]) -> None:
    link = service.http.get(f"/v1/artifacts/{artifact['id']}/link?seconds=60").json()
    assert link["url"].startswith(service.settings.objects_public_endpoint + "/")
    with httpx2.Client() as anybody:
        assert sha256(anybody.get(link["url"]).content).hexdigest() == artifact["sha256"]
        assert anybody.get(link["url"], headers={"Range": "bytes=-7"}).content == DATA[-7:]
        assert anybody.get(link["url"].partition("?")[0]).status_code == 403
        assert anybody.get(link["url"].replace("X-Amz-Expires=60", "X-Amz-Expires=6000")).status_code == 403
        assert anybody.delete(link["url"]).status_code == 403
    assert service.objects.exists(f"sha256/{artifact['sha256'][:2]}/{artifact['sha256']}")


def test_an_upload_is_streamed_and_checked(service: Service) -> None:
    data = pictures(80_000)
    assert len(data) > 5 * 2**20
    answer = post(service.http, "/v1/datasets", data, {"format": "npz"})
    assert answer.status_code == 202, answer.text
    assert answer.json()["sha256"] == sha256(data).hexdigest()
    assert check(answer.json()["id"], service.settings) == "ready"
    dataset = service.http.get(f"/v1/datasets/{answer.json()['id']}").json()
    assert dataset["facts"]["train_counts"] == [40_000, 40_000]


def test_an_outage_is_said_and_passes(service: Service, artifact: dict[str, Any], s3: S3) -> None:
    s3.kill()
    try:
        answer = service.http.get(artifact["content"])
        assert (answer.status_code, "object store" in answer.json()["detail"]) == (503, True)
        assert service.http.get("/readyz").json()["checks"]["objects"]["ok"] is False
        answer = post(service.http, "/v1/models", b"a model", ABOUT)
        assert answer.status_code == 503
    finally:
        s3.start()
    # It says that it is there before its volumes are.
    wait_for(lambda: service.http.get(artifact["content"]).content == DATA, "the file", 30)
