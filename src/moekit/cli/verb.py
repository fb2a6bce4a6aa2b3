"""The frame of every verb: help that is whole at any width, and mistakes told in a sentence, with a way on."""

import re
import shutil
from typing import Any

import click

from moekit.cli.other_tools import ARGUMENTS, OPTIONS, REMARKS, VERBS
from moekit.core.errors import did_you_mean

_WIDEST, _NARROWEST = 110, 38


# Long options with a single dash, which are read here as several short ones.
_OTHERS_LONG = {name for name in (*OPTIONS, *REMARKS) if re.fullmatch("-[a-z]{2,}", name)}


class _Formatter(click.HelpFormatter):
    """Fits the terminal also where that is narrower than click foresees."""

    def __init__(self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None) -> None:
        columns = min(width or shutil.get_terminal_size().columns, _WIDEST)
        super().__init__(indent_increment, max(columns - 2, _NARROWEST))


class _Context(click.Context):
    formatter_class = _Formatter


class Verb(click.Command):
    """A verb of the command line."""

    context_class = _Context

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of a command line. Raise click.UsageError, which knows the verb, where they are wrong."""
        words = tuple(args)  # the list is used up
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            if (foreign := next((word for word in words if word in _OTHERS_LONG), None)) is not None:
                raise click.NoSuchOption(foreign, ctx=ctx) from error
            raise


class Verbs(click.Group):
    """Several verbs, under one name."""

    context_class = _Context
    command_class = Verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs, each with the whole first sentence of its help."""
        rows = [(name, command.get_short_help_str(limit=10_000)) for name, command in sorted(self.commands.items())]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)


def usage_problem(error: click.UsageError) -> str:
    """Say what is wrong with a command line in a sentence, and on a second line where to look."""
    sentence = _sentence(error)
    sentence = sentence if sentence.endswith((".", "?")) else f"{sentence}."
    return f"{sentence}\n`{error.ctx.command_path} --help` shows what there is." if error.ctx else sentence


def _sentence(error: click.UsageError) -> str:
    match error:
        case click.NoSuchOption():
            return _no_option(error.option_name, error.ctx)
        case click.NoSuchCommand():
            return _no_verb(error.command_name, error.ctx)
        case click.MissingParameter():
            return f"{_name(error.param, error.ctx)} is missing"
        case click.BadParameter():
            return f"{_name(error.param, error.ctx)}: {error.message}"
        case click.BadOptionUsage():
            option = _option(error.option_name, error.ctx)
            takes_none = option is not None and option.is_flag
            return f"{error.option_name} takes no value" if takes_none else f"{error.option_name} needs a value"
    if extra := re.match(r"Got unexpected extra arguments? \((.*)\)$", error.message, re.DOTALL):
        return f"There is no place for {extra[1]!r}"
    return error.message


def _no_option(name: str, ctx: click.Context | None) -> str:
    ours = [option for parameter in _parameters(ctx) for option in (*parameter.opts, *parameter.secondary_opts)]
    there = [option for option in ours if option.startswith("-")]
    plain = name.replace("_", "-").lower() if name.startswith("--") else name
    same = next((option for option in (plain, *OPTIONS.get(plain, ())) if option in there), None)
    if same is not None:
        return f"There is no option {name}; moekit calls it {same}"
    arguments = [parameter for parameter in _parameters(ctx) if isinstance(parameter, click.Argument)]
    for argument in arguments:
        if argument.name in ARGUMENTS.get(plain, ()):
            return f"There is no option {name}; {_name(argument, ctx)} is given without one"
    if plain in REMARKS:
        return f"{name} {REMARKS[plain]}"
    if not name.startswith("--"):
        return f"There is no option {name}"
    return f"There is no option {name}: {did_you_mean(name, [option for option in there if option.startswith('--')])}"


def _no_verb(name: str, ctx: click.Context | None) -> str:
    group = ctx.command if ctx is not None else None
    names = list(group.commands) if isinstance(group, click.Group) else []
    hint = did_you_mean(name.lower(), names)
    if (group is None or ctx is None or ctx.parent is None) and name.lower() in VERBS:
        hint = VERBS[name.lower()]
    return f"There is no verb {name!r}: {hint}"


def _parameters(ctx: click.Context | None) -> list[click.Parameter]:
    return [] if ctx is None else ctx.command.get_params(ctx)


def _option(name: str, ctx: click.Context | None) -> click.Option | None:
    options = (parameter for parameter in _parameters(ctx) if name in (*parameter.opts, *parameter.secondary_opts))
    return next((option for option in options if isinstance(option, click.Option)), None)


def _name(parameter: Any, ctx: click.Context | None) -> str:
    """Name an option by its longest spelling, an argument as the usage does."""
    if isinstance(parameter, click.Option):
        return max(parameter.opts, key=len)
    return str(parameter.make_metavar(ctx)).strip("[]{}") if ctx is not None else str(parameter.name)
