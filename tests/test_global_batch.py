"""A step over several processes, or in pieces, is the step of the whole batch."""

import functools
import os
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import preloaded
import pytest
import torch
from project import execute
from test_batch_norm import measured
from test_training import BREADTH, CLASSES, HEIGHT, problem, run_params, silent, small_network
from timm.layers import DropPath
from torch import nn

from cag.runtime.devices import make_fabric
from cag.training.global_batch import Share, pieces, share_batch_norm, share_draws
from cag.training.loop import Checkpoint, train
from cag.training.objectives import Batch, DomainBatch, batch_norms

BATCH = 4  # images of each domain in a step, over all processes
CASES = {
    "supervised": {},
    "adversarial": {"batch_norm": "target"},
    "adaptation": {"class_mix": 0.7},
    "online": {"kept": "teacher"},
}
MAPS = {
    "supervised": [1],
    "adversarial": [1, 0],
    "adaptation": [1, 2],
    "online": [1, 2],
}  # label maps of each domain


def domain(step, maps):
    """A batch of a domain: each image has fewer labelled pixels, the last one none."""
    generator = torch.Generator().manual_seed(step)
    images = torch.rand(BATCH, 3, HEIGHT, BREADTH, generator=generator).double()
    images *= torch.linspace(0.2, 1, BATCH).view(-1, 1, 1, 1)
    labels = torch.randint(0, CLASSES, (BATCH, max(maps, 1), HEIGHT, BREADTH), generator=generator)
    share = torch.tensor([1, 0.5, 0.1, 0]).view(-1, 1, 1, 1)
    kept = torch.rand(labels.shape, generator=generator) < share
    return images, labels.masked_fill(~kept, 255).byte()[:, :maps]


def trained(kind, fabric, folder, network=None, max_batch_per_device=None, **changes):
    """The weights and the curve after three steps on this process's share.

    In float64, so that batch norm over a few pixels does not enlarge how the order of sums rounds.
    """
    network = (network or small_network()).double()
    changes = {"iterations": 3, "batch_size": BATCH, "learning_rate": 0.1} | CASES[kind] | changes
    objective, _, config = problem(kind, network, **changes)
    size = BATCH // fabric.world_size
    own = slice(fabric.global_rank * size, (fabric.global_rank + 1) * size)

    def batches(steps):
        for step in steps:
            domains = [domain(step + 100 * i, maps) for i, maps in enumerate(MAPS[kind])]
            yield Batch(*(DomainBatch(images[own], labels[own]) for images, labels in domains))

    checkpoint = Checkpoint(Path(tempfile.mkdtemp(dir=folder), "none.pt"), "")
    run = run_params(max_batch_per_device=max_batch_per_device)
    curve = train(objective, batches, run, config, 7, fabric, checkpoint, silent())
    kept = {f"kept.{name}": value for name, value in objective.kept.state_dict().items()}
    return network.state_dict() | kept, torch.from_numpy(curve.to_numpy())


@functools.cache
def trained_alone(kind):
    """The weights and the curve of one process."""
    with tempfile.TemporaryDirectory() as folder:
        return trained(kind, make_fabric("32-true"), folder)


