"""The response of `GET /v1/workers`."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

WorkerState = Literal["idle", "busy", "draining", "lost"]


class WorkerDevice(BaseModel):
    """The device of a worker."""

    kind: Literal["cpu", "gpu"]
    name: str = Field(examples=["NVIDIA H100 80GB HBM3"])


class WorkerMemory(BaseModel):
    """Bytes; null where the machine does not report them."""

    device_total: int | None = Field(None, description="Memory of the GPU.")
    device_used: int | None = Field(None, description="In use by any process.")
    host_total: int | None = Field(None, description="Memory of the machine, or of the container.")
    host_used: int | None = None


class WorkerOut(BaseModel):
    """One worker process."""

    name: str = Field(description="Host, process and queues.", examples=["gpu-host-3:17:gpu"])
    queues: list[str]
    device: WorkerDevice
    memory: WorkerMemory
    state: WorkerState = Field(
        description="`draining`: it is stopping and claims nothing more. "
        "`lost`: no heartbeat for 30 s; it is removed after an hour."
    )
    experiment_id: str | None = Field(
        description="The experiment that it runs; another owner's is shown only to the scope `admin`."
    )
    version: str = Field(description="Version of its code; empty if the version does not report it.")
    lab_version: int = Field(description="Version of the code that decides the numbers.")
    same_version: bool = Field(description="False if it runs other code than this API.")
    started_at: datetime
    seen_at: datetime
    seconds_since_sign: float = Field(description="Seconds since its last heartbeat.")


class QueueOut(BaseModel):
    """One queue, over all owners."""

    name: str
    waiting: int | None = Field(
        description="Entries that wait for a worker; null if the broker does not answer."
    )
    running: int | None = Field(description="Entries that workers run; null where that is not counted.")
    oldest_seconds: float | None = Field(
        description="How long the oldest entry has waited; null if none waits."
    )
    workers: int = Field(description="Live workers that serve it.")


class Workers(BaseModel):
    """Workers and queues."""

    version: str = Field(description="Version of this API's code.")
    lab_version: int = Field(description="Version of the code that decides the numbers, in this API.")
    warnings: list[str] = Field(description="Workers that run other code than this API.")
    workers: list[WorkerOut]
    queues: list[QueueOut]
