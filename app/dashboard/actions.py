"""The actions behind the buttons of pages: plain forms, which work without JavaScript.

Middleware refuses forms sent from other sites.
"""

from typing import Annotated

from fastapi import APIRouter, Form, Path
from fastapi.responses import RedirectResponse

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute
from app.experiments import service as experiments
from app.experiments.reproductions import service as reproductions
from app.sweeps import service as batches
from app.sweeps.schemas import Retryable
from app.tables.sweeps import STUDY, SWEEP

router = APIRouter(route_class=PageRoute, include_in_schema=False)


@router.post("/experiments/{experiment_id}/cancel")
def cancel(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Cancel an experiment, then show it."""
    experiments.cancel(context, experiment_id)
    return _redirect(f"/experiments/{experiment_id}")


@router.post("/experiments/{experiment_id}/retry")
def retry(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Requeue an ended experiment, then show it."""
    experiments.retry(context, experiment_id)
    return _redirect(f"/experiments/{experiment_id}")


@router.post("/experiments/{experiment_id}/delete")
def delete(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Delete an experiment, then list the others."""
    experiments.remove(context, experiment_id)
    return _redirect("/")


@router.post("/experiments/{experiment_id}/reproduce")
def reproduce(context: Ctx, experiment_id: str) -> RedirectResponse:
    """Run an experiment again without cached stages, then show the new one."""
    reproduction, _ = reproductions.reproduce(context, experiment_id, None)
    return _redirect(f"/experiments/{reproduction['id']}")


def _add_batch_actions(kind: str, path: str) -> None:
    """Add the actions that sweeps and studies have in common. ``path`` is that of their pages."""
    id_in_path = Path(alias=f"{kind}_id")

    @router.post(f"{path}/{{{kind}_id}}/cancel")
    def cancel_batch(context: Ctx, batch_id: Annotated[str, id_in_path]) -> RedirectResponse:
        """Cancel the experiments that have not ended, then show the batch."""
        batches.cancel(context, kind, batch_id)
        return _redirect(f"{path}/{batch_id}")

    @router.post(f"{path}/{{{kind}_id}}/retry")
    def retry_batch(
        context: Ctx, batch_id: Annotated[str, id_in_path], state: Annotated[Retryable, Form()] = "failed"
    ) -> RedirectResponse:
        """Requeue the experiments in this state, then show the batch."""
        batches.retry(context, kind, batch_id, [state])
        return _redirect(f"{path}/{batch_id}")

    @router.post(f"{path}/{{{kind}_id}}/delete")
    def delete_batch(context: Ctx, batch_id: Annotated[str, id_in_path]) -> RedirectResponse:
        """Delete the batch and its experiments, then list sweeps and studies."""
        batches.remove(context, kind, batch_id)
        return _redirect("/sweeps")


def _redirect(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


_add_batch_actions(SWEEP, "/sweeps")
_add_batch_actions(STUDY, "/studies")
