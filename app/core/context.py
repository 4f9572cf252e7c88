"""What the routes work with: opened once when the API starts."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.core.broker import Broker
from app.core.database import Database
from app.core.objects import Objects
from app.core.security import Signer, make_signer
from app.settings import Settings


@dataclass(frozen=True)
class Context:
    """The settings, and the connections that they describe."""

    settings: Settings
    database: Database
    objects: Objects
    broker: Broker
    signer: Signer

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

    def close(self) -> None:
        self.broker.close()
        self.database.close()


async def _context(request: Request) -> Context:
    context: Context = request.app.state.context  # a coroutine, so that no thread is spent on it
    return context


Ctx = Annotated[Context, Depends(_context)]
