"""Commands of other packages: entry points of ``whisperfold.commands``, loaded when they are called.

The runtime imports nothing of the compiler; its ``compile``, ``study`` and ``verify`` are found by name only. A device
without torch still lists them, and says what is missing when one is called.
"""

import logging
import sys
from typing import Any

import typer
from typer.core import TyperGroup

_LOG = logging.getLogger(__name__)
_GROUP = "whisperfold.commands"
_HELP = {
    "compile": "Make a bundle from a Whisper checkpoint (needs the compiler extra).",
    "study": "Compare ways of cutting the encoder, before and after healing (needs the compiler extra).",
    "verify": "Measure a bundle: word error rate, latency, size (needs the compiler extra).",
}
EXIT_MISSING = 2


class CommandGroup(TyperGroup):
    """The built-in commands, then the plug-ins; entry points are searched for other names only."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all command names in the order that ``--help`` shows them."""
        built_in = super().list_commands(ctx)
        return built_in + [name for name in sorted(find_plugins()) if name not in built_in]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a built-in command, or a stand-in that loads the plug-in when it is invoked."""
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in find_plugins():
            return _stand_in(cmd_name)
        return command


def find_plugins() -> dict[str, Any]:
    """Return the entry points of the group by name; nothing is imported."""
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in entry_points(group=_GROUP)}


def run_plugin(name: str, arguments: list[str]) -> None:
    """Load a plug-in (a function with typer annotations) and run it.

    A missing dependency is one line on stderr and exit code 2, whether it is missed when the plug-in is
    loaded or by an import inside it.

    Args:
        name: command and entry point.
        arguments: everything after the name, ``--help`` included.
    """
    try:
        plugin = typer.Typer(add_completion=False)
        plugin.command(name)(find_plugins()[name].load())
        command = typer.main.get_command(plugin)
        code = command.main(args=arguments, prog_name=f"whisperfold {name}", standalone_mode=False)
    except ModuleNotFoundError as error:
        _LOG.debug("plugin=%s", name, exc_info=True)
        print(
            f"{name} needs the compiler extra: pip install 'whisperfold[compiler]' (missing: {error.name})",
            file=sys.stderr,
        )
        raise typer.Exit(EXIT_MISSING) from None
    if isinstance(code, int) and code:
        raise typer.Exit(code)


def _stand_in(name: str) -> Any:
    """Return a command that takes any arguments, and loads the real one to give them to."""
    stand_in = typer.Typer(add_completion=False)

    @stand_in.command(
        name,
        help=_HELP.get(name, "A plug-in command."),
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def run(ctx: typer.Context) -> None:
        run_plugin(name, ctx.args)

    return typer.main.get_command(stand_in)
