"""The control plane as an ASGI application: ``python -m app.operations.server``."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import Depends, FastAPI

from app.core import errors, logs, openapi, tracing
from app.core.context import Context
from app.core.request_middleware import RequestMiddleware
from app.core.routing import reject_unknown_parameters
from app.core.security import keep_files_private
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
from app.operations.housekeeping.routes import router as housekeeping
from app.results.artifacts.routes import router as artifacts
from app.results.compare.routes import router as compare
from app.results.leaderboard.routes import router as leaderboard
from app.results.numbers.routes import router as results
from app.results.search.routes import router as search
from app.settings import Settings, read_settings
from app.sweeps.routes import router as sweeps
from app.team.access import Authenticator, authorize, recognize
from app.team.audit.middleware import AuditMiddleware
from app.team.audit.routes import router as audit
from app.team.keys.routes import router as keys
from app.webhooks.routes import router as webhooks

LARGE_BODIES = re.compile(r"/v1/(experiments|sweeps|studies|previews)(/[^/]+)?(:[a-z]+)?")
"""Paths of requests that contain specs."""
PICTURES = re.compile(r"/v1/experiments/[^/]+/predict")
VALUES_PER_CELL = 50
"""Values that a request body may contain per allowed sweep cell: the largest bodies list the cells of a sweep."""
DESCRIPTION = """
Backdoor attacks and defenses as experiments: submit a spec, follow its progress, and read its results and files.

Fractions are in [0, 1], times in UTC. Errors are `application/problem+json` (RFC 9457). Every response has the header
`X-Request-ID`.
"""
TAGS = {
    "experiments": "Submit, list, cancel, retry and delete experiments.",
    "sweeps": "Many experiments from one grid of values.",
    "studies": "Attacks x defenses x seeds as one table.",
    "events": "Progress and logs of an experiment, as a list or a stream.",
    "results": "Metrics, search, leaderboard, comparison and reproduction of results.",
    "artifacts": "Files of an experiment: figures, tables, models, data.",
    "interactive": "Preview a trigger, and predict with a trained model.",
    "uploads": "Your own models and datasets.",
    "webhooks": "Notifications about ended experiments, sweeps and studies.",
    "catalog": "Attacks, defenses, datasets and architectures, with their parameters.",
    "keys": "API keys, owners, limits, and the audit log.",
    "housekeeping": "Retention and clean-up.",
    "health": "Liveness, readiness, metrics and workers.",
}


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. It opens its connections when it starts.

    Without ``settings`` they come from the environment, and logs and traces of the process are configured too.
    """
    if settings is None:
        keep_files_private()
        settings = read_settings()
        logs.configure("api", settings)
        tracing.configure("api")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.context = Context.open(settings, for_requests=True)
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
        openapi_tags=[{"name": name, "description": text} for name, text in TAGS.items()],
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        docs_url=None,  # the dashboard serves it without a CDN
        redoc_url=None,
        redirect_slashes=False,  # Starlette's redirect repeats the Host of the request
    )
    errors.install(app)
    app.add_middleware(AuditMiddleware)
    app.add_middleware(
        RequestMiddleware,
        max_body=settings.max_body_bytes,
        max_form=settings.max_image_bytes,
        max_values=VALUES_PER_CELL * settings.max_sweep_cells,
        recognize=recognize,
        large=LARGE_BODIES,
        pictures=PICTURES,
        streamed=STREAMED,
    )
    if settings.proxies:
        # Not needed otherwise, and uvicorn is imported only where it serves.
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware  # noqa: PLC0415

        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[str(proxy) for proxy in settings.proxies])
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
        workers,
    ):
        app.include_router(router, dependencies=[Depends(reject_unknown_parameters)])
    for router in (health, *DASHBOARD):
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
