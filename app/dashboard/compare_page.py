"""Experiments side by side."""

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.errors import InvalidError
from app.dashboard.rendering import PageRoute, page
from app.results.compare import service

router = APIRouter(route_class=PageRoute, include_in_schema=False)
CURVES = ["clean_accuracy", "attack_success_rate"]
SHOWN = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "isolation_precision", "seconds")


@router.get("/compare")
def compare(request: Request, context: Ctx, ids: Annotated[list[str] | None, Query()] = None) -> Response:
    """Which fields of the specs differ, the numbers of each arm with paired differences, and the curves overlaid."""
    if not service.FEWEST <= len(set(ids or ())) <= service.MOST:
        raise InvalidError(
            f"tick {service.FEWEST} to {service.MOST} experiments in a list, then compare them"
        )
    found = service.compare(context, ",".join(ids or ()), CURVES, 2)
    return page(
        request,
        "compare.html",
        found=found,
        letters=ascii_uppercase,
        ids=",".join(one.id for one in found.experiments),
        differing=[field for field in found.spec if not field.same],
        arms=[(arm.arm, [row for row in arm.metrics if row.metric in SHOWN]) for arm in found.arms],
    )
