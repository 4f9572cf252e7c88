"""A service with API keys, and what its people own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from app.core.database import utcnow
from app.core.security import SCOPES
from app.results.artifacts.storage import update_stored_bytes
from app.settings import Settings
from app.tables.artifacts import Artifact
from app.team.keys import service as keys
from app.team.keys.schemas import KeyRequest
from app.team.keys.secrets import Pepper
from tests.app.conftest import QUICK, Service, serve

ALL = tuple(SCOPES)


class People:
    """Clients of one service, each with a key of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._clients: list[httpx2.Client] = []

    def key(self, owner: str, *scopes: str, **more: Any) -> str:
        """Make a key as `bdlab keys create` does."""
        asked = KeyRequest.model_validate({"owner": owner, "scopes": scopes or ALL, **more})
        return keys.create(self.service.database, Pepper(self.service.settings), asked).key

    def client(self, key: str) -> httpx2.Client:
        """A client that sends this key."""
        client = httpx2.Client(
            base_url=self.service.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
        self._clients.append(client)
        return client

    def of(self, owner: str, *scopes: str) -> httpx2.Client:
        """A client with a new key of the owner; all scopes by default."""
        return self.client(self.key(owner, *scopes))

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def people(home: Path, **settings: Any) -> Iterator[People]:
    """A service in this folder that has at least one key."""
    given = {"data_dir": home / "data", "interactive_timeout": 0.2} | settings
    with serve(Settings(home=home, **given)) as service:
        made = People(service)
        made.key("root")
        yield made
        made.close()


def submitted(client: httpx2.Client, **spec: Any) -> str:
    """The id of a new experiment."""
    answer = client.post("/v1/experiments", json=QUICK | spec)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def stored(service: Service, experiment_id: str, data: bytes = b"weights", **details: Any) -> str:
    """The id of a new file of an experiment."""
    digest, key = service.store(data)
    artifact = Artifact(
        experiment_id=experiment_id,
        name=f"{digest[:8]}/{utcnow().timestamp()}.safetensors",
        kind="checkpoint",
        media_type="application/octet-stream",
        size=len(data),
        sha256=digest,
        object_key=key,
        details=details,
        created_at=utcnow(),
    )
    service.add(artifact)
    with service.database.writing() as session:
        update_stored_bytes(session, [experiment_id])
    return artifact.id
