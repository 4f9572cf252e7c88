"""Pages for people at ``/``: server-rendered, without a build step, working without a network."""

from app.dashboard import access, actions, api_page, boards, comparing, hooks, routes, submitting

DASHBOARD = (
    routes.router,
    access.router,
    actions.router,
    boards.router,
    comparing.router,
    hooks.router,
    submitting.router,
    api_page.router,
)
