"""The connections that routes work with: opened once when the API starts, then bound to each request's principal."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import Depends, Request

from app.core.broker import Broker
from app.core.database import Database
from app.core.objects import Objects
from app.core.poll_cache import PollCache
from app.core.security import NOBODY, Principal, Signer, make_signer
from app.core.turns import Turns
from app.settings import Settings


@dataclass(frozen=True)
class Context:
    """The settings and the connections that they configure.

    The ``Ctx`` of a route is bound to the request's ``principal``: its ``database`` shows only the rows of that owner
    (`app.tables.owners`). The one of a public route shows the rows of all owners.
    """

    settings: Settings
    database: Database
    objects: Objects
    broker: Broker
    signer: Signer
    poll_cache: PollCache = field(default_factory=PollCache)
    written_at: dict[str, float] = field(default_factory=dict)
    """When a test of readiness last wrote to a back end."""
    turns: Turns = field(default_factory=Turns)
    arriving: Counter[str] = field(default_factory=Counter)
    """Bytes that have arrived of the uploads that this process is receiving, by owner."""
    principal: Principal = NOBODY

    @classmethod
    def open(cls, settings: Settings, *, for_requests: bool = False) -> "Context":
        """``for_requests``: see `app.core.database.make_engine`.

        Raises ObjectStoreError if the object store's folder cannot be created."""
        return cls(
            settings,
            Database(settings.database, for_requests=for_requests),
            Objects(settings.objects),
            Broker(settings.broker),
            make_signer(settings),
        )

    def of(self, principal: Principal) -> "Context":
        """The same connections for the requests of ``principal``; cheap."""
        return replace(
            self, principal=principal, database=self.database.of(principal.owner_id, principal.limits)
        )

    def close(self) -> None:
        self.broker.close()
        self.database.close()


async def _context(request: Request) -> Context:  # async, so that it takes no thread of the pool
    context: Context = request.app.state.context
    principal: Principal | None = request.scope.get("principal")
    return context.of(principal) if principal is not None else context


Ctx = Annotated[Context, Depends(_context)]
