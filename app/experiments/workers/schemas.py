"""What `GET /v1/workers` gives."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

WorkerState = Literal["idle", "busy", "draining", "lost"]


class WorkerDevice(BaseModel):
    """What a worker computes on."""

    kind: Literal["cpu", "gpu"]
    name: str = Field(examples=["NVIDIA H100 80GB HBM3"])


class WorkerMemory(BaseModel):
    """Bytes; null where the machine does not tell them."""

    device_total: int | None = Field(None, description="Memory of the GPU.")
    device_used: int | None = Field(None, description="Of it in use, by whomever.")
    host_total: int | None = Field(None, description="Memory of the machine, or of the container.")
    host_used: int | None = None


class WorkerOut(BaseModel):
    """One worker process."""

    name: str = Field(description="Host, process and queues.", examples=["gpu-host-3:17:gpu"])
    queues: list[str]
    device: WorkerDevice
    memory: WorkerMemory
    state: WorkerState = Field(
        description="`draining`: it was told to stop and takes nothing more. "
        "`lost`: it gave no sign of life for 30 s; it is forgotten after an hour."
    )
    experiment_id: str | None = Field(
        description="The experiment that it runs; another owner's is shown to the scope `admin` alone."
    )
    version: str = Field(description="Of its code; empty for a version that did not tell it.")
    lab_version: int = Field(description="Of what decides the numbers.")
    same_version: bool = Field(description="False if its code is not that of this API.")
    started_at: datetime
    seen_at: datetime
    seconds_since_sign: float = Field(description="Since its last sign of life.")


class QueueOut(BaseModel):
    """One queue, over all owners."""

    name: str
    waiting: int | None = Field(description="What waits for a worker; null if the broker does not answer.")
    running: int | None = Field(description="What workers are at; null where that is not counted.")
    oldest_seconds: float | None = Field(description="How long the oldest has waited; null if nothing does.")
    workers: int = Field(description="Live workers that serve it.")


class Workers(BaseModel):
    """Who works, and what waits."""

    version: str = Field(description="Of this API's code.")
    lab_version: int = Field(description="Of what decides the numbers, as this API describes experiments.")
    warnings: list[str] = Field(description="Workers whose code is not this API's.")
    workers: list[WorkerOut]
    queues: list[QueueOut]
