"""Threads take turns in a network, whose layers hold what belongs to a single pass."""

import copy
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch

from adabm_basicsr import calibrate, quantize

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def calibrated(network):
    bits = {"w_bits": 4, "a_bits": 4, "ingredients": {"image_bits": [-1, 1]}}
    return calibrate(quantize(network, IMAGES[:1], **bits), [IMAGES])


def test_threads_take_turns_in_a_network(tiny):
    net = calibrated(tiny)
    images = [IMAGES[:1] * 0.01, IMAGES[1:2]]
    with torch.no_grad():
        expected = [net(image) for image in images]
    assert net.bits_for(images[0]) < net.bits_for(images[1])

    def run(index):
        with torch.no_grad():
            return all(torch.equal(net(images[index]), expected[index]) for _ in range(100))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, range(2)))


def test_calibration_is_not_disturbed_by_other_threads(tiny):
    net, expected, stop = calibrated(tiny), calibrated(tiny), Event()

    def run():
        with torch.no_grad():
            while not stop.is_set():
                net(IMAGES[:1] * 0.3)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        calibrate(net, [IMAGES])
        stop.set()
        running.result()
    with torch.no_grad():
        assert torch.equal(net(IMAGES), expected(IMAGES))


def test_copies_and_replicas_have_a_lock_of_their_own(tiny):
    net = calibrated(tiny)
    for again in (copy.deepcopy(net), net._replicate_for_data_parallel()):
        assert again.lock is not net.lock
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(net)(IMAGES), net(IMAGES))
