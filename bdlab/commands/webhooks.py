"""`bdlab webhooks`: be told by a request of your own choice when something ends."""

import json
from typing import Annotated, Any

import typer

from bdlab.commands.common import FAILED, AsJson, CommandError, Url, connect, out, print_json, without_none
from bdlab.commands.tables import plain

app = typer.Typer(help="Requests that the service sends when experiments, sweeps and checks end.")

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The webhook's id.")]
Target = Annotated[str | None, typer.Option("--to", help="Another https URL.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", help="May be repeated. Default: everything but experiment.started."),
]
Name = Annotated[str | None, typer.Option(help="A name for people.")]


@app.command()
def create(
    target: Annotated[str, typer.Argument(metavar="URL", help="The https URL of the receiver.")],
    event: Events = None,
    name: Name = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Make a webhook and print its id and its secret, which is shown this once."""
    with connect(url) as client:
        made = client.webhooks.create(target, **without_none(events=event, name=name))
    _print_secret(made, as_json)


@app.command("list")
def list_(url: Url = None, as_json: AsJson = False) -> None:
    """List webhooks, the newest first."""
    with connect(url) as client:
        found = list(client.webhooks.list())
    if as_json:
        print_json(found)
        return
    rows = [(row["id"], row["name"], row["url"], _state(row)) for row in found]
    out.print(plain("", ("id", "name", "url", "state"), rows))


@app.command()
def show(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Print what a webhook is, and whether anything arrives."""
    with connect(url) as client:
        found = client.webhooks.get(id)
    if as_json:
        print_json(found)
        return
    for key, value in found.items():
        if key != "links" and value is not None:
            typer.echo(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


@app.command()
def update(
    id: WebhookId,
    to: Target = None,
    event: Events = None,
    name: Name = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Send again, or nothing more.")
    ] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Change a webhook; what is not given stays."""
    with connect(url) as client:
        changed = client.webhooks.update(id, **without_none(url=to, events=event, name=name, enabled=enabled))
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{changed['url']}: {_state(changed)}")


@app.command()
def rotate(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Give a webhook a new secret and print it; the old one signs too for 24 hours."""
    with connect(url) as client:
        changed = client.webhooks.rotate(id)
    _print_secret(changed, as_json)


@app.command("test")
def ping(id: WebhookId, url: Url = None, as_json: AsJson = False) -> None:
    """Send a ping, and print what came of it; the exit code is 1 if it did not arrive."""
    with connect(url) as client:
        sent = client.webhooks.test(id)
    if as_json:
        print_json(sent)
    else:
        last = sent["attempts"][-1]
        typer.echo(f"{sent['status']}: {last['error'] or last['status_code']} ({last['seconds']:.2f} s)")
    if sent["status"] != "delivered":
        raise CommandError(f"the ping did not arrive: {sent['reason']}", FAILED)


@app.command()
def deliveries(
    id: WebhookId,
    status: Annotated[str | None, typer.Option(help="pending, delivered or failed.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """List what was sent to a webhook, the newest first."""
    with connect(url) as client:
        pages = client.webhooks.deliveries(id, **without_none(status=status))
        found = [row for row, _ in zip(pages, range(limit), strict=False)]
    if as_json:
        print_json(found)
        return
    rows = [
        (row["id"], row["type"], row["status"], len(row["attempts"]), _last(row), row["created_at"][:19])
        for row in found
    ]
    out.print(plain("", ("id", "type", "status", "attempts", "last", "at"), rows))


@app.command()
def redeliver(
    id: WebhookId,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="The delivery's id.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Send a delivery again, at once."""
    with connect(url) as client:
        sent = client.webhooks.redeliver(id, delivery)
    if as_json:
        print_json(sent)
    else:
        typer.echo(f"{sent['id']}: {sent['status']}")


@app.command()
def delete(id: WebhookId, url: Url = None) -> None:
    """Delete a webhook, with its log."""
    with connect(url) as client:
        client.webhooks.delete(id)


def _print_secret(webhook: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(webhook)
    else:
        typer.echo(f"{webhook['id']} {webhook['secret']}")


def _state(webhook: dict[str, Any]) -> str:
    if not webhook["enabled"]:
        return f"disabled: {webhook['disabled_reason']}"
    return f"failing since {webhook['failing_since'][:19]}" if webhook["failing_since"] else "good"


def _last(delivery: dict[str, Any]) -> str:
    if not delivery["attempts"]:
        return "-"
    last = delivery["attempts"][-1]
    return str(last["status_code"] or last["error"] or "no outcome")
