"""`mdevns`: the entry point and the table of commands.

A command's module is imported when the command is called and not before, so that `--help`
costs what Typer costs; what is printed there of a command stands in the table.
"""

# No `from __future__ import annotations`: Typer reads the annotations.

import gc
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli.failures import Usage, nobody_reads, report, unforeseen
from cli.options import Format, Given, taking_options
from cli.values import converted_plainly
from coordinator import __version__
from coordinator.errors import Interrupted, MdevnsError

__all__ = ["COMMANDS", "app", "load", "main"]

# Where each command is (a function, or the Typer app of a group), and the first line of its
# help, which a test holds to its docstring.
COMMANDS = {
    "create": ("cli.names:create", "Claim a name and have its device made."),
    "remove": ("cli.names:remove", "Remove devices, and free their names."),
    "reserve": ("cli.names:reserve", "Hold a name with no host yet."),
    "renew": ("cli.names:renew", "Hold a reservation for longer."),
    "release": ("cli.names:release", "Give a reservation back."),
    "define": (
        "cli.persistent:define",
        "Take a name for a persistent device, and do not make it yet.",
    ),
    "undefine": ("cli.persistent:undefine", "Give a persistent name up that has no device."),
    "start": ("cli.persistent:start", "Have the devices of defined names made."),
    "stop": ("cli.persistent:stop", "Remove the devices of persistent names, which stay defined."),
    "move": ("cli.persistent:move", "Give a name without a device to another host."),
    "list": ("cli.looking:list_", "List names and who holds them."),
    "show": ("cli.looking:show", "Say who holds a name, why, and what would free it."),
    "hosts": ("cli.hosts:hosts", "List hosts and their names; or forget or rename one."),
    "parents": ("cli.hosts:parents", "List parents and what they have available."),
    "types": ("cli.hosts:types", "List types, and what the cluster has available of each."),
    "watch": ("cli.watch:watch", "Tell changes of names as they happen, until it is interrupted."),
    "check": ("cli.checking:check", "Check that names, claims and devices agree."),
    "doctor": ("cli.doctor:doctor", "Look whether etcd, configuration and this host are fit."),
    "evict": ("cli.forced:evict", "Give a fenced, unreachable host's names back."),
    "audit": ("cli.forced:audit", "List forced acts: who did what to which host, and why."),
    "restore": (
        "cli.restore:app",
        "Hold the namespace while a restored etcd is reconciled, and let it go.",
    ),
    "export": ("cli.transfer:export", "Write the namespace as JSON lines, all of one moment."),
    "import": (
        "cli.transfer:import_",
        "Read an export into an empty namespace: all of it, or nothing.",
    ),
    "mdevctl": (
        "cli.mdevctl:app",
        "Have mdevctl ask this host's agent before it does something.",
    ),
    "completion": (
        "cli.completion:completion",
        "Print the script that makes a shell complete commands, options and names.",
    ),
    "agent": ("cli.agents:agent", "Run one host's agent, in the foreground."),
    "sim": ("cli.sim:app", "Simulated hosts, for demos and tests."),
    "etcd": ("cli.etcd:app", "The embedded etcd, for demos and tests."),
    "demo": ("cli.demo:demo", "Show what mdevns does, on this machine alone, in a minute."),
}

_GARBAGE = 20_000  # so many new objects before the next look for garbage
_AFTER = "Global options work here too; see: mdevns --help"


class _Command(TyperCommand):
    """A command that is not a group."""

    def get_params(self, ctx: Any) -> list[Any]:
        return converted_plainly(super().get_params(ctx))


class _Commands(TyperGroup):
    """The group of all commands; loads the one that is called, and exits with its code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, (_, summary) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=summary))

    def get_params(self, ctx: Any) -> list[Any]:
        return converted_plainly(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest

    def main(  # type: ignore[override]  # what it is called with elsewhere is not ours
        self, args: Sequence[str] | None = None, **_: Any
    ) -> NoReturn:
        """Run, and exit as cli.md's table of exit codes says."""
        given = (sys.argv[1:] if args is None else list(args)) or ["--help"]
        sys.exit(_guarded(lambda: self._run(given), given))

    def _run(self, args: list[str]) -> int:
        try:
            # Given as a copy: parsing consumes it.
            with self.make_context("mdevns", list(args)) as context:
                code = self.invoke(context)
        except typer.Exit as exit_:
            code = exit_.exit_code
        sys.stdout.flush()
        return code or 0


def load(name: str) -> Any:
    """The command of a name, with its module imported."""
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        return get_command(found)
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=_Command, epilog=_AFTER)(found)
    return get_command(alone)


def _guarded(run: Callable[[], int], args: Sequence[str]) -> int:
    """Run, with every error as its line on stderr and its exit code."""
    verbose = not {"-v", "--verbose"}.isdisjoint(args)
    try:
        return run()
    except MdevnsError as error:
        failure = error
    except typer.TyperException as error:
        failure = _usage(error)
    except KeyboardInterrupt:
        failure = Interrupted("mdevns", "interrupted", "to see what stands: mdevns list")
    except BrokenPipeError:  # nobody reads any more (… | head), and nobody is told
        nobody_reads()
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence; it is reported
        failure = unforeseen(error, verbose=verbose)
    if verbose:
        sys.stderr.writelines(f"{note}\n" for note in getattr(failure, "__notes__", ()))
    report(failure, _asked_form(args))
    return failure.exit_code


def _usage(error: typer.TyperException) -> MdevnsError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mdevns"
    why = error.format_message().replace("\n", " ").replace("Value error, ", "")
    return Usage(command, why.rstrip("."), f"see: {command} --help")


def _asked_form(args: Sequence[str]) -> Format:
    """In which form errors are to be: looked up here, since parsing may be what failed."""
    found = Format.TABLE
    for option, value in pairwise([*args, ""]):
        for form in Format:
            joined = option in (f"-o{form}", f"--output={form}")
            if joined or (option in ("-o", "--output") and value == form):
                found = form  # the later one wins
    return found


def _root(context: typer.Context, given: Given, **_: Any) -> None:
    context.obj = given


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it with the value
    if wanted:
        typer.echo(f"mdevns {__version__}")
        raise typer.Exit


_VERSION = inspect.Parameter(
    "version",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ],
)

app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    rich_markup_mode=None,
    help="One namespace for the mediated devices of a cluster: each name is taken once.",
)
app.callback()(taking_options(_root, [_VERSION], hidden=False))


def main() -> None:
    """Run the command line."""
    # What is loaded stays: to look it through for garbage every 700 objects is a 20th of a start.
    gc.set_threshold(_GARBAGE)
    try:
        app()
    finally:
        gc.freeze()  # nor is it at the end, three times over: it ends with the process
