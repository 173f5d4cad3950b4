"""Full precision holds only where it is requested."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cag.anchors import class_sums
from cag.losses import distance_loss
from cag.pseudo_labels import anchor_distances
from cag.runtime.precision import full_precision, to_half

K, D = 19, 64


@pytest.fixture(params=["medium", "high", "highest"])
def setting(request):
    """A precision setting that a training might have chosen."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_inside_is_full_precision_and_afterwards_what_was_set(setting):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == setting
        assert torch.is_autocast_enabled("cpu")


def test_an_error_leaves_what_was_set(setting):
    with pytest.raises(ZeroDivisionError), full_precision("cpu"):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == setting


class Products(TorchDispatchMode):
    """Records the precision of each matrix product."""

    NAMES = ("mm", "addmm", "bmm", "baddbmm", "baddbmm_")

    def __init__(self):
        super().__init__()
        self.precisions = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in self.NAMES:
            self.precisions.append(torch.get_float32_matmul_precision())
        return function(*args, **(kwargs or {}))


def distances():
    return anchor_distances(*features_and_anchors())


def sums():
    features, _ = features_and_anchors()
    values, counts = class_sums(features.requires_grad_(), labels(), K)
    values.square().sum().backward()
    return values, counts, features.grad


def class_mean_distances():
    features, anchors = features_and_anchors()
    logits = torch.nn.functional.one_hot(labels(), K).movedim(-1, 1).float()
    loss = distance_loss(features.requires_grad_(), logits, labels(), anchors)
    loss.backward()
    return loss, features.grad


def features_and_anchors():
    random = torch.Generator().manual_seed(0)
    anchors = torch.randn(K, D, generator=random)
    noise = torch.randn(2, D, 40, 50, generator=random)
    return anchors[labels()].movedim(-1, 1) + noise, anchors


def labels():
    return torch.randint(0, K, (2, 40, 50), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kernel", [distances, sums, class_mean_distances])
def test_distances_and_class_sums_ignore_what_is_set(kernel, setting):
    torch.set_float32_matmul_precision("highest")
    expected = kernel()
    torch.set_float32_matmul_precision(setting)
    with Products() as products:
        found = kernel()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert products.precisions and set(products.precisions) == {"highest"}
    assert torch.get_float32_matmul_precision() == setting


def test_a_value_beyond_float16_becomes_the_largest_one():
    stored = to_half(torch.tensor([1e6, -1e6, 0.1]))
    assert stored.dtype == torch.float16 and stored.tolist() == [65504, -65504, 0.0999755859375]
