"""The dashboard: server-rendered pages at ``/``, without a build step and without files of other servers."""

from app.dashboard import (
    actions,
    api_page,
    batch_pages,
    compare_page,
    key_pages,
    routes,
    submitting,
    webhook_pages,
)

DASHBOARD = (
    routes.router,
    key_pages.router,
    actions.router,
    batch_pages.router,
    compare_page.router,
    webhook_pages.router,
    submitting.router,
    api_page.router,
)
