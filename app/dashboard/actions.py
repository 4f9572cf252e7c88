"""What the buttons of an experiment's page do: plain forms, which a browser without JavaScript can send too.

A form on a page of another site is refused by the gate before every route.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from app.core.context import Context, Ctx
from app.dashboard.pages import PageRoute
from app.experiments import service

router = APIRouter(prefix="/experiments/{experiment_id}", route_class=PageRoute, include_in_schema=False)


@router.post("/cancel")
def cancel(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Stop an experiment, then show it."""
    return _then(service.cancel, context, experiment_id, f"/experiments/{experiment_id}")


@router.post("/retry")
def retry(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Queue an ended experiment again, then show it."""
    return _then(service.retry, context, experiment_id, f"/experiments/{experiment_id}")


@router.post("/delete")
def delete(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Delete an experiment, then show the others."""
    return _then(service.remove, context, experiment_id, "/")


def _then(
    do: Callable[[Context, str], Any], context: Context, experiment_id: str, show: str
) -> RedirectResponse:
    do(context, experiment_id)
    return RedirectResponse(show, status_code=303)