def train_in_process(rank, port, folder):
    """Train in one of two processes and save the results in a folder."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    fabric = make_fabric("32-true")
    results = {kind: trained(kind, fabric, folder) for kind in CASES}
    share_batch_norm(network := small_network(), fabric.device)
    results["statistics"] = measured(network, fabric)
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The results of each of two processes."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setup = f"import sys; from pathlib import Path; sys.path[1:1] = {sys.path!r}"
    program = f"{setup}; from test_global_batch import *; train_in_process({{}}, {port}, Path())"
    preloaded.python()  # started once, not by each thread
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(execute, folder, "python", "-c", program.format(i)) for i in range(2)]
        [run.result() for run in runs]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def distance(first, second):
    """The largest difference between two state dicts."""
    return max((first[k].double() - second[k].double()).abs().max().item() for k in first)


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_train_as_one_does(kind, of_two):
    start = small_network().state_dict()
    weights, curve = trained_alone(kind)
    for found, found_curve in (results[kind] for results in of_two):
        assert distance(found, weights) < 1e-5 < 0.01 < distance(start, weights)
        assert torch.allclose(found_curve, curve, rtol=1e-4)


def test_two_processes_take_the_statistics_that_one_does(of_two):
    start = small_network().state_dict()
    expected = measured(small_network(), make_fabric("32-true"))
    for results in of_two:
        found = results["statistics"]
        assert distance(found, expected) < 1e-3 < 0.01 < distance(start, expected)


@pytest.mark.parametrize("kind", CASES)
def test_what_is_not_shared_would_show(kind, tmp_path):
    """Other draws or batch-norm statistics change more than another order of sums."""
    weights, _ = trained_alone(kind)
    other, _ = trained(kind, make_fabric("32-true"), tmp_path, network=small_network(dropout=0.4))
    assert distance(weights, other) > 1e-3
    momentum = small_network()
    for module in batch_norms(momentum):
        module.momentum *= 0.9
    other, _ = trained(kind, make_fabric("32-true"), tmp_path, network=momentum)
    assert distance(weights, other) > 1e-3


def test_batch_norm_of_several_devices_keeps_what_timms_layers_do_after_it():
    network = small_network().eval()
    images = torch.rand(2, 3, HEIGHT, BREADTH)
    before = network(images).logits
    share_batch_norm(network, torch.device("cuda"))
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in network.modules()) > 20
    assert torch.equal(network(images).logits, before)


# Pieces


@pytest.mark.parametrize(
    ("images", "most", "expected"),
    [(4, None, 1), (4, 4, 1), (4, 9, 1), (4, 3, 2), (4, 1, 4), (6, 2, 3), (5, 2, 5), (1, 1, 1)],
)
def test_pieces_are_equal_and_small_enough(images, most, expected):
    assert pieces(images, most) == expected


@pytest.mark.parametrize("kind", ["adversarial", "adaptation", "online"])
def test_pieces_make_the_step_of_the_whole_batch(kind, tmp_path, monkeypatch):
    """Also dropout's draws; with frozen batch norm and equal label counts in each piece."""
    mixed = globals()["domain"]
    labelled = lambda step, maps: tuple(x % 3 for x in mixed(step, maps))  # noqa: E731
    monkeypatch.setitem(globals(), "domain", labelled)
    changes = {"batch_norm": "frozen"}
    if kind == "adaptation":  # pairs of image and predicted class are not as many in each piece
        changes |= {"class_mix": 0.0, "distance_kind": "pixel"}
    results = [
        trained(kind, make_fabric("32-true"), tmp_path, max_batch_per_device=most, **changes)
        for most in (None, 2, 1)
    ]
    for weights, curve in results[1:]:
        assert distance(weights, results[0][0]) < 2e-5
        assert torch.allclose(curve, results[0][1], rtol=1e-4)


# Draws


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5), DropPath(0.5)])
def test_shares_of_dropout_are_the_whole_batchs(layer, format):
    x = (torch.rand(6, 5, 4, 3) + 1).contiguous(memory_format=format)
    layer.train()
    torch.manual_seed(0)
    whole = layer(x)
    share, parts = Share(0, 2, 6), []
    network = nn.Sequential(type(layer)(0.5)).train()
    share_draws(network, share)
    for start in (0, 2, 4):
        share.start = start
        torch.manual_seed(0)
        parts.append(network(x[start : start + 2]))
    assert torch.equal(torch.cat(parts), whole)
    assert (whole == 0).any()


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), DropPath(0.5)])
def test_images_cut_into_windows_have_shares_too(layer):
    """Of a transformer with windows: each image has several rows, one after the other."""
    windows, x = 3, torch.rand(4 * 3, 5, 2) + 1
    torch.manual_seed(0)
    whole = layer.train()(x)
    share, network = Share(2, 2, 4), nn.Sequential(type(layer)(0.5)).train()
    share_draws(network, share)
    torch.manual_seed(0)
    assert torch.equal(network(x[2 * windows :]), whole[2 * windows :])


def test_a_network_trained_in_pieces_takes_any_number_of_images_afterwards(tmp_path):
    network = small_network()
    trained("online", make_fabric("32-true"), tmp_path, network, max_batch_per_device=2)
    images = torch.rand(3, 3, HEIGHT, BREADTH).double()
    together = network.eval()(images).logits
    alone = [network(image[None]).logits for image in images]
    torch.testing.assert_close(together, torch.cat(alone))


def test_shares_of_uniform_numbers_are_the_whole_batchs():
    device = torch.device("cpu")
    torch.manual_seed(0)
    whole = torch.rand(6, 3)
    for start in (0, 3):
        torch.manual_seed(0)
        assert torch.equal(Share(start, 3, 6).uniform(3, 3, device), whole[start : start + 3])
