"""The page that compares experiments."""

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.core.context import Ctx
from app.core.errors import InvalidError
from app.dashboard.rendering import PageRoute, page
from app.results.compare import service

router = APIRouter(route_class=PageRoute, include_in_schema=False)
CURVES = ["clean_accuracy", "attack_success_rate"]
METRICS = (
    "clean_accuracy",
    "attack_success_rate",
    "robust_accuracy",
    "defense_effectiveness",
    "isolation_precision",
    "false_positive_rate",
    "input_auroc",
    "input_true_positive_rate",
    "input_false_positive_rate",
    "seconds",
)


@router.get("/compare")
def compare(request: Request, context: Ctx, ids: Annotated[list[str] | None, Query()] = None) -> Response:
    """Fields of the specs that differ, results of each arm with paired differences, and overlaid curves."""
    if not service.FEWEST <= len(set(ids or ())) <= service.MOST:
        raise InvalidError(f"select {service.FEWEST} to {service.MOST} experiments to compare")
    comparison = service.compare(context, ",".join(ids or ()), CURVES, 2)
    return page(
        request,
        "compare.html",
        comparison=comparison,
        letters=ascii_uppercase,
        ids=",".join(experiment.id for experiment in comparison.experiments),
        differing_fields=[field for field in comparison.spec if not field.same],
        arms=[(arm.arm, [row for row in arm.metrics if row.metric in METRICS]) for arm in comparison.arms],
    )
