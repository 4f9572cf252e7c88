"""What the routes work with: opened once when the API starts, then bound to who sent each request."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from fastapi import Depends, Request

from app.core.broker import Broker
from app.core.database import Database
from app.core.objects import Objects
from app.core.poll_cache import Polled
from app.core.security import NOBODY, Principal, Signer, make_signer
from app.settings import Settings


@dataclass(frozen=True)
class Context:
    """The settings, and the connections that they describe.

    A route's ``Ctx`` is bound to the request's ``principal``: its ``database`` shows the rows of that owner alone
    (`app.tables.owners`). A public route's is bound to nobody, and its database shows all.
    """

    settings: Settings
    database: Database
    objects: Objects
    broker: Broker
    signer: Signer
    polled: Polled = field(default_factory=Polled)
    principal: Principal = NOBODY

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Raises ObjectStoreError if the object store's folder cannot be made."""
        return cls(
            settings,
            Database(settings.database),
            Objects(settings.objects),
            Broker(settings.broker),
            make_signer(settings),
        )

    def of(self, principal: Principal) -> "Context":
        """The same for one request; costs nothing."""
        return replace(
            self, principal=principal, database=self.database.of(principal.owner_id, principal.limits)
        )

    def close(self) -> None:
        self.broker.close()
        self.database.close()


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context  # a coroutine, so that no thread is spent on it
    principal: Principal | None = request.scope.get("principal")
    return context.of(principal) if principal is not None else context


Ctx = Annotated[Context, Depends(_context)]
