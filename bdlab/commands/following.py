"""Following an experiment to its end: bars on a terminal, lines elsewhere, events as JSON for programs."""

from bdlab.base_client import Client
from bdlab.commands.common import FAILED, OK, err, out, print_json
from bdlab.commands.tables import results
from bdlab.progress import display
from bdlab.types import Experiment


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
