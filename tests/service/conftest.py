"""The service on PostgreSQL, Valkey and S3."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.parts import Parts
from tests.servers import S3, Postgres, Valkey, free_ports


@dataclass
class Team:
    """A service whose parts run as separate processes, and the servers that it uses."""

    service: Parts
    postgres: Postgres
    broker: Valkey
    s3: S3


@pytest.fixture(scope="session")
def team(postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """PostgreSQL, a broker without persistence, and S3; the service knows only their URLs."""
    with Valkey(free_ports(1)[0], append_only=False) as broker:
        service = Parts(
            tmp_path_factory.mktemp("team") / "home",
            BDLAB_DATABASE_URL=postgres.fresh(),
            BDLAB_BROKER_URL=broker.url,
            BDLAB_OBJECTS_URL=s3.url,
            BDLAB_MAX_ATTEMPTS="20",
            BDLAB_STORAGE_PATIENCE_SECONDS="20",
            **s3.environment,
        )
        service.start()
        yield Team(service, postgres, broker, s3)
        service.client.close()
        service.stop()


@pytest.fixture(scope="session")
def servers(team: Team) -> Parts:
    """The service, for tests marked `BOTH`."""
    return team.service
