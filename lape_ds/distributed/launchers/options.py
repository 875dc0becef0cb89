"""The command line of `launch/*.sh` and `launch/slurm.sbatch`: launcher options, then the recipe, then its settings.

First of the launchers. What stands in the wrong place is refused, not handed to somebody who would take it for something else.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.errors import UserError

HOST_OPTIONS = ("hostfile", "include", "exclude", "num_nodes", "num_gpus", "master_addr", "master_port")
SLURM_OPTIONS = ("stage", "languages")
_NUMBERS = ("num_nodes", "num_gpus", "master_port")
_MAX_PORT = 65535


@dataclass(frozen=True)
class CommandLine:
    """A command line taken apart.

    Attributes:
        options: Launcher options by name, without dashes.
        recipe: The recipe's path.
        overrides: `key=value`; of an evaluation also what else `lape-ds eval` takes.
    """

    options: dict[str, str]
    recipe: str
    overrides: list[str]

    @property
    def settings(self) -> list[str]:
        """Those of `overrides` that are settings."""
        return [word for word in self.overrides if "=" in word and not word.startswith("-")]

    def number(self, name: str) -> int | None:
        """The value of an option that is a number; None where it is not given."""
        return int(self.options[name]) if name in self.options else None


def read_command_line(
    arguments: Sequence[str], *, script: str, allowed: Sequence[str], passed_on: bool = False
) -> CommandLine:
    """Takes a command line apart.

    Args:
        arguments: `[--option value …] RECIPE [key=value …]`; `--option=value` is read as well.
        script: What the user calls, for messages.
        allowed: Its options, without dashes.
        passed_on: Other options behind the recipe are the stage's, which refuses what it does not know.

    Raises:
        UserError: An unknown option, one without its value or behind the recipe, a setting before the recipe, or no recipe.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        name, value = _option(rest, script=script, allowed=allowed)
        if name in options:
            raise UserError(f"--{name} is given twice")
        options[name] = value
    if not rest:
        raise UserError(f"which recipe? {_usage(script)}")
    recipe, *overrides = rest
    if "=" in recipe and not Path(recipe).exists():
        raise UserError(f"{recipe} stands before the recipe, where launcher options go; {_usage(script)}")
    for argument in overrides:
        if argument.startswith("-") and not (passed_on and _name(argument) not in allowed):
            _refuse_behind(argument, script=script, allowed=allowed)
    return CommandLine(options, recipe, overrides)


def _option(rest: list[str], *, script: str, allowed: Sequence[str]) -> tuple[str, str]:
    """Takes the first option and its value off `rest`."""
    written = rest.pop(0)
    _, equals, value = written.partition("=")
    name = _name(written)
    if name not in allowed or not written.startswith("--"):
        near = difflib.get_close_matches(name, allowed, n=1)
        hint = f"did you mean --{near[0]}? " if near else ""
        raise UserError(f"unknown option {written.partition('=')[0]}; {hint}{script} has {_listed(allowed)}")
    if not equals:
        if not rest or rest[0].startswith("--"):
            raise UserError(f"--{name} needs a value; {_usage(script)}")
        value = rest.pop(0)
    if name in _NUMBERS:
        top = _MAX_PORT if name == "master_port" else None
        if not value.isdecimal() or int(value) < 1 or (top is not None and int(value) > top):
            raise UserError(f"--{name} must be a number from 1{f' to {top}' if top else ''}, not {value!r}")
    return name, value


def _refuse_behind(argument: str, *, script: str, allowed: Sequence[str]) -> None:
    written = argument.partition("=")[0]
    if _name(argument) in allowed:
        raise UserError(f"{written} is a launcher option and goes before the recipe; {_usage(script)}")
    raise UserError(
        f"unknown option {written}: behind the recipe stand its settings, key=value without dashes; before it {_listed(allowed)}"
    )


def _name(option: str) -> str:
    return option.partition("=")[0].lstrip("-").replace("-", "_")


def _listed(allowed: Sequence[str]) -> str:
    return ", ".join(f"--{name}" for name in allowed)


def _usage(script: str) -> str:
    return f"usage: {script} [launcher options] RECIPE.yaml [key=value …]"


def usage_and_options(script: str, *, allowed: Sequence[str]) -> str:
    """What `--help` prints: the form of the command line, and its launcher options."""
    usage = _usage(script)
    return f"{usage[0].upper()}{usage[1:]}\nLauncher options: {_listed(allowed)}"
