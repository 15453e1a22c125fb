"""The published recipe on the method's main network lands where the published implementation does."""

from statistics import mean, stdev

import paper_on_edsr as benchmark
import pytest


@pytest.mark.slow
@pytest.mark.shared
def test_one_seed_is_within_the_published_spread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = benchmark.run(seed=2, iterations=400, out=tmp_path)
    print(benchmark.make_table({2: found}))
    for (dataset, metric), published in benchmark.reference().items():
        assert found[dataset][metric] == pytest.approx(mean(published), abs=3 * stdev(published)), (dataset, metric)
