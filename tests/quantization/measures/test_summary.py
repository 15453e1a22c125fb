"""The table of layers."""

import pytest
import torch

from adabm_basicsr import calibrate, quantize, summarize

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_summary_names_every_layer_and_every_reason(tiny):
    net = calibrate(quantize(tiny, IMAGES[:1]), [IMAGES])
    summary = summarize(net, IMAGES)
    text = str(summary)
    assert [row.name for row in summary.layers] == list(net.layers())
    assert all(name in text for name in net.layers())
    assert "upsample.0, conv_last: tail (fully_quantized is off), " in text
    assert "conv_first: head (fully_quantized is off)" in text
    assert 0 < summary.coverage.macs < 1
    assert 3 <= summary.fab <= 5
    body = [row for row in summary.layers if not net.plan.layers[row.name].fixed]
    expected = sum(row.a_bits * row.macs_share for row in body) / sum(
        row.macs_share for row in body
    )
    assert summary.bits_by_macs == pytest.approx(expected)
    assert f"weighted by MACs {expected:.2f}" in text
    assert all(row.sqnr_db > 0 for row in summary.layers)
