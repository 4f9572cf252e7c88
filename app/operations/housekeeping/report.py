"""What housekeeping found."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field

from app.settings import RetentionPolicy

Part = Literal["retention", "stages", "orphans", "missing", "unknown"]
EXAMPLES = 20


class Item(BaseModel):
    """Things of one kind."""

    part: Part = Field(
        description="`retention`: files that the policy lets go. `stages`: cached stages. `orphans`: files that "
        "belong to nothing. `missing`: rows whose file is not there. `unknown`: objects that are not the service's. "
        "The last two are reported and never touched."
    )
    what: str
    count: int = 0
    bytes: int = 0
    examples: list[str] = Field(default_factory=list, description="The first of them.")


class Report(BaseModel):
    """What goes, or would go."""

    deleted: bool = Field(description="False: a dry run, nothing was touched.")
    policy: RetentionPolicy | None = Field(description="What it went by; null: only what belongs to nothing.")
    stored_bytes: int = Field(description="What was stored before, by the database: files, stages, uploads.")
    freed_bytes: int = Field(description="What goes, or would go.")
    items: list[Item]
    remarks: list[str] = Field(description="What could not be judged or deleted.")
    seconds: float


class Tally:
    """Counts as things are found, with a few examples, however many there are."""

    def __init__(self) -> None:
        self._items: dict[tuple[Part, str], Item] = {}
        self.remarks: list[str] = []

    def add(self, part: Part, what: str, name: str, size: int) -> None:
        item = self._items.setdefault((part, what), Item(part=part, what=what))
        item.count += 1
        item.bytes += size
        if len(item.examples) < EXAMPLES:
            item.examples.append(name)

    def remark(self, text: str) -> None:
        if len(self.remarks) < EXAMPLES and text not in self.remarks:
            self.remarks.append(text)

    @property
    def items(self) -> list[Item]:
        return list(self._items.values())

    @property
    def freed(self) -> int:
        return sum(
            item.bytes for item in self._items.values() if item.part in ("retention", "stages", "orphans")
        )


def in_words(report: Report) -> Iterable[str]:
    """One line an item, for people and logs."""
    verb = "deleted" if report.deleted else "would go"
    for item in report.items:
        shown = verb if item.part in ("retention", "stages", "orphans") else "left alone"
        yield f"{item.part}: {item.what}: {item.count}, {item.bytes} bytes, {shown}"
    yield from report.remarks
    yield f"{report.stored_bytes} bytes were stored; {report.freed_bytes} bytes {verb}"
