"""Every image architecture of spandrel: the same pixels from its file, and W8A8 close to float."""

import pytest
import zoo

FEW = ("Compact", "DRUNet", "MoSR", "RCAN", "SAFMN")  # in every run
MANY = sorted(set(zoo.ZOO) - set(FEW))


@pytest.fixture
def spandrel():
    return pytest.importorskip("spandrel")


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.zoo) for n in MANY)])
def test_a_network_is_quantized_or_refused_with_its_reason(spandrel, name, tmp_path):
    result = zoo.quantize_entry(name, tmp_path)
    refused = zoo.ZOO[name].refused
    if refused:
        assert refused in result.error
        return
    assert not result.error
    assert result.is_same
    assert result.db >= zoo.ENOUGH


def test_all_architectures_are_there(spandrel):
    architectures = {entry.architecture.id for entry in spandrel.MAIN_REGISTRY}
    assert architectures == {zoo.architecture_of(name) for name in zoo.ZOO} | set(zoo.LEFT_OUT)


def test_the_table_names_them_all():
    page = zoo.PAGE.read_text(encoding="utf-8")
    table = page.partition(zoo.BEGIN)[2].partition(zoo.END)[0]
    for name in zoo.ZOO:
        assert f"\n| {name} | " in table
