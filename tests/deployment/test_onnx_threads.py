"""One exported network that several threads call gives each of them its own picture."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from agreement import images

from adabm_basicsr import OnnxNetwork
from adabm_basicsr.deployment.runtimes import RUNTIMES

THREADS = 4
CALLS = 2500  # of each thread


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_get_their_own_pictures(exported, runtime):
    network = OnnxNetwork(exported, runtime, threads=1)
    pictures = [image[..., :8, :8].contiguous() for image in images(3)]
    expected = [network(picture) for picture in pictures]

    def call_often(first):
        wrong = 0
        for call in range(CALLS):
            index = (first + call) % len(pictures)
            wrong += not torch.equal(network(pictures[index]), expected[index])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(call_often, range(THREADS))) == [0] * THREADS
