"""The published recipe on EDSR lands where the published implementation does."""

from statistics import mean, stdev

import paper_on_edsr as benchmark
import pytest

# Of further runs, 95 % lie as near to the mean of three (Student's t, two degrees of freedom). Bits
# that round to the other side make runs differ a lot: seeds by 0.1 dB, the same seed on one thread
# or two by 0.07 dB.
MARGIN = 4.303 * (1 + 1 / 3) ** 0.5


# In every run test_golden holds each step of the recipe to the published code's own results.
@pytest.mark.release
@pytest.mark.shared
def test_one_seed_is_within_the_published_spread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = benchmark.run(seed=1, iterations=400, out=tmp_path)
    print(benchmark.make_table({1: found}))
    for (dataset, metric), published in benchmark.reference().items():
        expected = pytest.approx(mean(published), abs=MARGIN * stdev(published))
        assert found[dataset][metric] == expected, (dataset, metric)
