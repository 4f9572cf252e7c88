"""What the buttons of a page do: plain forms, which a browser without JavaScript can send too.

A form on a page of another site is refused by the gate before every route.
"""

from typing import Annotated

from fastapi import APIRouter, Form
from fastapi.responses import RedirectResponse

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute
from app.experiments import service as experiments
from app.experiments.reproductions import service as reproductions
from app.sweeps import service as batches
from app.sweeps.schemas import Retryable
from app.tables.sweeps import STUDY, SWEEP

router = APIRouter(route_class=PageRoute, include_in_schema=False)
State = Annotated[Retryable, Form()]


@router.post("/experiments/{experiment_id}/cancel")
def cancel(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Stop an experiment, then show it."""
    experiments.cancel(context, experiment_id)
    return _show(f"/experiments/{experiment_id}")


@router.post("/experiments/{experiment_id}/retry")
def retry(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Queue an ended experiment again, then show it."""
    experiments.retry(context, experiment_id)
    return _show(f"/experiments/{experiment_id}")


@router.post("/experiments/{experiment_id}/delete")
def delete(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Delete an experiment, then show the others."""
    experiments.remove(context, experiment_id)
    return _show("/")


@router.post("/experiments/{experiment_id}/reproduce")
def reproduce(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Run an experiment afresh, then show the new one."""
    answer, _ = reproductions.reproduce(context, experiment_id, None)
    return _show(f"/experiments/{answer['id']}")


@router.post("/sweeps/{sweep_id}/cancel")
def cancel_sweep(context: Ctx, sweep_id: str) -> RedirectResponse:
    """Cancel what has not ended of a sweep, then show it."""
    batches.cancel(context, SWEEP, sweep_id)
    return _show(f"/sweeps/{sweep_id}")


@router.post("/sweeps/{sweep_id}/retry")
def retry_sweep(context: Ctx, sweep_id: str, state: State = "failed") -> RedirectResponse:
    """Queue the cells in this state again, then show the sweep."""
    batches.retry(context, SWEEP, sweep_id, [state])
    return _show(f"/sweeps/{sweep_id}")


@router.post("/sweeps/{sweep_id}/delete")
def delete_sweep(context: Ctx, sweep_id: str) -> RedirectResponse:
    """Delete a sweep and its experiments, then show the others."""
    batches.remove(context, SWEEP, sweep_id)
    return _show("/sweeps")


@router.post("/studies/{study_id}/cancel")
def cancel_study(context: Ctx, study_id: str) -> RedirectResponse:
    """Cancel what has not ended of a study, then show it."""
    batches.cancel(context, STUDY, study_id)
    return _show(f"/studies/{study_id}")


@router.post("/studies/{study_id}/retry")
def retry_study(context: Ctx, study_id: str, state: State = "failed") -> RedirectResponse:
    """Queue the experiments in this state again, then show the study."""
    batches.retry(context, STUDY, study_id, [state])
    return _show(f"/studies/{study_id}")


@router.post("/studies/{study_id}/delete")
def delete_study(context: Ctx, study_id: str) -> RedirectResponse:
    """Delete a study and its experiments, then show the others."""
    batches.remove(context, STUDY, study_id)
    return _show("/sweeps")


def _show(page: str) -> RedirectResponse:
    return RedirectResponse(page, status_code=303)
