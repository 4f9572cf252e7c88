"""The pages of experiments and workers. They use the services of the JSON API."""

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
from app.dashboard.timeline import MAX_SEEDS, timeline
from app.data.catalog import service as catalog
from app.experiments import service as experiments
from app.experiments.repository import Filters
from app.experiments.reproductions import service as reproductions
from app.experiments.reproductions.schemas import ReproductionOut
from app.experiments.schemas import ExperimentOut
from app.experiments.workers import service as worker_service
from app.operations.health import service as health
from app.results.artifacts import service as artifacts
from app.results.artifacts.schemas import ArtifactOut
from app.results.numbers import service as results
from app.results.numbers.interpretation import findings
from app.results.numbers.schemas import Results
from app.specs.status import STATUSES, TERMINAL, Status

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 30
MAX_ROWS = 100
"""Maximum number of rows of a table on an experiment's page."""
ONLY_IN_FILES = {
    *("clean_loss", "poisoned_loss", "psnr", "ssim", "l_inf", "l_2", "changed_pixels"),
    *("true_positives", "false_positives", "true_negatives", "false_negatives"),
    *(
        "target_class_precision",
        "target_class_auroc",
        "smallest_mask_norm",
        "median_mask_norm",
        "mad_mask_norm",
    ),
}
"""Metrics that the table on an experiment's page leaves out, so that it can be read."""


class ListQuery(BaseModel):
    """The filters of the list; an empty field matches everything."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    status: Status | str = ""
    attack: str = ""
    defense: str = ""
    tag: str = ""
    cursor: str | None = None


@router.get("/")
def index(request: Request, context: Ctx, query: Annotated[ListQuery, Query()]) -> Response:
    """Experiments, newest first."""
    if query.status and query.status not in STATUSES:
        raise InvalidError(f"status: {shown(query.status)} is not a status; allowed: {', '.join(STATUSES)}")
    filters = Filters(
        status=query.status or None,
        attack=query.attack or None,
        defense=query.defense or None,
        tags=experiments.parse_tags(query.tag.split()),
        text=query.text or None,
    )
    rows, next_cursor = experiments.listing(context, filters, "-created_at", query.cursor, PER_PAGE)
    active = {name: text for name, text in query.model_dump(exclude={"cursor"}).items() if text}
    return page(
        request,
        "experiments.html",
        experiments=rows,
        query=query,
        statuses=STATUSES,
        attacks=catalog.names("attack"),
        defenses=catalog.names("defenses"),
        first_url=f"/?{urlencode(active)}" if query.cursor else None,
        next_url=f"/?{urlencode(active | {'cursor': next_cursor})}" if next_cursor else None,
        filtered=bool(active),
    )


@router.get("/experiments/{experiment_id}")
def show_experiment(request: Request, context: Ctx, experiment_id: str) -> Response:
    """One experiment: status, findings, results, stages, figures and files."""
    experiment, files = _load_experiment(context, experiment_id)
    numbers = results.results(context, experiment_id)
    arms = [arm.model_dump() for arm in numbers.arms]
    return page(
        request,
        "experiment.html",
        experiment=experiment,
        spec=experiment.spec,
        arms=arms,
        metrics=[n for n in METRICS if n not in ONLY_IN_FILES and any(n in arm["aggregate"] for arm in arms)],
        warnings=_warnings(numbers),
        findings=list(findings(arms, experiment.spec)),
        timeline=timeline(
            experiment,
            experiments.experiment_stages(context, experiment_id),
            {(arm.arm, row["seed"]) for arm in numbers.arms for row in arm.seeds if "error" in row},
        ),
        figures=artifact_views.figures(files, experiment),
        files=files,
        tabs=artifact_views.tabs(experiment, files),
        stage_labels=STAGES,
        poisoned_indices=[file for file in files if file.name.endswith("/poisoned_indices.json")],
        reproduction=_find_reproduction(context, experiment_id),
        reproductions=reproductions.reproductions(context, experiment_id).reproductions,
        lacks_workers=experiment.status == "queued" and not health.manned(context),
        active=experiment.status not in TERMINAL,
        max_rows=MAX_ROWS,
        max_seeds=MAX_SEEDS,
    )


@router.get("/experiments/{experiment_id}/explore")
def explore(request: Request, context: Ctx, experiment_id: str) -> Response:
    """Predictions of every arm's model for one test image, with and without the trigger."""
    experiment, files = _load_experiment(context, experiment_id)
    facts = experiments.dataset_facts(context, experiment.spec)
    return page(
        request,
        "explore.html",
        experiment=experiment,
        seeds=artifact_views.model_seeds(files),
        class_names=facts.class_names,
        max_index=facts.test_size - 1,
        tabs=artifact_views.tabs(experiment, files),
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
    """The training images that an arm suspected, most suspicious first, with the ground truth."""
    experiment, files = _load_experiment(context, experiment_id)
    rankings = artifact_views.rankings(files)
    matches = (
        r for r in rankings if arm in (None, r.arm) and seed in (None, r.seed) and stage in (None, r.stage)
    )
    ranking = next(matches, None)
    if ranking is None:
        raise NotFoundError("there is no such ranking of the training images, or not yet")
    indices = f"seed-{ranking.seed}/poisoned_indices.json"
    return page(
        request,
        "isolation.html",
        experiment=experiment,
        rankings=rankings,
        ranking=ranking,
        stages=[r.stage for r in rankings if (r.arm, r.seed) == (ranking.arm, ranking.seed)],
        poisoned_indices=next((file for file in files if file.name == indices), None),
        class_names=_class_names(context, experiment),
        tabs=artifact_views.tabs(experiment, files),
    )


@router.get("/workers")
def workers(request: Request, context: Ctx) -> Response:
    """Workers, queues, running and queued experiments, and the state of the components."""
    by_status = {
        status: experiments.listing(context, Filters(status=status), "created_at", None, PER_PAGE)[0]
        for status in ("running", "queued")
    }
    return page(
        request,
        "workers.html",
        readiness=health.readiness(context),
        overview=worker_service.overview(context),
        experiments_by_status=by_status,
        page_size=PER_PAGE,
    )


def _load_experiment(context: Context, experiment_id: str) -> tuple[ExperimentOut, list[ArtifactOut]]:
    """The experiment and its artifacts. Raises NotFoundError."""
    experiment = experiments.get(context, experiment_id)
    return experiment, artifacts.list_artifacts(context, experiment_id, None, None, None).artifacts


def _find_reproduction(context: Context, experiment_id: str) -> ReproductionOut | None:
    try:
        return reproductions.reproduction(context, experiment_id)
    except NotFoundError:
        return None


def _class_names(context: Context, experiment: ExperimentOut) -> list[str]:
    """The names of the classes; empty if the dataset is no longer on this host."""
    try:
        return list(experiments.dataset_facts(context, experiment.spec).class_names)
    except InvalidError:
        return []


def _warnings(numbers: Results) -> list[str]:
    """Every distinct warning and error of an arm, with the arm and the seeds that it concerns."""
    seeds_by_text: dict[tuple[str, str], list[int]] = {}
    for arm in numbers.arms:
        for row in arm.seeds:
            errors = [f"failed: {row['error']}"] if "error" in row else []
            for text in [*row.get("warnings", []), *errors]:
                seeds_by_text.setdefault((arm.arm, text), []).append(row["seed"])
    lines = [
        f"{arm}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: {text}"
        for (arm, text), seeds in seeds_by_text.items()
    ]
    return [*numbers.warnings, *lines]
