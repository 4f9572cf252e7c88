"""``client.sweeps`` and ``client.studies``: many experiments as one request."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from app.specs.status import TERMINAL
from bdlab.transport import Resources, poll, to_json
from bdlab.types import Json

if TYPE_CHECKING:
    from app.specs.base import Spec


class Batches(Resources):
    """What sweeps and studies have in common. `delete` also deletes the experiments, none of which may be running."""

    def submit(self, spec: "Spec | Json", *, idempotency_key: str | None = None) -> Json:
        """Submit a sweep or study. The key, by default a random one, makes it safe to repeat the call."""
        return self._transport.create(self._path, to_json(spec), idempotency_key)

    def validate(self, spec: "Spec | Json") -> Json:
        """Check a spec without running it, and count the cells whose results exist already."""
        return self._transport.post(f"{self._path}:validate", to_json(spec), repeat=True)

    def cancel(self, id: str) -> Json:
        """Cancel its experiments that have not ended."""
        return self._transport.post(f"{self._path}/{id}:cancel")

    def retry(self, id: str, states: Sequence[str] = ("failed",)) -> Json:
        """Requeue its experiments in these states: failed, canceled."""
        return self._transport.post(f"{self._path}/{id}:retry", params={"state": [*states]})

    def wait(self, id: str, *, on_progress: Callable[[Json], None] | None = None) -> Json:
        """Poll until every experiment has ended."""
        return poll(lambda: self.get(id), id, TERMINAL, on_progress=on_progress)


class Sweeps(Batches):
    """A base spec and a grid of overrides."""

    def cells(self, id: str, **query: Any) -> Iterator[Json]:
        """Its cells, page by page; ``query``: status, limit."""
        return self._transport.pages(f"{self._path}/{id}/cells", "cells", query)


class Studies(Batches):
    """Attacks x defenses."""

    def extend(self, id: str, more: "Spec | Json") -> Json:
        """Add attacks, defenses or seeds; existing cells are not changed."""
        return self._transport.post(f"{self._path}/{id}:extend", to_json(more), repeat=True)

    def table(self, id: str) -> Json:
        """Clean accuracy, attack success rate and defense effectiveness of every attack under every arm."""
        return self._transport.get(f"{self._path}/{id}/table")

    def page(self, id: str, format: str) -> str:
        """The table as text: csv, markdown, latex or html."""
        return self._transport.request("GET", f"{self._path}/{id}/table", params={"format": format}).text
