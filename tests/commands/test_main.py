"""The table of commands, and what each of them shares."""

import importlib
import subprocess
import sys

import pytest

from adabm_basicsr.commands.main import COMMANDS, main

PRINT_IMPORTED = """
import sys
from adabm_basicsr.commands.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print({"torch", "basicsr"} & set(sys.modules))
"""


def imported_by(*argv):
    """What a command prints, and at the end which heavy packages it imported."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_IMPORTED, *argv], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_help_names_every_command_and_imports_nothing_heavy():
    printed = imported_by("--help")
    assert all(f"    {name} " in printed for name in COMMANDS)
    assert printed.endswith("set()\n")


def test_a_command_that_needs_nothing_heavy_imports_nothing_heavy():
    assert imported_by("autoload", "status").endswith("set()\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"usage: adabm-basicsr {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "test"])
def test_launchers_run_the_command_by_its_module(name, capsys):
    module = importlib.import_module(f"adabm_basicsr.{name}")
    with pytest.raises(SystemExit) as stopped:
        module.main(["-opt", "gone.yml"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("adabm-basicsr: error: ")
    assert error.count("\n") == 1


def test_unknown_command(capsys):
    with pytest.raises(SystemExit):
        main(["quantise"])
    assert "unknown command 'quantise'; valid: 'demo', " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["export", "--modle", "net.pth"], "unknown flag --modle; did you mean '--model'?"),
        (["inspect", "net.pth", "--jsn"], "unknown flag --jsn; did you mean '--json'?"),
        (["export"], "required: -m/--model; see adabm-basicsr export --help"),
        (["export", "-m", "net.pth", "--level", "7"], "invalid choice: 7 (choose from 0, 1, 2)"),
    ],
)
def test_mistakes_in_flags_are_one_line_with_the_nearest(argv, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
