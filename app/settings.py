"""Every setting, from the environment with the prefix BDLAB_. The defaults run everything on one machine."""

import os
import tempfile
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.specs.artifacts import ArtifactKind

SOCKET_PATH_BYTES = 100
"""Longest path of a Unix socket that every system takes (Linux 107, macOS 103)."""

Tag = Annotated[
    str, Field(pattern=r"^[^:\x00]{1,64}(:[^:\x00]{0,200})?$", examples=["keep", "study:seed-table"])
]
"""``key``, or ``key:value``."""


def _large_kinds() -> list[ArtifactKind]:
    return ["checkpoint", "data"]


class RetentionRule(BaseModel):
    """Files of experiments that ended long enough ago."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    days: float = Field(description="The experiment ended more than so many days ago.", gt=0, le=36_500)
    kinds: list[ArtifactKind] = Field(
        default_factory=_large_kinds, description="Which of its files.", min_length=1, max_length=4
    )
    tag: Tag | None = Field(None, description="Only experiments with this tag; null is any.")


class RetentionPolicy(BaseModel):
    """What may be deleted. Files of running and queued experiments, manifests and numbers are never."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[RetentionRule] = Field(
        default_factory=list,
        description="A file goes when every experiment that has it falls under one.",
        max_length=50,
    )
    keep: list[Tag] = Field(
        default_factory=lambda: ["keep"],
        description="Files of experiments with one of these tags stay.",
        max_length=50,
    )
    max_bytes: int | None = Field(
        None,
        description="When more is stored, cached stages go, those that were used longest ago first; then checkpoints "
        "and data, those of the experiment that ended first first.",
        ge=0,
    )
    stage_days: float | None = Field(
        None, description="Cached stages that nobody used for so many days go.", gt=0, le=36_500
    )
    grace_hours: float = Field(
        24.0, description="What belongs to nothing is left alone until it is so old.", ge=1, le=8760
    )
    every_hours: float = Field(24.0, description="How often the relay acts on this.", ge=0.1, le=8760)


