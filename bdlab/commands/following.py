"""Following an experiment until it has ended, and printing its results."""

from typing import Any

from bdlab.client import Client
from bdlab.commands.common import FAILED, OK, err, out, print_json, print_result
from bdlab.commands.tables import results_table
from bdlab.progress import display
from bdlab.types import Experiment


def print_id(resource: Any, *, watch: bool, as_json: bool) -> None:
    """Print what was submitted: its id, or all of it as JSON. With --watch --json only events are printed."""
    if not (watch and as_json):
        print_result(resource, as_json, resource["id"])


def follow(client: Client, id: str, *, as_json: bool) -> int:
    """Show progress until the experiment has ended, then print its results; returns the exit code.

    With ``as_json`` print one event per line, and the experiment as the last line.
    """
    events = client.events(id)
    if as_json:
        for event in events:
            print_json(event)
    else:
        with display(err) as shown:
            for event in events:
                shown.show(event["type"], event["data"])
    experiment = client.experiment(id)
    if as_json:
        print_json(experiment)
    else:
        _print_end(client, experiment)
    return OK if experiment["status"] == "succeeded" else FAILED


def _print_end(client: Client, experiment: Experiment) -> None:
    if experiment["status"] == "succeeded":
        out.print(results_table(client.results(experiment["id"]), experiment["name"]))
        return
    reason = (experiment.get("error") or {}).get("reason")
    message = f"bdlab: experiment {experiment['id']} {experiment['status']}"
    err.print(f"{message}: {reason}" if reason else message)
