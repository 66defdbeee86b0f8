"""The command line's grammar, by Typer: every command is a dataclass, whose fields are its arguments and options.

Parsing makes an object of that class. It runs nothing, so that errors, Ctrl-C and a reader that has gone away are dealt
with in one place of our own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from .. import __version__
from .._text import did_you_mean
from .commands import Command, Init, Prune, Show
from .export import Export
from .judging import Compare, Evaluate

COMMANDS = (Init, Prune, Evaluate, Compare, Show, Export)


class _Command(TyperCommand):
    """A command whose repeatable options also take several values at once, where the metavar ends in dots."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = {name: option for option in self.get_params(ctx) for name in option.opts if name.startswith("-")}
        return super().parse_args(ctx, args if ctx.resilient_parsing else _repeat_options(ctx, options, args))


def _repeat_options(ctx: Any, options: dict[str, Any], args: list[str]) -> list[str]:
    """``--attacks FGSM PGD-20`` as ``--attacks FGSM --attacks PGD-20``, which Typer understands."""
    repeated: list[str] = []
    several = None
    for place, argument in enumerate(args):
        if argument == "--":
            return [*repeated, *args[place:]]
        last = options.get(repeated[-1]) if repeated else None
        if not argument.strip() or (argument.endswith("=") and argument[:-1] in options):
            ctx.fail(f"{repeated[-1] if last else argument or 'an argument'}: expected a value, got an empty one")
        if re.match(r"-(?!\.?\d)", argument):  # an option, no negative number
            name, equals, _ = argument.partition("=")
            if name not in options:
                ctx.fail(f"no such option: {name}{did_you_mean(name, options)}")
            if last is not None and not last.is_flag:
                ctx.fail(f"{repeated[-1]}: expected a value, got {argument}")
            several = name if not equals and (options[name].metavar or "").endswith("...") else None
        elif several and last is None:
            repeated.append(several)
        repeated.append(argument)
    return repeated


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pwoa-plugin {__version__}")
        raise typer.Exit


def _print_help(context: typer.Context, asked: bool) -> None:
    if asked:
        typer.echo(context.get_help())
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
    help: Annotated[
        bool, typer.Option("--help", is_eager=True, callback=_print_help, help="Show this message and exit.")
    ] = False,
) -> None:
    """Options of ``pwoa`` itself; with Typer's own ``--help``, each command's help would import pydantic."""


def parse(arguments: list[str]) -> Command | int:
    """The command that the arguments ask for, ready to run; or an exit status, where parsing was all (``--help``).

    Raises:
        TyperException: the arguments are wrong.
    """
    arguments = arguments or ["--help"]
    # With the options for completion, each command's help would import pydantic.
    program = typer.Typer(rich_markup_mode=None, add_completion=arguments[0].startswith("-"))
    program.callback(
        add_help_option=False,
        help="Prune an adversarially robust network without adversarial examples, and report how robust it is.",
        epilog="pwoa init prune.yaml; pwoa prune prune.yaml --out runs/a; pwoa evaluate runs/a; pwoa show runs/a",
    )(_options)
    for command in COMMANDS:
        program.command(cls=_Command)(command)
    parsed: Command | int = get_command(program).main(arguments, prog_name="pwoa", standalone_mode=False)
    return parsed
