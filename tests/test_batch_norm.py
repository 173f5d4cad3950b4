"""The target's statistics in batch norm: what is measured, and its share."""

import pytest
import torch
from test_training import small_network
from torch import nn
from torch.optim.swa_utils import update_bn

from cag.batch_norm import plain_batches, spread, take_statistics
from cag.runtime.devices import make_fabric
from cag.training.objectives import batch_norms

SIZES = [(32, 64), (40, 48), (32, 64), (36, 64), (32, 64), (32, 64)]


class Images:
    """Images uint8 [3, H, W] without label maps, as PreparedImages gives them."""

    def __init__(self, sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        draws = torch.Generator().manual_seed(index)
        size = 3, *self.sizes[index]
        return torch.randint(20 * index, 255, size, dtype=torch.uint8, generator=draws), None, ""


def measured(network, fabric, images=None, share=0.3, batch_size=4):
    """The state of a network after `take_statistics`."""
    take_statistics(network, images or Images(SIZES), share, batch_size, fabric)
    return network.state_dict()


@pytest.fixture
def fabric():
    return make_fabric("32-true")


def test_a_share_of_one_gives_what_torch_measures(fabric):
    """Where all images have one size and fill the batches."""
    images = Images([(32, 64)] * 8)
    reference = small_network(dropout=0.0)  # torch leaves dropout on
    pixels = torch.stack([images[i][0] for i in range(8)]) / 255
    update_bn([pixels[::2], pixels[1::2]], reference)
    found = measured(small_network(dropout=0.0), fabric, images, share=1)
    for name, expected in reference.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


def test_a_share_mixes_the_statistics_and_changes_nothing_else(fabric):
    network, before = small_network().train(), small_network().state_dict()
    momenta = [layer.momentum for layer in batch_norms(network)]
    whole = measured(small_network(), fabric, share=1)
    part = measured(network, fabric, share=0.25)
    for name, value in before.items():
        if "running" in name:
            assert not torch.equal(part[name], value)
            torch.testing.assert_close(part[name], 0.75 * value + 0.25 * whole[name])
        elif "num_batches" not in name:
            assert torch.equal(part[name], value)
    assert [layer.momentum for layer in batch_norms(network)] == momenta
    assert not any(module.training for module in network.modules())


def test_without_a_share_or_batch_norm_no_image_is_read(fabric):
    before, unreadable = small_network().state_dict(), object()
    after = small_network()
    take_statistics(after, unreadable, 0.0, 4, fabric)
    assert all(torch.equal(value, before[name]) for name, value in after.state_dict().items())
    take_statistics(nn.Conv2d(3, 2, 1), unreadable, 0.5, 4, fabric)


def test_batches_hold_the_middle_of_each_image(fabric):
    images = Images(SIZES)
    batches = list(plain_batches(images, [[0, 1, 2], [4, 5, 0]], fabric))
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 32, 48), (3, 3, 32, 64)]
    assert torch.equal(batches[0][0], images[0][0][:, :, 8:56])
    assert torch.equal(batches[0][1], images[1][0][:, 4:36])
    assert torch.equal(batches[1][2], images[0][0])


def test_each_batch_is_full_and_from_all_over_the_images():
    assert spread([5, 6, 7, 8, 9, 10], 2) == [[5, 8], [6, 9], [7, 10]]
    assert spread([5, 6, 7], 2) == [[5, 7], [6, 5]]  # the first again
    assert spread([5], 4) == [[5, 5, 5, 5]]


def test_the_statistics_of_a_frozen_part_stay(fabric):
    network, before = small_network(), small_network().state_dict()
    take_statistics(network, Images(SIZES), 0.5, 4, fabric, network.encoder)
    same = {
        name: torch.equal(value, before[name])
        for name, value in network.state_dict().items()
        if "running" in name
    }
    frozen = {name for name in same if ".encoder." in f".{name}"}
    assert frozen and {name for name, equal in same.items() if equal} == frozen != set(same)


def test_progress_counts_the_batches(fabric, capsys):
    measured(small_network(), fabric, Images([(32, 64)] * 7), batch_size=4)
    assert capsys.readouterr().out.startswith("batch norm: 2 batches in ")


def test_a_single_image_is_enough(fabric):
    expected = measured(small_network(), fabric, Images([(32, 64)] * 1), share=1, batch_size=1)
    assert all(torch.isfinite(value).all() for value in expected.values())
