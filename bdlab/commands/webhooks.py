"""`bdlab webhooks`: requests that the service sends when something ends."""

from itertools import islice
from typing import Annotated, Any

import typer

from bdlab.commands.common import FAILED, AsJson, CommandError, Url, connect, print_fields, print_result
from bdlab.commands.tables import text_table
from bdlab.transport import without_none

app = typer.Typer(help="Requests that the service sends when experiments, sweeps and checks end.")

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="May be repeated. Default: all except experiment.started."),
]
Name = Annotated[str | None, typer.Option(help="A name to show.")]


@app.command()
def create(
    target: Annotated[str, typer.Argument(metavar="URL", help="The https URL of the receiver.")],
    event: Events = None,
    name: Name = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Create a webhook and print its id and its secret, which is shown only once."""
    with connect(url) as client:
        webhook = client.webhooks.create(target, **without_none(events=event, name=name))
    print_result(webhook, as_json, f"{webhook['id']} {webhook['secret']}")


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """List webhooks, newest first."""
    with connect(url) as client:
        webhooks = list(client.webhooks.list())
    rows = [(webhook["id"], webhook["name"], webhook["url"], _state(webhook)) for webhook in webhooks]
    print_result(webhooks, as_json, text_table("", ("id", "name", "url", "state"), rows))


@app.command()
def show(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Print the details of a webhook, and whether its deliveries succeed."""
    with connect(url) as client:
        print_fields(client.webhooks.get(id), as_json)


@app.command()
def update(
    id: WebhookId,
    to: Annotated[str | None, typer.Option("--to", help="The new https URL.")] = None,
    event: Events = None,
    name: Name = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Resume or stop sending.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change a webhook; omitted options keep their values."""
    with connect(url) as client:
        changes = without_none(url=to, events=event, name=name, enabled=enabled)
        webhook = client.webhooks.update(id, **changes)
    print_result(webhook, as_json, f"{webhook['url']}: {_state(webhook)}")


@app.command()
def rotate(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Create a new secret for a webhook and print it; the old one also signs for 24 hours."""
    with connect(url) as client:
        webhook = client.webhooks.rotate(id)
    print_result(webhook, as_json, f"{webhook['id']} {webhook['secret']}")


@app.command("test")
def ping(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Send a ping and print its outcome. Exit code 1 if it was not delivered."""
    with connect(url) as client:
        delivery = client.webhooks.test(id)
    seconds = sum(attempt["seconds"] for attempt in delivery["attempts"])
    print_result(delivery, as_json, f"{delivery['status']}: {_outcome(delivery)} ({seconds:.2f} s)")
    if delivery["status"] != "delivered":
        raise CommandError(f"the ping was not delivered: {delivery['reason']}", FAILED)


@app.command()
def deliveries(
    id: WebhookId,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of deliveries.")] = 50,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List the deliveries of a webhook, newest first."""
    with connect(url) as client:
        rows = list(islice(client.webhooks.deliveries(id, **without_none(status=status)), limit))
    headings = ("id", "type", "status", "attempts", "last", "at")
    print_result(rows, as_json, text_table("", headings, map(_delivery_row, rows)))


@app.command()
def redeliver(
    id: WebhookId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a delivery again immediately."""
    with connect(url) as client:
        delivery = client.webhooks.redeliver(id, delivery_id)
    print_result(delivery, as_json, f"{delivery['id']}: {delivery['status']}")


@app.command()
def delete(id: WebhookId, url: Url = None) -> None:
    """Delete a webhook, with its delivery log."""
    with connect(url) as client:
        client.webhooks.delete(id)


def _state(webhook: dict[str, Any]) -> str:
    if not webhook["enabled"]:
        return f"disabled: {webhook['disabled_reason']}"
    return f"failing since {webhook['failing_since'][:19]}" if webhook["failing_since"] else "good"


def _delivery_row(delivery: dict[str, Any]) -> tuple[object, ...]:
    attempts, created_at = len(delivery["attempts"]), delivery["created_at"][:19]
    return (delivery["id"], delivery["type"], delivery["status"], attempts, _outcome(delivery), created_at)


def _outcome(delivery: dict[str, Any]) -> str:
    """The outcome of the last attempt."""
    if not delivery["attempts"]:
        return "-"
    last = delivery["attempts"][-1]
    return str(last["status_code"] or last["error"] or "no outcome")
