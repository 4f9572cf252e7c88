"""Pages for people at ``/``: server-rendered, without a build step, working without a network."""

from app.dashboard import access, actions, api_page, boards, comparing, routes, submitting

DASHBOARD = (
    routes.router,
    access.router,
    actions.router,
    boards.router,
    comparing.router,
    submitting.router,
    api_page.router,
)
