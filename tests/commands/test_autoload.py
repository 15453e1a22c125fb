"""The file that lets BasicSR's own entry points find the plugin."""

from adabm_basicsr.commands.autoload import LINE, autoload_path
from adabm_basicsr.commands.main import main


def test_autoload_on_off_status(capsys):
    was_on = autoload_path().is_file()
    main(["autoload", "on"])
    assert autoload_path().read_text() == LINE
    main(["autoload", "status"])
    main(["autoload", "off"])
    main(["autoload", "off"])
    assert not autoload_path().exists()
    printed = capsys.readouterr().out.splitlines()
    states = [line.split(" (")[0].removeprefix("autoload is ") for line in printed]
    assert states == ["on", "on", "off", "off"]
    if was_on:
        main(["autoload", "on"])
