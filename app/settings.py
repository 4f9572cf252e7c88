"""Every setting, read from environment variables with the prefix BDLAB_. The defaults run everything on one machine."""

import os
import tempfile
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import (
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.specs.artifacts import ArtifactKind
from app.specs.base import Input

SOCKET_PATH_BYTES = 100
"""Maximum path of a Unix socket that every system accepts (Linux 107, macOS 103)."""

SECRETS = ("BDLAB_SECRET", "BDLAB_KEY_PEPPER")
URLS = {
    "database_url": ("sqlite:///", "postgresql+psycopg://"),
    "broker_url": ("redis://", "rediss://", "redis+socket://"),
    "objects_url": ("s3://", "file:///"),
}
"""How the URL of each back end may begin."""

Tag = Annotated[
    str, Field(pattern=r"^[^:\x00]{1,64}(:[^:\x00]{0,200})?$", examples=["keep", "study:seed-table"])
]
"""``key``, or ``key:value``."""


def _large_kinds() -> list[ArtifactKind]:
    return ["checkpoint", "data"]


class RetentionRule(Input):
    """Which files of ended experiments may be deleted."""

    model_config = ConfigDict(frozen=True)

    days: float = Field(description="Days since the experiment ended.", gt=0, le=36_500)
    kinds: list[ArtifactKind] = Field(
        default_factory=_large_kinds, description="Kinds of files.", min_length=1, max_length=4
    )
    tag: Tag | None = Field(None, description="Only experiments with this tag; null: all.")


class RetentionPolicy(Input):
    """What may be deleted. Files of running and queued experiments, manifests and results never are."""

    model_config = ConfigDict(frozen=True)

    rules: list[RetentionRule] = Field(
        default_factory=list,
        description="A file is deleted when each experiment that has it matches a rule.",
        max_length=50,
    )
    keep: list[Tag] = Field(
        default_factory=lambda: ["keep"],
        description="Files of experiments with one of these tags are kept.",
        max_length=50,
    )
    max_bytes: int | None = Field(
        None,
        description="If more is stored, the least recently used stages are deleted, then checkpoints and data of the "
        "oldest experiments.",
        ge=0,
    )
    stage_days: float | None = Field(
        None, description="Cached stages not used for so many days are deleted.", gt=0, le=36_500
    )
    audit_days: float | None = Field(
        None,
        description="Audit entries older than this are deleted; null: none. Younger ones than 30 days never can be.",
        ge=31,  # a day more, since the database compares with its own clock
        le=36_500,
    )
    grace_hours: float = Field(
        24.0, description="Minimum age of orphans before they are deleted.", ge=1, le=8760
    )
    every_hours: float = Field(
        24.0, description="Interval at which the relay applies the policy.", ge=0.1, le=8760
    )


class Settings(BaseSettings):
    """All settings. Times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="BDLAB_", frozen=True)

    home: Path = Field(Path("var"), description="Folder for everything that the embedded back ends write.")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite under home.")
    broker_url: str = Field(
        "", description="Redis-protocol URL; empty: a Valkey server that `bdlab up` runs under home."
    )
    objects_url: str = Field(
        "", description="Object store, s3://bucket/prefix or file:///folder; empty: a folder under home."
    )
    objects_public_endpoint: str = Field(
        "", description="S3 endpoint in links for clients, if they do not reach it under AWS_ENDPOINT_URL."
    )
    data_dir: Path | None = Field(None, description="Datasets; default: data under home.")
    plugins_dir: Path | None = Field(
        None,
        description="Folder of Python files with your own attacks and defenses; they run with the service's rights.",
    )

    public_url: str = Field(
        "",
        description="This service's URL for its clients, such as https://bdlab.example.org; empty: links to files are "
        "paths, except for clients on this machine.",
        pattern=r"^(https?://[^/?#\s]+[^?#\s]*)?$",
    )
    proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = Field(
        (),
        description="Addresses or networks of reverse proxies, separated by commas; their X-Forwarded-For and "
        "X-Forwarded-Proto are believed.",
    )
    secret: SecretStr = Field(
        SecretStr(""),
        description="Signs cursors and derives webhook secrets; empty: a file under home. Required with several hosts.",
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Used in the digests of API keys; empty: the secret. Changing it invalidates all keys.",
    )
    quota_queued: int | None = Field(None, description="Maximum queued experiments per owner.", ge=0)
    quota_running: int | None = Field(None, description="Maximum running experiments per owner.", ge=0)
    quota_device_seconds: int | None = Field(
        None, description="Maximum seconds on workers' devices per owner in 30 days.", ge=0
    )
    quota_bytes: int | None = Field(None, description="Maximum stored bytes per owner.", ge=0)
    quota_webhooks: int | None = Field(20, description="Maximum webhooks per owner.", ge=0)
    rate_limit: int | None = Field(None, description="Maximum requests per owner and minute.", ge=1)

    webhook_timeout: float = Field(15.0, description="Time for a webhook's receiver to respond.", gt=0)
    webhook_retry_seconds: float = Field(
        86_400.0,
        description="How long a delivery is retried; a webhook whose deliveries all fail for this long is disabled.",
        ge=0,
    )
    webhook_private: bool = Field(
        False,
        description="Allow webhooks to private and loopback addresses; for closed networks.",
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Log format: json, console, or auto (console on a terminal, else json)."
    )

    max_body_bytes: int = Field(1_048_576, description="Largest accepted JSON body.", gt=0)
    max_image_bytes: int = Field(4_194_304, description="Largest accepted uploaded image.", gt=0)
    max_upload_bytes: int = Field(
        1_073_741_824, description="Largest accepted file of a model or a dataset.", gt=0
    )
    max_dataset_bytes: int = Field(
        2_147_483_648, description="Largest accepted uploaded dataset after unpacking.", gt=0
    )
    check_seconds: float = Field(
        900.0, description="Longest check of an upload; one that takes longer is retried.", ge=1
    )
    max_sweep_cells: int = Field(
        1000, description="Maximum cells of a sweep, and maximum arms x seeds of a study.", ge=1
    )
    interactive_timeout: float = Field(
        20.0, description="How long the API waits for a preview or prediction.", gt=0
    )
    idempotency_ttl: float = Field(86_400.0, description="How long an Idempotency-Key is remembered.", gt=0)

    lease_seconds: float = Field(
        30.0, description="A worker's lease expires after this time without a heartbeat.", gt=0
    )
    heartbeat_seconds: float = Field(5.0, description="Interval of a worker's heartbeats.", gt=0)
    gpu_on_demand: bool = Field(
        False,
        description="GPU workers are started when work is queued, so work that prefers a GPU is not given to CPUs.",
    )
    relay_seconds: float = Field(
        1.0, description="Interval at which the relay looks for work to publish or requeue.", gt=0
    )
    republish_seconds: float = Field(
        60.0,
        description="A queued experiment that no worker has claimed for this long is published again.",
        gt=0,
    )
    stage_busy_seconds: float = Field(
        5.0,
        description="Delay before an experiment that waits for a stage or for the object store is tried again.",
        gt=0,
    )
    cancel_grace_seconds: float = Field(
        60.0, description="A worker that has not stopped this long after a cancellation kills itself.", gt=0
    )
    storage_patience_seconds: float = Field(
        120.0,
        description="How long a worker retries the object store before the experiment goes back to the queue.",
        gt=0,
    )
    max_attempts: int = Field(
        3,
        description="Attempts lost in a row, without a new stage or checkpoint, after which an experiment fails.",
        ge=1,
    )
    checkpoint_seconds: float = Field(
        30.0, description="Minimum time between two checkpoints of a stage; 0 means every epoch.", ge=0
    )
    worker_niceness: int = Field(
        10,
        description="Niceness that `bdlab up` adds to a training worker, so that the API stays responsive.",
        ge=0,
        le=19,
    )
    worker_threads: int = Field(
        0,
        description="CPU threads of a training worker; 0 leaves the choice to torch. Waiting threads spin for a moment "
        "and then sleep, unless `OMP_WAIT_POLICY` or `GOMP_SPINCOUNT` says otherwise.",
        ge=0,
    )
    retention: Annotated[RetentionPolicy | None, NoDecode] = Field(
        None, description="Retention policy that the relay applies, as JSON; empty: nothing is deleted."
    )

    @field_validator(*URLS)
    @classmethod
    def _check_url(cls, url: str, info: ValidationInfo) -> str:
        allowed = URLS[str(info.field_name)]
        if url and not url.startswith(allowed):
            raise ValueError(f"it must begin with {' or '.join(allowed)}")
        return url

    @field_validator("heartbeat_seconds")
    @classmethod
    def _check_heartbeat(cls, seconds: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease_seconds")
        if lease is not None and seconds >= lease:
            raise ValueError(f"heartbeats must be more frequent than BDLAB_LEASE_SECONDS, which is {lease:g}")
        return seconds

    @field_validator("proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("retention", mode="before")
    @classmethod
    def _parse_json(cls, value: object) -> object:
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
        """The broker's URL. The embedded Valkey listens on a Unix socket, so it uses no port."""
        return self.broker_url or f"redis+socket://{quote(str(self.broker_socket))}"

    @cached_property
    def broker_socket(self) -> Path:
        """The embedded Valkey's socket: under home, or in a temporary folder if that path is too long."""
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


def read_settings() -> Settings:
    """The settings of this process, which ends with one line if one of them is not allowed."""
    try:
        return Settings()
    except ValidationError as error:
        raise SystemExit(explain(error)) from error


def explain(invalid: ValidationError) -> str:
    """One line about the first setting that is not allowed."""
    text, reason = describe_faults(invalid)[0]
    return f"{text}: {reason}"


def describe_faults(invalid: ValidationError) -> list[tuple[str, str]]:
    """("BDLAB_NAME=value is not allowed", the reason) of every setting that is not allowed, without secrets."""
    faults = []
    for fault in invalid.errors():
        name = f"BDLAB_{'.'.join(map(str, fault['loc'])).upper()}"
        value = hide_password(str(fault["input"]), repr(fault["input"]))[:100]
        shown = "***" if name.startswith(SECRETS) else value
        faults.append((f"{name}={shown} is not allowed", fault["msg"].removeprefix("Value error, ")))
    return faults


def hide_password(url: str, text: str) -> str:
    """``text`` without the password of ``url``."""
    try:
        password = urlsplit(url).password
    except ValueError:
        password = None
    return text.replace(password, "***") if password else text
