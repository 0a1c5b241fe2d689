"""Commands of other packages in the command line: their arguments, exit codes, and missing dependencies."""

from pathlib import Path

import pytest

from whisperfold.runtime import cli, plugins


class FakeEntry:
    """An entry point whose load() gives, or raises, what the test wants."""

    def __init__(self, result):
        self.result = result

    def load(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_a_plugin_gets_its_own_arguments(monkeypatch, capsys):
    import typer

    def compile_command(
        source: str,
        output: Path = typer.Option(..., "-o", "--output"),
        epochs: int = typer.Option(1, "--heal-epochs"),
    ) -> None:
        print(source, output, epochs)

    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": FakeEntry(compile_command)})
    assert cli.main(["compile", "-o", "out", "tiny.en", "--heal-epochs", "3"]) == 0
    assert capsys.readouterr().out == "tiny.en out 3\n"
    assert cli.main(["compile", "--help"]) == 0
    assert "--heal-epochs" in capsys.readouterr().out
    assert cli.main(["compile", "tiny.en"]) == 2


def test_help_lists_plugins_without_loading_them(monkeypatch, capsys):
    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": FakeEntry(AssertionError("loaded"))})
    assert cli.main(["--help"]) == 0
    assert "Make a bundle from a Whisper checkpoint" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("when", ["on load", "inside"])
def test_a_plugin_without_its_dependencies(monkeypatch, capsys, when):
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")

    def compile_command() -> None:
        raise missing

    entry = FakeEntry(missing if when == "on load" else compile_command)
    monkeypatch.setattr(plugins, "find_plugins", lambda: {"compile": entry})
    assert cli.main(["compile"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("compile needs the compiler extra: pip install 'whisperfold[compiler]'")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("raised", "code"), [("exit", 3), ("error", 2), ("interrupt", 130)])
def test_the_exit_code_of_a_plugin(monkeypatch, capsys, raised, code):
    import typer

    from whisperfold.runtime.errors import CompileError

    errors = {
        "exit": typer.Exit(3),
        "error": CompileError("stage heal: no audio"),
        "interrupt": KeyboardInterrupt(),
    }

    def verify_command() -> None:
        raise errors[raised]

    monkeypatch.setattr(plugins, "find_plugins", lambda: {"verify": FakeEntry(verify_command)})
    assert cli.main(["verify"]) == code
    if raised == "error":
        assert capsys.readouterr().err == "whisperfold: stage heal: no audio\n"
