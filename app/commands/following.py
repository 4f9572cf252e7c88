"""Following an experiment to its end: bars on a terminal, lines elsewhere, events as JSON for programs."""

from app.client import Client
from app.client_progress import display
from app.client_types import Experiment
from app.commands.common import FAILED, OK, err, out, print_json
from app.commands.tables import results


def follow(client: Client, id: str, *, as_json: bool) -> int:
    """Show what happens until the experiment has ended, then its results; returns the exit code.

    As JSON: one event a line, then the experiment itself as the last line.
    """
    events = client.events(id)
    if as_json:
        for event in events:
            print_json(event)
    else:
        with display(err) as shown:
            for event in events:
                shown.see(event["type"], event["data"])
    experiment = client.experiment(id)
    if as_json:
        print_json(experiment)
    else:
        _show_end(client, experiment)
    return OK if experiment["status"] == "succeeded" else FAILED


def _show_end(client: Client, experiment: Experiment) -> None:
    if experiment["status"] == "succeeded":
        out.print(results(client.results(experiment["id"]), experiment["name"]))
        return
    reason = (experiment.get("error") or {}).get("reason")
    err.print(
        f"bdlab: experiment {experiment['id']} {experiment['status']}" + (f": {reason}" if reason else ""),
        markup=False,
    )
