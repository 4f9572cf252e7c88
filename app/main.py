"""The control plane as an ASGI application: ``uvicorn app.main:create_app --factory``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI

from app.core import errors, logs, openapi, tracing
from app.core.context import Context
from app.core.request_middleware import RequestMiddleware
from app.dashboard import DASHBOARD
from app.dashboard.rendering import STATIC, Static
from app.data.catalog.missing_plugins import warn_of_missing_plugins
from app.data.catalog.routes import router as catalog
from app.data.uploads.routes import STREAMED
from app.data.uploads.routes import router as uploads
from app.experiments.events import router as events
from app.experiments.interactive.routes import router as interactive
from app.experiments.reproductions.routes import router as reproductions
from app.experiments.routes import router as experiments
from app.experiments.workers.routes import router as workers
from app.operations.health.routes import router as health
from app.operations.health.telemetry import Telemetry
from app.operations.housekeeping.routes import router as housekeeping
from app.results.artifacts.routes import router as artifacts
from app.results.compare.routes import router as compare
from app.results.leaderboard.routes import router as leaderboard
from app.results.numbers.routes import router as results
from app.results.search.routes import router as search
from app.settings import Settings
from app.sweeps.routes import router as sweeps
from app.team.access import Authenticator, authorize
from app.team.audit.middleware import AuditMiddleware
from app.team.audit.routes import router as audit
from app.team.keys.routes import router as keys
from app.webhooks.routes import router as webhooks

VALUES_A_CELL = 50
"""So many values may a body hold for each cell that a sweep may have: the largest body there is lists its cells."""
DESCRIPTION = """
Backdoor attacks and defenses as experiments: submit a spec, follow it, read its numbers and files.

Fractions are in [0, 1]. Times are UTC. Every error is `application/problem+json` (RFC 9457), and every answer
carries `X-Request-ID`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API with its routes. Connections are opened when it starts, by the ``settings`` or the environment.

    Without ``settings`` it is the API of this process, whose logs and traces it sets up.
    """
    chosen = settings or Settings()
    if settings is None:
        logs.configure("api", chosen)
        tracing.configure("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.context = Context.open(chosen)
        warn_of_missing_plugins(app.state.context.database)
        app.state.authenticator = Authenticator(app.state.context)
        app.state.authenticator.warn_if_open()
        yield
        app.state.context.close()
        tracing.flush()

    app = _Api(
        title="backdoor-lab",
        version=version("backdoor-lab"),
        description=DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        docs_url=None,  # the dashboard's own, which needs no other server
        redoc_url=None,
    )
    app.state.telemetry = Telemetry(app.version)
    errors.install(app)
    app.add_middleware(AuditMiddleware)
    app.add_middleware(
        RequestMiddleware,
        max_body=chosen.max_body_bytes,
        max_form=chosen.max_image_bytes,
        max_values=VALUES_A_CELL * chosen.max_sweep_cells,
        observe=app.state.telemetry.observe,
        streamed=STREAMED,
    )
    for router in (
        sweeps,
        experiments,
        results,
        search,
        leaderboard,
        compare,
        reproductions,
        events,
        artifacts,
        interactive,
        uploads,
        webhooks,
        catalog,
        keys,
        audit,
        housekeeping,
        health,
        workers,
        *DASHBOARD,
    ):
        app.include_router(router)
    vendored = Static(directory=STATIC / "vendor", packages=[("fastapi_swagger", "resources")])
    app.mount("/static/vendor", vendored, name="vendor")
    app.mount("/static", Static(directory=STATIC), name="static")
    return app


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = openapi.add_security(
                openapi.add_problem_schema(super().openapi()), self.routes
            )
        return self.openapi_schema
