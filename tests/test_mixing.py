"""Class mixing: the pasted regions, and a step that learns from them."""

import pytest
import torch

from cag.mixing import chosen_classes, class_regions, paste

K = 5


def label_maps(count=64):
    """Maps of 1 to 5 classes each, some pixels ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.stack(
        [torch.randint(0, 1 + i % K, (6, 8), generator=generator) for i in range(count)]
    )
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, 255).byte()


def test_half_of_the_classes_that_occur_are_chosen():
    labels = label_maps()
    chosen = chosen_classes(labels, K)
    for row, label in zip(chosen, labels, strict=True):
        seen = set(label.unique().tolist()) - {255}
        picked = set(row.nonzero().flatten().tolist())
        assert picked <= seen
        assert len(picked) == (len(seen) + 1) // 2


def test_every_class_has_its_turn():
    labels = torch.arange(4).repeat(400, 1)[:, None]
    shares = chosen_classes(labels, 4).float().mean(dim=0)
    assert torch.allclose(shares, torch.full((4,), 0.5), atol=0.1)


def test_regions_are_the_chosen_classes_whole():
    labels = label_maps()
    torch.manual_seed(3)
    chosen = chosen_classes(labels, K)
    torch.manual_seed(3)
    regions = class_regions(labels, K, probability=1.0)
    for region, row, label in zip(regions, chosen, labels, strict=True):
        expected = torch.isin(label, row.nonzero().flatten().byte())
        assert torch.equal(region, expected)


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (0.5, 0.3, 0.7), (1, 1, 1)])
def test_regions_are_pasted_with_the_probability(probability, low, high):
    torch.manual_seed(0)
    regions = class_regions(torch.zeros(200, 2, 2, dtype=torch.uint8), K, probability)
    share = regions.flatten(1).any(dim=1).float().mean().item()
    assert low <= share <= high


def test_a_map_without_a_class_pastes_nothing():
    assert not class_regions(torch.full((3, 4, 4), 255, dtype=torch.uint8), K, 1.0).any()


def test_pasting_takes_the_source_in_the_regions_alone():
    regions = torch.tensor([[[True, False]]])
    source, target = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2)
    assert paste(regions, source, target).tolist() == [[[[1.0, 0.0]]] * 3]
    labels = paste(regions, torch.full((1, 1, 1, 2), 3), torch.full((1, 2, 1, 2), 7))
    assert labels.tolist() == [[[[3, 7]], [[3, 7]]]]