class Settings(BaseSettings):
    """Where things are kept and how patient the service is. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="BDLAB_", frozen=True)

    home: Path = Field(Path("var"), description="Folder for everything that the embedded default writes.")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite under home.")
    broker_url: str = Field(
        "", description="Redis-protocol URL; empty: a Valkey server that `bdlab up` runs under home."
    )
    objects_url: str = Field(
        "", description="Object store, s3://bucket/prefix or file:///folder; empty: a folder under home."
    )
    objects_public_endpoint: str = Field(
        "", description="Address of S3 in links for clients, if they do not reach it under AWS_ENDPOINT_URL."
    )
    data_dir: Path | None = Field(None, description="Data sets; default: data under home.")
    plugins_dir: Path | None = Field(
        None,
        description="Folder of Python files with your own attacks and defenses; they run with the service's rights.",
    )

    secret: SecretStr = Field(
        SecretStr(""),
        description="Signs cursors, and makes webhooks' secrets; empty: a file under home. Needed with several hosts.",
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Goes into the digests of API keys; empty: the secret. Changing it voids all keys.",
    )
    quota_queued: int | None = Field(None, description="Most queued experiments of one owner.", ge=0)
    quota_running: int | None = Field(None, description="Most running experiments of one owner.", ge=0)
    quota_device_seconds: int | None = Field(
        None, description="Most seconds on workers' devices of one owner in 30 days.", ge=0
    )
    quota_bytes: int | None = Field(None, description="Most stored bytes of one owner.", ge=0)
    quota_webhooks: int | None = Field(20, description="Most webhooks of one owner.", ge=0)
    rate_limit: int | None = Field(None, description="Most requests of one owner in a minute.", ge=1)

    webhook_timeout: float = Field(
        15.0, description="How long a webhook's receiver may take to answer.", gt=0
    )
    webhook_retry_seconds: float = Field(
        86_400.0,
        description="How long a delivery is tried again; a webhook to which nothing arrives for so long is disabled.",
        ge=0,
    )
    webhook_private: bool = Field(
        False,
        description="Let webhooks go to private and loopback addresses. For a closed network, by who runs it.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Lines of the logs: json, console, or auto: console on a terminal, else json."
    )

    max_body_bytes: int = Field(1_048_576, description="Largest accepted JSON body.", gt=0)
    max_image_bytes: int = Field(4_194_304, description="Largest accepted uploaded image.", gt=0)
    max_upload_bytes: int = Field(
        1_073_741_824, description="Largest accepted file of a model or a data set.", gt=0
    )
    max_dataset_bytes: int = Field(
        2_147_483_648, description="Largest accepted uploaded data set once it is unpacked.", gt=0
    )
    check_seconds: float = Field(
        900.0, description="Longest check of an upload; one that takes longer is tried again.", ge=1
    )
    max_sweep_cells: int = Field(
        1000, description="Most cells of a sweep, and most arms x seeds of a study.", ge=1
    )
    interactive_timeout: float = Field(
        20.0, description="How long the API waits for a preview or prediction.", gt=0
    )
    idempotency_ttl: float = Field(86_400.0, description="How long an Idempotency-Key is remembered.", gt=0)

    lease_seconds: float = Field(
        30.0, description="A worker that sends no heartbeat for so long has lost its experiment.", gt=0
    )
    heartbeat_seconds: float = Field(5.0, description="Interval of a worker's heartbeats.", gt=0)
    gpu_on_demand: bool = Field(
        False,
        description="Workers with a GPU are started once work waits for them, so such work is not given to CPUs.",
    )
    relay_seconds: float = Field(
        1.0, description="Interval at which the relay looks for work to publish or requeue.", gt=0
    )
    republish_seconds: float = Field(
        60.0, description="A queued experiment that nobody took for so long is published again.", gt=0
    )
    stage_busy_seconds: float = Field(
        5.0, description="Delay before an experiment that waits for a stage is tried again.", gt=0
    )
    cancel_grace_seconds: float = Field(
        60.0, description="A worker that has not stopped so long after a cancel kills itself.", gt=0
    )
    storage_patience_seconds: float = Field(
        120.0, description="How long a worker retries the object store before the experiment fails.", gt=0
    )
    max_attempts: int = Field(3, description="Lost attempts after which an experiment fails.", ge=1)
    checkpoint_seconds: float = Field(
        30.0, description="Least time between two checkpoints of a stage; 0 is every epoch.", ge=0
    )
    worker_niceness: int = Field(
        10,
        description="By how much `bdlab up` lowers a training worker's priority, for a quick API.",
        ge=0,
        le=19,
    )
    worker_threads: int = Field(
        0,
        description="CPU threads of a training worker; 0 leaves the choice to torch. While they wait for each other "
        "they sleep, unless `OMP_WAIT_POLICY` says otherwise.",
        ge=0,
    )
    retention: Annotated[RetentionPolicy | None, NoDecode] = Field(
        None, description="What the relay may delete, as JSON; empty: nothing. See docs/operations.md."
    )

    @field_validator("retention", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return (
            RetentionPolicy.model_validate_json(value) if isinstance(value, str) and value else value or None
        )

    @cached_property
    def home_dir(self) -> Path:
        return self.home.resolve()

    @cached_property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home_dir / 'bdlab.sqlite3'}"

    @cached_property
    def broker(self) -> str:
        """The broker's URL. The embedded Valkey listens on a Unix socket, so no port is taken."""
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}"

    @cached_property
    def broker_socket(self) -> Path:
        """The embedded Valkey's socket: under home, or in a temporary folder where that path is too long."""
        path = self.home_dir / "valkey.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        digest = sha256(os.fsencode(self.home_dir)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"bdlab-{os.getuid()}-{digest}" / "valkey.sock"

    @cached_property
    def objects(self) -> str:
        return self.objects_url or (self.home_dir / "objects").as_uri()

    @cached_property
    def datasets(self) -> Path:
        return (self.data_dir or self.home / "data").resolve()
