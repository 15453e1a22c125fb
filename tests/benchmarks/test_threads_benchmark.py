"""The benchmark of threads has a row for each case, whatever their times are."""

import pytest

from adabm_basicsr.deployment.runtimes import RUNTIMES

pytestmark = pytest.mark.runtimes

threads = pytest.importorskip("threads", reason="needs onnx, onnxruntime and openvino")


def test_each_runtime_is_measured_with_each_number_of_threads(exported):
    rows = threads.measure(exported, (8, 8), [1, 2], calls=4, rounds=1)
    cases = {(row["runtime"], row["images"], row["threads"]) for row in rows}
    assert len(cases) == len(rows)
    assert {(runtime, "one class", count) for runtime in RUNTIMES for count in (1, 2)} <= cases
    for row in rows:
        assert row["images/s"] > 0
        assert row["threads"] > 1 or row["times one thread"] == 1


def test_cases_that_lose_are_named():
    row = {"runtime": "openvino", "images": "one class", "threads": 2, "times one thread": 0.5}
    assert threads.slower([row, {**row, "times one thread": 0.99}]) == [
        "openvino, one class, 2 threads: 0.50"
    ]
