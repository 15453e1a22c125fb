"""Blocks in every form are valid models of which runtimes give the same result."""

import numpy as np
import pytest

pytestmark = pytest.mark.runtimes

one_block = pytest.importorskip("one_block", reason="needs onnx, onnxruntime and openvino")


@pytest.mark.parametrize("block", one_block.BLOCKS)
def test_runtimes_agree_and_openvino_runs_quantized_layers_as_integers(block, monkeypatch):
    monkeypatch.setattr(one_block, "SIZE", 16)
    monkeypatch.setattr(one_block, "BLOCKS", {block: one_block.BLOCKS[block]})
    rows = one_block.measure(repeats=1)
    assert len(rows) == len(one_block.FORMS)
    for row in rows:
        done, total = row["openvino_integer"].split(" of ")
        assert done == ("0" if row["form"] == "float32" else total)
        assert np.isfinite(row["difference"])
        assert row["difference"] < 0.05
