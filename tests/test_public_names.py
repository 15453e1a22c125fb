"""The public names: those that are imported lazily, those that editors see, and ``__all__``."""

import ast
from pathlib import Path

import pytest

import adabm_basicsr

SOURCE = Path(adabm_basicsr.__file__)


def typed_imports():
    """Modules by the names that the ``TYPE_CHECKING`` block imports from them."""
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            imports = node.body
    return {name.name: imported.module for imported in imports for name in imported.names}


def test_editors_see_the_names_that_there_are():
    assert typed_imports() == adabm_basicsr._MODULES


def test_all_lists_them():
    assert set(adabm_basicsr.__all__) == {*adabm_basicsr._MODULES, "__version__"}
    assert set(adabm_basicsr.__all__) <= set(dir(adabm_basicsr))


@pytest.mark.parametrize("name", adabm_basicsr._MODULES)
def test_every_name_is_there(name):
    assert callable(getattr(adabm_basicsr, name))


def test_another_name_is_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adabm_basicsr.nothing
