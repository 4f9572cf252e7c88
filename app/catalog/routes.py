"""GET /v1/catalog."""

from fastapi import APIRouter

from app.catalog import service
from app.catalog.schemas import Catalog
from app.core.context import Ctx

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/catalog", summary="What can be asked for")
def get_catalog(context: Ctx) -> Catalog:
    """Attacks, defenses, data sets and models: for each its fields with default, range, unit and source."""
    return service.catalog(context.settings.datasets)
