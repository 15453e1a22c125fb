"""``adabm-basicsr options``."""

import json
import subprocess
import sys
from pathlib import Path

from adabm_basicsr.commands.main import main
from adabm_basicsr.options.schema import PATH


def test_all_options_as_text(capsys):
    main(["options"])
    printed = capsys.readouterr().out
    for key in ("network_g:", "  w_bits", "train: finetune:", "  lr_decay", "  tile_overlap"):
        assert f"{key}\n" in printed


def test_schema(capsys):
    main(["options", "--schema"])
    printed = capsys.readouterr().out
    assert printed == PATH.read_text()
    assert json.loads(printed)["title"] == "Option file of adabm-basicsr"


def test_help_and_schema_need_neither_torch_nor_the_table():
    code = (
        "import sys; from adabm_basicsr.commands.main import main\n"
        "for argv in (['--help'], ['options', '--help'], ['options', '--schema']):\n"
        "    try: main(argv)\n"
        "    except SystemExit: pass\n"
        "print({'torch', 'basicsr', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout.endswith("set()\n")
