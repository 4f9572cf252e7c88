"""The `bdlab` command.

Exit codes: 0 done; 1 the experiment failed or was canceled, `bdlab up` could not start, or `bdlab doctor` found
something broken; 2 bad input, or the
service refused it; 3 the service cannot be reached or cannot do it now; 4 no such experiment or file;
130 interrupted. Errors are one line on standard error.
"""

import sys

import typer
from pydantic import ValidationError
from typer.exceptions import Abort, TyperException

from bdlab.commands import (
    artifacts,
    backup,
    data,
    demo,
    doctor,
    experiments,
    export,
    housekeeping,
    keys,
    results,
    service,
    studies,
    sweeps,
    uploads,
    webhooks,
    workers,
)
from bdlab.commands.common import BAD_INPUT, NO_SERVICE, NOT_FOUND, CommandError
from bdlab.errors import ApiError, BdlabError, NotFoundError

app = typer.Typer(
    name="bdlab",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Backdoor attacks and defenses as experiments.\n\n"
    "Exit codes: 0 done; 1 the experiment failed or was canceled; 2 bad input; 3 no service; 4 not found.",
)
app.command()(service.up)
app.command()(service.worker)
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
app.add_typer(sweeps.app, name="sweep")
app.add_typer(studies.app, name="study")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(export.app, name="export")
app.add_typer(data.app, name="data")
app.add_typer(uploads.models, name="models")
app.add_typer(uploads.datasets, name="datasets")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(keys.app, name="keys")
app.command()(demo.demo)
app.command()(doctor.doctor)
app.command()(housekeeping.gc)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(service.migrate)
app.command()(service.version)


def main() -> None:
    """Run the command; every expected error becomes one line and an exit code."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except TyperException as error:
        code = _fail(error.format_message(), error.exit_code)
    except CommandError as error:
        code = _fail(str(error), error.code)
    except NotFoundError as error:
        code = _fail(str(error), NOT_FOUND)
    except ApiError as error:
        code = _fail(str(error), BAD_INPUT if error.status < 500 else NO_SERVICE)
    except BdlabError as error:
        code = _fail(str(error), NO_SERVICE)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(map(str, fault["loc"]))
        code = _fail(f"BDLAB_{field.upper()}={fault['input']!r} is not allowed: {fault['msg']}", BAD_INPUT)
    except OSError as error:
        code = _fail(str(error), BAD_INPUT)
    except (KeyboardInterrupt, Abort):
        code = 130
    sys.exit(code or 0)


def _fail(message: str, code: int) -> int:
    print(f"bdlab: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
