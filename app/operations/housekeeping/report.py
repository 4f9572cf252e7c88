"""The report of a run, and what is passed through it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from app.core.context import Context
from app.settings import RetentionPolicy

Part = Literal["retention", "stages", "orphans", "missing", "audit"]
MAX_EXAMPLES = 20


class Item(BaseModel):
    """Files or rows of one kind."""

    part: Part = Field(
        description="`retention`: files that the policy does not keep. `stages`: cached stages. `orphans`: files that "
        "nothing refers to. `missing`: rows whose file does not exist; these are only reported. "
        "`audit`: old entries of the audit log."
    )
    what: str
    count: int = 0
    bytes: int = 0
    examples: list[str] = Field(default_factory=list, description="The first of them.")


class Report(BaseModel):
    """What was deleted, or would be."""

    deleted: bool = Field(description="False: a dry run, nothing was changed.")
    policy: RetentionPolicy | None = Field(description="The policy that was applied; null: only orphans.")
    stored_bytes: int = Field(description="Stored before, according to the database: files, stages, uploads.")
    freed_bytes: int = Field(description="Deleted, or to be deleted.")
    items: list[Item]
    remarks: list[str] = Field(description="What could not be decided or deleted.")
    seconds: float


class ReportBuilder:
    """Counts items, and keeps a few examples of each kind."""

    def __init__(self) -> None:
        self._items: dict[tuple[Part, str], Item] = {}
        self.remarks: list[str] = []

    def add(self, part: Part, what: str, name: str, size: int, count: int = 1) -> None:
        item = self._items.setdefault((part, what), Item(part=part, what=what))
        item.count += count
        item.bytes += size
        if len(item.examples) < MAX_EXAMPLES:
            item.examples.append(name)

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    @property
    def items(self) -> list[Item]:
        return list(self._items.values())

    @property
    def freed(self) -> int:
        return sum(item.bytes for item in self.items if item.part != "missing")


@dataclass(frozen=True)
class Run:
    """One run of housekeeping; a dry run unless ``delete``."""

    context: Context
    policy: RetentionPolicy
    delete: bool
    report: ReportBuilder


def describe(report: Report) -> Iterable[str]:
    """One line per item, for people and logs."""
    verb = "deleted" if report.deleted else "to be deleted"
    for item in report.items:
        fate = "left alone" if item.part == "missing" else verb
        yield f"{item.part}: {item.what}: {item.count}, {item.bytes} bytes, {fate}"
    yield from report.remarks
    yield f"{report.stored_bytes} bytes were stored; {report.freed_bytes} bytes {verb}"
