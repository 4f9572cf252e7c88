"""Submit, find, cancel, retry and delete experiments."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, IdempotencyKey, JsonBody, Limit, accepted, as_json, paged, parse_fields
from app.core.security import READ, needs
from app.experiments import service
from app.experiments.repository import Filters, Order
from app.experiments.schemas import LIST_FIELDS, ExperimentOut, Page, Validation
from app.specs.experiment import ExperimentSpec
from app.specs.status import Status

router = APIRouter(prefix="/v1", tags=["experiments"])

EXAMPLES: dict[str, Any] = {
    "digits": {
        "summary": "BadNets on digits, defended by ABL",
        "value": {
            "name": "BadNets on digits",
            "dataset": {"name": "digits"},
            "model": {"name": "small_cnn"},
            "attack": {"name": "badnets", "target_class": 0, "poisoning_rate": 0.1},
            "defenses": [{"name": "abl", "isolation_ratio": 0.01}],
            "training": {"epochs": 30},
            "seeds": [0],
            "tags": {"study": "example"},
        },
    },
    "torchvision": {
        "summary": "An architecture of torchvision, repaired",
        "value": {
            "name": "ResNet-18 of torchvision on digits",
            "dataset": {"name": "digits"},
            "model": {"name": "torchvision", "architecture": "resnet18", "stem": "small"},
            "attack": {"name": "blend", "alpha": 0.3},
            "defenses": [{"name": "fine_pruning"}, {"name": "ft_sam"}],
            "training": {"epochs": 10},
            "seeds": [0, 1, 2],
        },
    },
    "defaults": {"summary": "Every default", "value": {}},
}
Spec = Annotated[ExperimentSpec, Body(openapi_examples=EXAMPLES)]


@router.post(
    "/experiments",
    status_code=202,
    response_model=ExperimentOut,
    summary="Submit an experiment",
    responses=problems(400, 413, 415, 422),
)
def submit(
    context: Ctx,
    spec: Spec,
    _json: JsonBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Queue an experiment. Every field has a default; an unknown field is an error.

    The response is sent as soon as the experiment is stored. With an `Idempotency-Key` a request can safely be
    sent twice: the second one returns the first answer, or 422 if its body differs.
    """
    answer, replayed = service.submit(context, spec, idempotency_key)
    return accepted(answer, f"/v1/experiments/{answer['id']}", replayed=replayed)


@router.post(
    "/experiments:validate", summary="Check a spec without running it", responses=problems(400, 413, 415, 422)
)
@needs(READ)
def validate(context: Ctx, spec: Spec, _json: JsonBody) -> Validation:
    """The canonical spec, its hash, its arms, and which of its stages are already cached. Nothing is stored."""
    return service.validate(context, spec)


@router.get(
    "/experiments",
    summary="List experiments",
    response_model=Page,
    responses=problems(400, 422),
)
def listing(
    request: Request,
    context: Ctx,
    status: Status | None = None,
    dataset: Annotated[
        str | None,
        Query(
            description="Name of the dataset; `imported/KEY` or `uploaded/ID` for one of these, `imported` for all",
            examples=["digits"],
        ),
    ] = None,
    model: Annotated[str | None, Query(examples=["small_cnn"])] = None,
    attack: Annotated[str | None, Query(examples=["badnets"])] = None,
    defense: Annotated[str | None, Query(examples=["abl"])] = None,
    tag: Annotated[
        list[str] | None,
        Query(
            description="`key:value`, or `key` for any value; with `-` before it: experiments without that tag. May be "
            "repeated, all must match",
            examples=[["study:example", "-draft"]],
        ),
    ] = None,
    sweep: Annotated[str | None, Query(description="Id of a sweep or study that uses the experiment")] = None,
    text: Annotated[
        str | None, Query(min_length=1, max_length=200, description="Part of the name, in any case")
    ] = None,
    order: Annotated[Order, Query(description="`-created_at`: newest first")] = "-created_at",
    fields: Annotated[
        str | None,
        Query(
            description="Fields of each experiment, separated by commas; `*` selects all. Default: what lists show, "
            f"{', '.join(f for f in ExperimentOut.model_fields if f in LIST_FIELDS)}.",
            examples=["id,status,progress"],
        ),
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """One page of experiments, without their specs unless `fields` selects them. Follow `next`, or the `Link` header,
    for more.

    New experiments do not change what the later pages show.
    """
    chosen = parse_fields(fields, ExperimentOut, LIST_FIELDS)
    filters = Filters(status, dataset, model, attack, defense, service.parse_tags(tag or []), sweep, text)
    experiments, following = service.listing(context, filters, order, cursor, limit, chosen)
    return paged(
        request,
        following,
        lambda link: Page(experiments=experiments, next=link),
        include={"experiments": {"__all__": set(chosen)}, "next": True},
    )


@router.get(
    "/experiments/{experiment_id}",
    response_model=ExperimentOut,
    summary="The state of an experiment",
    responses={304: {"description": "Not modified since the response with this ETag."}, **problems(404)},
)
def get(experiment_id: str, context: Ctx, if_none_match: Annotated[str | None, Header()] = None) -> Response:
    """Status, progress, attempts and a summary of the results. Cheap to poll, best with `If-None-Match`."""
    body, tag = service.poll(context, experiment_id)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if if_none_match and tag in (t.strip().removeprefix("W/") for t in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


@router.post(
    "/experiments/{experiment_id}:cancel",
    status_code=202,
    response_model=ExperimentOut,
    summary="Cancel an experiment",
    responses=problems(404, 409),
)
def cancel(experiment_id: str, context: Ctx) -> Response:
    """A queued experiment is canceled at once; a running one stops within a batch. Idempotent."""
    return as_json(service.cancel(context, experiment_id), status=202)


@router.post(
    "/experiments/{experiment_id}:retry",
    status_code=202,
    response_model=ExperimentOut,
    summary="Run an ended experiment again",
    responses=problems(404, 409),
)
def retry(experiment_id: str, context: Ctx) -> Response:
    """Queue an ended experiment again. Earlier attempts stay in its history; finished stages are not computed again,
    unless they are damaged. All files are written again, so this replaces damaged and deleted ones."""
    return as_json(service.retry(context, experiment_id), status=202)


@router.delete(
    "/experiments/{experiment_id}",
    status_code=204,
    summary="Delete an experiment",
    responses=problems(404, 409),
)
def remove(experiment_id: str, context: Ctx) -> None:
    """Delete an experiment that is not running, with its results and files; files that others use stay."""
    service.remove(context, experiment_id)
