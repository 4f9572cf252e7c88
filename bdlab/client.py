"""The client for scripts and notebooks: every route, and what a person does with the answers."""

from collections.abc import Callable

from rich.console import Console

from bdlab import mlflow_export
from bdlab.files import Files
from bdlab.frames import Frames
from bdlab.progress import display
from bdlab.types import Experiment


class Client(Files, Frames):
    """Talks to one service.

    with Client("http://127.0.0.1:8000") as client:
        experiment = client.submit({"attack": {"name": "sig"}, "defenses": [{"name": "abl"}]})
        client.wait(experiment["id"])
        print(client.results_frame(experiment["id"]))
    """

    def wait(
        self,
        id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Experiment], None] | None = None,
        progress: bool | None = None,
    ) -> Experiment:
        """Poll until the experiment has ended; raises WaitTimeoutError after ``timeout`` seconds.

        ``progress`` shows how it comes along, as bars or, where they cannot move, as lines. None: in a terminal and
        in a notebook alone.
        """
        console = Console(stderr=True, highlight=False)
        if progress is None:
            progress = console.is_jupyter or console.is_terminal
        if not progress:
            return super().wait(id, timeout=timeout, on_progress=on_progress)
        with display(console) as shown:

            def show(experiment: Experiment) -> None:
                reason = (experiment.get("error") or {}).get("reason")
                shown.see("progress", {**experiment["progress"]})
                shown.see("state", {"status": experiment["status"], "reason": reason})
                if on_progress:
                    on_progress(experiment)

            return super().wait(id, timeout=timeout, on_progress=show)

    def to_mlflow(
        self,
        id: str,
        tracking_uri: str | None = None,
        *,
        name: str = mlflow_export.DEFAULT_NAME,
        files: bool = True,
    ) -> str:
        """Copy an ended experiment to an MLflow server; returns its run's id. See `bdlab.mlflow_export.export`."""
        return mlflow_export.export(self, id, tracking_uri, name=name, files=files)
