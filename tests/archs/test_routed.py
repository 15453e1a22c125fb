"""Networks whose weights decide what runs: their files load, whatever fresh weights would run."""

import json

import pytest
import torch
from routed_networks import TRAINED_LAYERS, trained

from adabm_basicsr import (
    AdaBMError,
    calibrate,
    finetune,
    load_checkpoint,
    load_network,
    quantize,
    save_checkpoint,
    save_packed,
)
from adabm_basicsr.archs.adabm_arch import AdaBMNetwork
from adabm_basicsr.quantization.checkpoint import DESCRIPTION_KEY

IMAGES = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
KINDS = pytest.mark.parametrize("kind", TRAINED_LAYERS, ids=lambda kind: kind.__name__)


def network(kind, **options):
    return AdaBMNetwork({"type": kind.__name__}, fully_quantized=True, **options)


@pytest.fixture
def weights(tmp_path):
    """Writes a plain checkpoint of a trained network and returns its path."""

    def write(kind):
        path = tmp_path / f"{kind.__name__}.pth"
        torch.save({"params": trained(kind).state_dict()}, path)
        return path

    return write


def quantized(kind, path, **options):
    net = load_checkpoint(network(kind, **options), path)
    return finetune(calibrate(net, [IMAGES]), [IMAGES] * 2, iterations_per_epoch=1)


@KINDS
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_the_paths_of_trained_weights_are_quantized(kind, recipe, weights):
    net = quantized(kind, weights(kind), recipe=recipe)
    assert TRAINED_LAYERS[kind] in net.plan.layers
    with torch.no_grad(), net.full_precision():
        torch.testing.assert_close(
            net(IMAGES), trained_like(net, kind)(IMAGES), rtol=1e-4, atol=1e-4
        )


def trained_like(net, kind):
    """The trained network with the weights that ``net`` came from."""
    base = trained(kind)
    if net.preparation:
        base.load_state_dict(net.base_state())
    else:
        base.load_state_dict({key: net.network.state_dict()[key] for key in base.state_dict()})
    return base


@KINDS
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_files_load_with_the_same_pixels(kind, recipe, weights, tmp_path):
    net = quantized(kind, weights(kind), recipe=recipe)
    save_checkpoint(net, tmp_path / "net.pth")
    save_packed(net, tmp_path / "net.safetensors")
    again = [
        load_network(tmp_path / "net.pth"),
        load_network(tmp_path / "net.safetensors"),
        load_checkpoint(network(kind, recipe=recipe), tmp_path / "net.pth"),
    ]
    for loaded in again:
        assert loaded.plan == net.plan
        assert loaded.description == net.description
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), net(IMAGES))


@KINDS
def test_without_options_too(kind, tmp_path):
    net = calibrate(quantize(trained(kind), IMAGES[:1]), [IMAGES])
    save_checkpoint(net, tmp_path / "net.pth")
    again = load_checkpoint(quantize(kind(), IMAGES[:1]), tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(again(IMAGES), net(IMAGES))
    with pytest.raises(AdaBMError, match="doesn't say how its network is built"):
        load_network(tmp_path / "net.pth")


@KINDS
def test_training_testing_and_resuming(kind, weights, workspace):
    network_g = {"type": "AdaBMNetwork", "network": {"type": kind.__name__}, "recipe": "paper"}
    changes = {"network_g": network_g, "path__pretrain_network_g": str(weights(kind))}
    workspace.train(train__total_iter=6, **changes)
    net = load_network("experiments/tiny/models/net_g_latest.pth")
    assert TRAINED_LAYERS[kind].split(".")[0] in "".join(net.plan.layers)
    workspace.test(network_g=network_g)
    first = json.loads((workspace.root / "results/tiny_test/metrics.json").read_text())
    workspace.test(network_g=...)
    assert json.loads((workspace.root / "results/tiny_test/metrics.json").read_text()) == first
    workspace.train("--auto_resume", train__total_iter=12, **changes)
    latest = load_network("experiments/tiny/models/net_g_latest.pth")
    assert latest.plan == net.plan


def test_options_that_a_checkpoint_was_not_made_with(weights, tmp_path):
    kind = next(iter(TRAINED_LAYERS))
    net = quantized(kind, weights(kind), exclude=["first"])
    save_checkpoint(net, tmp_path / "net.pth")
    other = network(kind, exclude=["first"], w_bits=5)
    before = other.description
    with pytest.raises(AdaBMError, match="w_bits 4, a_bits 4, adaptive; the options say w_bits 5"):
        load_checkpoint(other, tmp_path / "net.pth")
    assert other.description == before
    with pytest.raises(AdaBMError, match="it quantizes last, which the options leave in full"):
        load_checkpoint(network(kind, exclude=["last"]), tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match="it has 5 quantized layers, the options give 6"):
        load_checkpoint(network(kind), tmp_path / "net.pth")
    with pytest.raises(AdaBMError, match=r"'experts\.0' matches no block of the checkpoint"):
        load_checkpoint(
            network(kind, exclude=["first"], blocks=["experts.0"]), tmp_path / "net.pth"
        )


def without_blueprint(path):
    """Change a checkpoint to one that an earlier version wrote."""
    content = torch.load(path, weights_only=True)
    description = json.loads(content[DESCRIPTION_KEY])
    del description["blueprint"]
    torch.save({**content, DESCRIPTION_KEY: json.dumps(description)}, path)


def test_files_of_earlier_versions_are_run(weights, tmp_path):
    kind = next(iter(TRAINED_LAYERS))
    net = calibrate(network(kind), [IMAGES])
    save_checkpoint(net, tmp_path / "net.pth")
    without_blueprint(tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path / "net.pth")(IMAGES), net(IMAGES))
