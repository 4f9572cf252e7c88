"""The `bdlab` command.

Exit codes:
  0    success
  1    the experiment failed or was canceled, `bdlab up` could not start, or `bdlab doctor` found an error
  2    invalid input, the service refused it, or the command needs an extra that is not installed
  3    the service cannot be reached, or is temporarily unavailable
  4    no such experiment or file
  130  interrupted

Errors are one line on standard error.
"""

import sys
from importlib.metadata import version as distribution_version

import typer
from typer.exceptions import Abort, TyperException

from app.specs.printable import printable
from bdlab.commands import artifacts, batches, experiments, export, results, uploads, webhooks, workers
from bdlab.commands.common import BAD_INPUT, NO_SERVICE, NOT_FOUND, AsJson, CommandError, print_result
from bdlab.commands.server import backup, data, demo, doctor, gc, keys, processes
from bdlab.commands.server.extras import DISTRIBUTION, needs
from bdlab.errors import ApiError, BdlabError, MissingPackageError, NotFoundError, UnsuitableFileError

app = typer.Typer(
    name="bdlab",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Backdoor attacks and defenses as experiments.\n\n"
    "Exit codes: 0 success; 1 the experiment failed or was canceled; 2 invalid input; 3 no service; 4 not found.",
)
app.command(cls=needs("server", "worker"))(processes.up)
app.command(cls=needs("worker"))(processes.worker)
app.command()(experiments.submit)
app.command()(experiments.watch)
app.command()(results.results)
app.command()(results.leaderboard)
app.command()(results.compare)
app.command()(results.reproduce)
app.command()(results.reproduction)
app.command()(experiments.logs)
app.command("list")(experiments.list_)
app.command()(experiments.cancel)
app.command()(experiments.retry)
app.command()(experiments.predict)
app.command()(experiments.catalog)
app.command()(workers.workers)
app.add_typer(batches.sweeps, name="sweep")
app.add_typer(batches.studies, name="study")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(export.app, name="export")
app.add_typer(data.app, name="data")
app.add_typer(uploads.models, name="models")
app.add_typer(uploads.datasets, name="datasets")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.command(cls=needs("server", "worker"))(demo.demo)
app.command(cls=needs("server"))(doctor.doctor)
app.command(cls=needs("server"))(gc.gc)
app.command(cls=needs("server"))(backup.backup)
app.command(cls=needs("server"))(backup.restore)
app.command(cls=needs("server"))(processes.migrate)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    number = distribution_version(DISTRIBUTION)
    print_result({"version": number}, as_json, number)


def main() -> None:
    """Run the command; every expected error becomes one line and an exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="bdlab", standalone_mode=False)
    except TyperException as error:
        code = _fail(error.format_message(), error.exit_code)
    except CommandError as error:
        code = _fail(str(error), error.code)
    except NotFoundError as error:
        code = _fail(str(error), NOT_FOUND)
    except ApiError as error:
        code = _fail(str(error), BAD_INPUT if error.status < 500 else NO_SERVICE)
    except (MissingPackageError, UnsuitableFileError, OSError) as error:
        code = _fail(str(error), BAD_INPUT)
    except BdlabError as error:
        code = _fail(str(error), NO_SERVICE)
    except (KeyboardInterrupt, Abort):
        code = 130
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"bdlab: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
