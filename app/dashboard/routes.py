"""The dashboard's pages. They show what the JSON API says, through the same services."""

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from app.core.context import Context, Ctx
from app.core.errors import InvalidError, NotFoundError
from app.core.validation import shown
from app.dashboard import artifact_views
from app.dashboard.filters import METRICS, STAGES
from app.dashboard.rendering import PageRoute, page
from app.dashboard.timeline import MOST_SEEDS, timeline
from app.data.catalog import service as catalog
from app.experiments import service as experiments
from app.experiments.repository import Filters
from app.experiments.reproductions import service as reproductions
from app.experiments.reproductions.schemas import ReproductionOut
from app.experiments.schemas import ExperimentOut
from app.experiments.workers import service as known_workers
from app.operations.health import service as health
from app.results.artifacts import service as artifacts
from app.results.artifacts.schemas import ArtifactOut
from app.results.numbers import service as results
from app.results.numbers.interpretation import findings
from app.results.numbers.schemas import Results
from app.specs.status import STATUSES, Status

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 30
MOST_ROWS = 100
"""Of a table on an experiment's page."""


class ListQuery(BaseModel):
    """The filter form of the list; an empty field filters nothing."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    status: Status | str = ""
    attack: str = ""
    defense: str = ""
    tag: str = ""
    cursor: str | None = None


@router.get("/")
def index(request: Request, context: Ctx, query: Annotated[ListQuery, Query()]) -> Response:
    """Experiments, the newest first."""
    if query.status and query.status not in STATUSES:
        raise InvalidError(f"status: {shown(query.status)} is none; allowed: {', '.join(STATUSES)}")
    filters = Filters(
        status=query.status or None,
        attack=query.attack or None,
        defense=query.defense or None,
        tags=tuple(experiments.parse_tags(query.tag.split())),
        text=query.text or None,
    )
    found, following = experiments.listing(context, filters, "-created_at", query.cursor, PER_PAGE)
    given = {n: v for n, v in query.model_dump(exclude={"cursor"}).items() if v}
    return page(
        request,
        "experiments.html",
        experiments=found,
        query=query,
        statuses=STATUSES,
        attacks=catalog.names("attack"),
        defenses=catalog.names("defenses"),
        here=f"/?{request.url.query}",
        first=f"/?{urlencode(given)}" if query.cursor else None,
        next=f"/?{urlencode(given | {'cursor': following})}" if following else None,
        filtered=bool(given),
    )


@router.get("/experiments/{experiment_id}")
def experiment(request: Request, context: Ctx, experiment_id: str) -> Response:
    """One experiment: how it stands, what its numbers say, its figures and files."""
    found, stored = _experiment(context, experiment_id)
    numbers = results.results(context, experiment_id)
    arms = [arm.model_dump() for arm in numbers.arms]
    return page(
        request,
        "experiment.html",
        experiment=found,
        spec=found.spec,
        arms=arms,
        columns=[n for n in METRICS if any(n in arm["aggregate"] for arm in arms)],
        noted=_notes(numbers),
        findings=list(findings(arms, found.spec)),
        timeline=timeline(
            found,
            experiments.experiment_stages(context, experiment_id),
            {(arm.arm, row["seed"]) for arm in numbers.arms for row in arm.seeds if "error" in row},
        ),
        figures=artifact_views.figures(stored, found),
        files=stored,
        tabs=artifact_views.tabs(found, stored),
        stages=STAGES,
        poison=[f for f in stored if f.name.endswith("/poisoned_indices.json")],
        again=_reproduction(context, experiment_id),
        copies=reproductions.reproductions(context, experiment_id).reproductions,
        manned=found.status != "queued" or health.manned(context),
        active=found.status in ("queued", "running"),
        most_rows=MOST_ROWS,
        most_seeds=MOST_SEEDS,
    )


@router.get("/experiments/{experiment_id}/explore")
def explore(request: Request, context: Ctx, experiment_id: str) -> Response:
    """Ask every arm's model about one test image, with the trigger and without."""
    found, stored = _experiment(context, experiment_id)
    facts = experiments.dataset_facts(context, found.spec)
    return page(
        request,
        "explore.html",
        experiment=found,
        seeds=artifact_views.models(stored),
        class_names=facts.class_names,
        most=facts.test_size - 1,
        tabs=artifact_views.tabs(found, stored),
    )


@router.get("/experiments/{experiment_id}/isolation")
def isolation(
    request: Request,
    context: Ctx,
    experiment_id: str,
    arm: Annotated[str | None, Query()] = None,
    seed: Annotated[int | None, Query()] = None,
    stage: Annotated[str | None, Query()] = None,
) -> Response:
    """Which training images an arm suspected, in order, beside the truth."""
    found, stored = _experiment(context, experiment_id)
    rankings = artifact_views.rankings(stored)
    fitting = [
        r for r in rankings if arm in (None, r.arm) and seed in (None, r.seed) and stage in (None, r.stage)
    ]
    if not fitting:
        raise NotFoundError("there is no such ranking of the training images, or none yet")
    return page(
        request,
        "isolation.html",
        experiment=found,
        rankings=rankings,
        chosen=fitting[0],
        stages=[r.stage for r in rankings if (r.arm, r.seed) == (fitting[0].arm, fitting[0].seed)],
        poison=next((f for f in stored if f.name == f"seed-{fitting[0].seed}/poisoned_indices.json"), None),
        class_names=_class_names(context, found),
        tabs=artifact_views.tabs(found, stored),
    )


@router.get("/workers")
def workers(request: Request, context: Ctx) -> Response:
    """Who works, what waits, and whether everything is there."""
    waiting = {
        status: experiments.listing(context, Filters(status=status), "created_at", None, PER_PAGE)[0]
        for status in ("running", "queued")
    }
    return page(
        request,
        "workers.html",
        ready=health.readiness(context),
        overview=known_workers.overview(context),
        waiting=waiting,
        most=PER_PAGE,
    )


def _experiment(context: Context, experiment_id: str) -> tuple[ExperimentOut, list[ArtifactOut]]:
    found = experiments.get(context, experiment_id)
    return found, artifacts.list_artifacts(context, experiment_id, None, None, None).artifacts


def _reproduction(context: Context, experiment_id: str) -> ReproductionOut | None:
    try:
        return reproductions.reproduction(context, experiment_id)
    except NotFoundError:
        return None


def _class_names(context: Context, found: ExperimentOut) -> list[str]:
    """Names of the classes; none if the data set is not on this host any more."""
    try:
        return list(experiments.dataset_facts(context, found.spec).class_names)
    except InvalidError:
        return []


def _notes(numbers: Results) -> list[str]:
    """Every warning, and every error that ended an arm, once, with the arm and the seeds that it is about."""
    told: dict[tuple[str, str], list[int]] = {}
    for arm in numbers.arms:
        for row in arm.seeds:
            failed = [f"failed: {row['error']}"] if "error" in row else []
            for text in [*row.get("warnings", []), *failed]:
                told.setdefault((arm.arm, text), []).append(row["seed"])
    said = [
        f"{arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {text}"
        for (arm, text), seeds in told.items()
    ]
    return [*numbers.warnings, *said]
