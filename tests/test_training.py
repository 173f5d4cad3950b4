"""Training learns, resumes bit for bit, keeps the right statistics, reports its losses."""

import copy
import errno
import functools
import warnings
from contextlib import ExitStack
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from disk import full_disk, refused
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from project import TRAINING

import cag.training.loop
from cag.adaptation import AdaptationObjective, student_objective
from cag.adversarial import AdversarialObjective
from cag.anchors import resize_labels
from cag.config.adaptation import Adapt
from cag.config.anchors import Anchors
from cag.config.networks import Network, Normalization
from cag.config.pseudo_labels import PseudoLabel
from cag.config.training import MOST_STEPS, Photometric, Pretrain, Run
from cag.config.warmup import Warmup
from cag.datasets.labels import IGNORE
from cag.mixing import class_regions
from cag.networks import build, upsampled
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.progress import Progress
from cag.teacher import FollowingAnchors, anchor_probabilities
from cag.training.loop import Checkpoint, polynomial_decay, rate_factor, train
from cag.training.objectives import (
    Batch,
    DomainBatch,
    SupervisedObjective,
    batch_norms,
    make_optimizer,
)

CLASSES, WIDTH, HEIGHT, BREADTH = 3, 16, 32, 64
ANCHORS = Anchors(average="images", min_pixels=1, min_recall=0.0)
ADAPT = {
    "class_mix": 0.0,
    "target_labels": "both",
    "distance_weight": 0.7,
    "distance_kind": "class_mean",
    "batch_norm": "mixed",
}
ONLINE = {
    "teacher": "ema",
    "teacher_momentum": 0.5,
    "teacher_probability": 0.3,
    "class_mix": 0.7,
    "blur": 0.5,
    "anchor_momentum": 0.5,
    "anchor_temperature": 2.0,
    "active_only": True,
    "second_opinion": True,
    "share_alignment": 0.5,
}
RULES = PseudoLabel(relative_margin=0.01, probability=0.3)
WARMUP = {
    "weights": None,
    "objective": "vanilla",
    "adversarial_weight": 1.0,  # so that the discriminator's state shows in the network
    "discriminator_learning_rate": 1e-3,
    "batch_norm": "mixed",
}


@pytest.fixture
def fabric():
    with warnings.catch_warnings():
        return make_fabric("32-true")


def small_network(seed=0, dropout=0.5):
    """A network with dropout from a seed."""
    torch.manual_seed(seed)
    options = {"decoder_channels": WIDTH, "decoder_aspp_dropout": dropout}
    config = Network(
        architecture="DeepLabV3Plus",
        encoder="tu-test_efficientnet",  # of few layers, which take most of the time
        encoder_weights=None,
        options=options,
        normalization=Normalization(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    return build(config, CLASSES)


def domain(step, maps=1, shift=0.0):
    """Images of three bright bands, one for each class, and their label maps: a step's batch."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, CLASSES, (2, 1, 4, 1), generator=generator)
    labels = labels.repeat_interleave(8, 2).repeat_interleave(64, 3)  # (B, 1, H, W)
    images = torch.rand(2, 3, HEIGHT, BREADTH, generator=generator) * 0.2 + shift
    images.scatter_add_(1, labels, torch.full_like(labels, 1, dtype=torch.float32) * 0.6)
    return DomainBatch(images, labels.byte().repeat(1, maps, 1, 1))


def source_batches(steps):
    """Batches of the supervised objective."""
    return (Batch(domain(step)) for step in steps)


def both_batches(steps):
    """Batches of the adaptation objective."""
    return (Batch(domain(step), domain(step + 1000, maps=2, shift=0.2)) for step in steps)


def unlabelled_batches(steps):
    """Batches of the adversarial objective."""
    return (Batch(domain(step), domain(step + 1000, maps=0, shift=0.2)) for step in steps)


def problem(kind, network, **changes):
    """An objective on a network, its batches and its configuration."""
    if kind == "supervised":
        return SupervisedObjective(network), source_batches, Pretrain(**TRAINING | changes)
    if kind == "adversarial":
        config = Warmup(**TRAINING | WARMUP | changes)
        return AdversarialObjective(network, config), unlabelled_batches, config
    config = Adapt(**TRAINING | ADAPT | (ONLINE if kind == "online" else {}) | changes)
    anchors = torch.rand(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    objective = student_objective(network, anchors, config, None, ANCHORS, RULES)
    return objective, both_batches, config


def mean_weight(objective, batch):
    """The mean weight of the target pixels in a step."""
    losses = dict(zip(objective.names, objective(batch).tolist(), strict=True))
    return pytest.approx(losses["target_weight"])


def all_counted(**changes):
    """An online teacher's objective that counts all pixels but for the changes; a target batch."""
    plain = {"teacher_probability": 0.0, "target_weight": "threshold", "class_mix": 0.0}
    plain |= {"active_only": False, "second_opinion": False, "anchor_temperature": None}
    plain |= {"share_alignment": 0.0}
    objective, batches, _ = problem("online", small_network(), **plain | changes)
    batch = next(batches([0]))
    output = objective.train().teacher(batch.target.images)
    labels = upsampled(output.logits, (HEIGHT, BREADTH)).argmax(dim=1)
    return objective, batch, output, labels


def test_a_second_opinion_counts_pixels_without_a_cached_label_or_with_the_same():
    objective, batch, _, labels = all_counted(second_opinion=True)
    cached = labels.byte()[:, None].repeat(1, 2, 1, 1)
    cached[:, 0, :8] = IGNORE
    cached[:, 0, 8:16] = (cached[:, 0, 8:16] + 1) % CLASSES
    batch = batch._replace(target=DomainBatch(batch.target.images, cached))
    assert mean_weight(objective, batch) == 1 - 8 / HEIGHT


def test_active_pixels_alone_are_those_of_the_anchor_rule():
    objective, batch, output, labels = all_counted(active_only=True)
    objective.rules = PseudoLabel(relative_margin=0.0, probability=0.3)
    points = output.features.permute(0, 2, 3, 1)
    objective.anchors.values.copy_(points[0, 0, [0, 3, 6]])
    distances = (points[..., None, :] - objective.anchors.values).norm(dim=-1)
    nearest = distances.argmin(dim=-1).byte()
    nearest = resize_labels(nearest, (HEIGHT, BREADTH), align_corners=True)
    expected = (nearest == labels).float().mean().item()
    assert 0 < expected < 1
    assert expected == mean_weight(objective, batch)


def weights_of(logits):
    """The mean of the pixels' weights of kind "pixel", by the logits or probabilities."""
    return pytest.approx(logits.max(dim=1).values.mean().item(), rel=1e-5)


def test_the_distances_to_the_anchors_weigh_the_teachers_probabilities():
    changes = {"anchor_temperature": 0.5, "target_weight": "pixel"}
    objective, batch, output, _ = all_counted(**changes)
    near = anchor_probabilities(output.features, objective.anchors.values, 0.5)
    size = HEIGHT, BREADTH
    products = upsampled(output.logits, size).softmax(dim=1) * upsampled(near, size)
    expected = products / products.sum(dim=1, keepdim=True)
    assert mean_weight(objective, batch) == weights_of(expected)
    assert mean_weight(objective, batch) != weights_of(upsampled(output.logits, size).softmax(1))


def test_shares_of_both_domains_have_the_anchors_weights():
    """So the same images have the same shares, and the alignment changes nothing."""
    changes = {"anchor_temperature": 0.5, "share_alignment": 1.0, "target_weight": "pixel"}
    objective, batch, _, _ = all_counted(**changes)
    batch = batch._replace(target=DomainBatch(batch.source.images, batch.target.labels))
    first = mean_weight(objective, batch)
    objective.shares.update()  # the teacher stays
    source, target = objective.shares.totals / objective.shares.totals.sum(dim=1, keepdim=True)
    torch.testing.assert_close(source, target, atol=5e-3, rtol=0)
    assert mean_weight(objective, batch) == pytest.approx(first.expected, rel=1e-2)


def test_the_teachers_shares_are_aligned_from_the_second_step_on():
    changes = {"share_alignment": 1.0, "target_weight": "pixel"}
    objective, batch, output, _ = all_counted(**changes)
    dark = DomainBatch(batch.target.images * 0.1, batch.target.labels)
    batch, size = batch._replace(target=dark), (HEIGHT, BREADTH)
    output = objective.teacher(dark.images)
    plain = upsampled(output.logits, size).softmax(dim=1)
    assert mean_weight(objective, batch) == weights_of(plain)
    objective.after_step()
    sums = objective.shares.totals
    assert sums.sum(dim=1)[1] == pytest.approx(2 * HEIGHT * BREADTH)
    shares = sums / sums.sum(dim=1, keepdim=True)
    plain = upsampled(objective.teacher(batch.target.images).logits, size).softmax(dim=1)
    expected = plain * (shares[0] / shares[1])[:, None, None]
    expected = expected / expected.sum(dim=1, keepdim=True)
    assert mean_weight(objective, batch) == weights_of(expected)
    assert (expected - plain).abs().max() > 1e-3


def test_no_pixel_counts_where_a_crop_is_larger_than_its_image():
    objective, batch, _, _ = all_counted(share_alignment=0.5)
    images = batch.target.images.clone()
    images[0, :, :, 40:] = images[1, :, :8] = 0
    seen = torch.ones(2, HEIGHT, BREADTH, dtype=torch.bool)
    seen[0, :, 40:] = seen[1, :8] = False
    labels, weights = objective._labels(images, batch.target.labels)
    assert torch.equal(weights, seen.float()) and torch.equal(labels == IGNORE, ~seen)
    batch = batch._replace(target=batch.target._replace(images=images))
    assert mean_weight(objective, batch) == 1
    objective.after_step()
    assert objective.shares.totals[1].sum() == pytest.approx(2 * seen.sum().item())


def test_pasted_pixels_weigh_one():
    """The target's own pixels weigh nothing here, because no probability exceeds 1."""
    changes = {"class_mix": 1.0, "teacher_probability": 1.0, "blur": 0.0}
    objective, batch, _, _ = all_counted(**changes)
    objective.eval()
    labels = batch.source.labels[:, 0]
    torch.manual_seed(1)
    losses = dict(zip(objective.names, objective(batch).tolist(), strict=True))
    torch.manual_seed(1)
    regions = class_regions(labels, CLASSES, 1.0)
    assert 0 < regions.float().mean() < 1
    mixed = torch.where(regions[:, None], batch.source.images, batch.target.images)
    logits = upsampled(objective.network(mixed).logits, labels.shape[1:])
    by_pixel = F.cross_entropy(logits, labels.long(), reduction="none")
    expected = (by_pixel * regions).mean().item()
    assert losses["target_ce"] == pytest.approx(expected, rel=1e-5)


def test_the_teacher_sees_the_images_own_colours_and_the_student_changed_ones():
    change = {"photometric": Photometric(brightness=0.5)}
    augmentation = TRAINING["augmentation"].model_copy(update=change)
    changes = {"augmentation": augmentation, "class_mix": 0.0, "blur": 0.0}
    objective, batches, _ = problem("online", small_network(), **changes)
    seen = {"teacher": [], "network": []}
    for name, inputs in seen.items():
        module = getattr(objective, name)
        module.register_forward_pre_hook(lambda _, given, inputs=inputs: inputs.append(given[0]))
    batch = next(batches([0]))
    objective(batch)
    for number, images in enumerate((batch.source.images, batch.target.images)):
        assert torch.equal(seen["teacher"][number], images)
        factors = seen["network"][number] / images
        mean = factors.mean(dim=(1, 2, 3))
        assert ((mean - 1).abs() > 1e-3).all()


def test_anchors_follow_the_teachers_class_means_of_the_source():
    objective, batch, _, _ = all_counted(anchor_momentum=0.25)
    before = objective.anchors.values.clone()
    output = objective.teacher(batch.source.images)
    labels = resize_labels(batch.source.labels[:, 0], output.logits.shape[2:])
    alone = FollowingAnchors(before, 0.25, ANCHORS)
    alone.collect(*output, labels)
    alone.update()
    objective(batch)
    objective.after_step()
    torch.testing.assert_close(objective.anchors.values, alone.values)
    assert not torch.equal(alone.values, before)


def test_anchors_that_nobody_reads_do_not_follow():
    unread = {"distance_weight": 0.0, "anchor_temperature": None, "active_only": False}
    objective, batches, _ = problem("online", small_network(), **unread)
    before = objective.anchors.values.clone()
    objective.train()(next(batches([0])))
    objective.after_step()
    assert torch.equal(objective.anchors.values, before)


def run_params(**changes):
    """What every training takes beside its own section."""
    plain = {"seed": 0, "precision": "32-true", "max_batch_per_device": None, "compile": False}
    return Run(**plain | changes)


def silent():
    """A progress without output."""
    return Progress(lambda count, note: None)


def run(
    kind, network, fabric, path, identity="a", batches=None, advance=None, compiled=False, **changes
):
    """Train a network on a problem; return its curve."""
    objective, make_batches, config = problem(kind, network, **changes)
    make_batches = (batches or (lambda original: original))(make_batches)
    checkpoint = Checkpoint(path, identity)
    advance = advance or silent()
    return train(
        objective,
        make_batches,
        run_params(compile=compiled),
        config,
        7,
        fabric,
        checkpoint,
        advance,
    )


def interrupted(at):
    """Batches that raise an interruption when a step's batch is requested."""

    def wrap(make_batches):
        def cut(steps):
            for step, batch in zip(steps, make_batches(steps), strict=True):
                if step == at:
                    raise KeyboardInterrupt
                yield batch

        return cut

    return wrap


def same(first, second):
    """Whether two networks are equal in every bit."""
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every second step."""
    monkeypatch.setattr(cag.training.loop, "READ_EVERY", 2)
    monkeypatch.setenv("CAG_CHECKPOINT_SECONDS", "0")


# Learning


def always_the_first(make_batches):
    """Batches that are all that of the first step."""
    return lambda steps: (batch for _ in steps for batch in make_batches([0]))


@pytest.mark.parametrize(
    ("kind", "share"), [("supervised", 0.5), ("adaptation", 0.75), ("online", 0.75)]
)
def test_a_few_steps_reduce_the_loss(tmp_path, fabric, kind, share):
    network = small_network(dropout=0.0)
    changes = {"iterations": 40, "batches": always_the_first}
    loss = run(kind, network, fabric, tmp_path / "c.pt", **changes)["loss"].to_numpy()
    assert loss[-5:].mean() < share * loss[:5].mean()
    images, labels = domain(0)
    with torch.no_grad():
        found = network.train()(images).logits.argmax(1)  # running statistics lag behind
    assert (found == labels[:, 0, ::4, ::4]).float().mean() > 0.75


def test_the_losses_are_named_in_the_curve(tmp_path, fabric):
    curve = run("adaptation", small_network(), fabric, tmp_path / "c.pt", iterations=3)
    assert list(curve) == ["iteration", "learning_rate", *AdaptationObjective.names]
    total = curve["source_ce"] + curve["target_ce"]
    total += 0.7 * (curve["source_distance"] + curve["target_distance"])
    np.testing.assert_allclose(curve["loss"], total, rtol=1e-5)


def test_the_sum_of_the_domains_is_minimised():
    network = small_network(dropout=0.0).eval()
    objective = SupervisedObjective(network, domains=("source", "target"))
    losses = objective(Batch(domain(0), domain(1)))
    assert objective.names == ("loss", "source_ce", "target_ce")
    alone = [SupervisedObjective(network)(Batch(domain(step))).tolist()[1] for step in (0, 1)]
    assert losses.tolist() == pytest.approx([sum(alone), *alone])


def test_unlabelled_pixels_do_not_count():
    network = small_network(dropout=0.0).eval()
    images, labels = domain(0)
    holes = labels.clone()
    holes[0] = IGNORE
    alone = SupervisedObjective(network)(Batch(DomainBatch(images[1:], labels[1:])))
    assert torch.allclose(SupervisedObjective(network)(Batch(DomainBatch(images, holes))), alone)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, fabric):
    with pytest.raises(UserError, match="the loss is not finite around iteration 5: lower the"):
        run(
            "supervised",
            small_network(),
            fabric,
            tmp_path / "c.pt",
            learning_rate=1000.0,
            weight_decay=1000.0,
        )
    assert not (tmp_path / "c.pt").exists()


# Resuming


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["supervised", "adversarial", "adaptation", "online"])
def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path, fabric, often, kind, optimizer):
    whole = small_network()
    curve = run(kind, whole, fabric, tmp_path / "whole.pt", optimizer=optimizer)
    path = tmp_path / "cut.pt"
    with pytest.raises(KeyboardInterrupt):
        run(kind, small_network(), fabric, path, batches=interrupted(3), optimizer=optimizer)
    resumed, calls = small_network(seed=99), []  # also leaves the random numbers elsewhere
    advance = Progress(lambda count, note: calls.append(count))
    again = run(
        kind,
        resumed,
        fabric,
        path,
        optimizer=optimizer,
        advance=advance,
    )
    assert calls == [2, 2, 1] and advance.done == 3
    assert same(whole, resumed)
    assert curve.equals(again)


def test_the_scale_of_half_precision_is_resumed_too(tmp_path, often):
    """It grows and falls with the losses, and decides which steps are left out."""

    def scaled(start):
        scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=2)
        fabric = Fabric(accelerator="cpu", plugins=MixedPrecision("16-mixed", "cpu", scaler))
        return fabric, scaler

    path, scales = tmp_path / "cut.pt", []
    (whole, scaler), (cut, _), (resumed, last) = scaled(2.0), scaled(2.0), scaled(2.0**9)
    run("supervised", small_network(), whole, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run("supervised", small_network(), cut, path, batches=interrupted(3))
    run("supervised", small_network(), resumed, path)
    scales = [scaler.state_dict(), last.state_dict()]
    assert scales[0] == scales[1] and scales[0]["scale"] > 2.0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_kept_teacher_is_resumed_too(tmp_path, often, precision):
    """In mixed precision, the weights, the teacher and the anchors are float32 all the same."""
    with warnings.catch_warnings():
        fabric = make_fabric(precision)
    kept, curves = [], []
    for path, cut in (("whole.pt", None), ("cut.pt", 3), ("cut.pt", None)):
        objective, batches, config = problem("online", small_network(), kept="teacher")
        batches = batches if cut is None else interrupted(cut)(batches)
        inputs = 7, fabric, Checkpoint(tmp_path / path, "a"), silent()
        with ExitStack() as stack:
            if cut is not None:
                stack.enter_context(pytest.raises(KeyboardInterrupt))
            curves.append(train(objective, batches, run_params(), config, *inputs))
            kept.append(objective.kept)
    assert kept[0] is not None and same(*kept) and curves[0].equals(curves[1])
    assert not same(kept[0], small_network())
    floats = [t for t in objective.state_dict().values() if t.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


def test_an_online_step_in_mixed_precision_is_nearly_that_in_full(fabric):
    with warnings.catch_warnings():
        mixed = make_fabric("bf16-mixed")
    losses = []
    for one in (fabric, mixed):
        objective, batches, _ = problem("online", small_network(dropout=0.0), blur=0.0)
        torch.manual_seed(0)
        with one.autocast():
            losses.append(objective.train()(next(batches([0]))))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.2, atol=0.02)
    assert not torch.equal(*losses)


@pytest.mark.parametrize("kind", ["adversarial", "online"])
def test_rates_by_layer_and_a_frozen_encoder_are_resumed_too(tmp_path, fabric, often, kind):
    changes = {"learning_rate_decoder": 0.05, "learning_rate_warmup": 4, "freeze_encoder": True}
    whole, path = small_network(), tmp_path / "cut.pt"
    curve = run(kind, whole, fabric, tmp_path / "whole.pt", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(kind, small_network(), fabric, path, batches=interrupted(3), **changes)
    resumed = small_network(seed=99)
    again = run(kind, resumed, fabric, path, **changes)
    assert same(whole, resumed) and curve.equals(again)


def test_an_online_teacher_follows_after_each_step(tmp_path, fabric):
    networks = {}
    for kept in ("student", "teacher"):
        objective, batches, config = problem("online", small_network(), iterations=1, kept=kept)
        start = objective.teacher.classifier.weight.clone()
        checkpoint = Checkpoint(tmp_path / f"{kept}.pt", "a")
        train(objective, batches, run_params(), config, 7, fabric, checkpoint, silent())
        networks[kept] = objective.kept.classifier.weight
    student, teacher = networks["student"], networks["teacher"]
    assert not torch.equal(student, start)
    torch.testing.assert_close(teacher, 0.5 * start + 0.5 * student)


def test_dropout_is_active_and_the_seeds_alone(tmp_path, fabric):
    networks = []
    for number, (dropout, state) in enumerate([(0.5, 1), (0.5, 2), (0.0, 1)]):
        network = small_network(dropout=dropout)
        torch.manual_seed(state)
        run("supervised", network, fabric, tmp_path / f"{number}.pt", iterations=2)
        networks.append(network)
    assert same(networks[0], networks[1])
    assert not same(networks[0], networks[2])


def test_nothing_is_allocated_for_steps_to_come(tmp_path, fabric, often):
    changes = {"batches": interrupted(3), "iterations": MOST_STEPS}
    with pytest.raises(KeyboardInterrupt):
        run("supervised", small_network(), fabric, tmp_path / "c.pt", **changes)
    assert len(Checkpoint(tmp_path / "c.pt", "a").load()["history"]) == 2


def test_a_training_cut_off_after_its_last_step_is_complete(tmp_path, fabric, often):
    network, resumed = small_network(), small_network(seed=99)
    curve = run("supervised", network, fabric, tmp_path / "c.pt")
    no_more = lambda original: lambda steps: iter(() if not steps else [1 / 0])  # noqa: E731
    again = run("supervised", resumed, fabric, tmp_path / "c.pt", batches=no_more)
    assert same(network, resumed) and curve.equals(again)


def turn_a_bit(path):
    """Change one bit of the weights in a checkpoint."""
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        weights = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    content[content.find(weights)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["other", "truncated", "a bit", "text", "none"])
def test_what_cannot_be_resumed_starts_afresh(tmp_path, fabric, often, damage):
    path, fresh, network = tmp_path / "c.pt", small_network(), small_network()
    run("supervised", fresh, fabric, tmp_path / "fresh.pt")
    with pytest.raises(KeyboardInterrupt):
        run("supervised", small_network(seed=1), fabric, path, batches=interrupted(3))
    assert Checkpoint(path, "a").load()["iteration"] == 2
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "a bit":
        turn_a_bit(path)
    elif damage == "text":
        path.write_text("no checkpoint")
    elif damage == "none":
        path.unlink()
    identity = "b" if damage == "other" else "a"
    assert Checkpoint(path, identity).load() is None
    run("supervised", network, fabric, path, identity)
    assert same(fresh, network)


@pytest.mark.parametrize("how", ["EMFILE", "EIO", "memory"])
def test_a_checkpoint_that_the_system_refuses_is_not_lost(tmp_path, monkeypatch, how):
    checkpoint = Checkpoint(tmp_path / "c.pt", "a")
    checkpoint.save({"iteration": 3})
    if how == "memory":
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"c\.pt: .*memory"):
            patch.setattr(torch, "load", lambda *_, **__: torch.empty(2**60, dtype=torch.uint8))
            checkpoint.load()
    else:
        with refused(checkpoint.path, how) as said, pytest.raises(UserError) as caught:
            checkpoint.load()
        assert str(caught.value).startswith(f"{checkpoint.path}: {said}; ")
    assert checkpoint.load()["iteration"] == 3


def test_a_checkpoint_appears_whole(tmp_path):
    checkpoint = Checkpoint(tmp_path / "new" / "c.pt", "a")
    assert checkpoint.load() is None
    checkpoint.save({"iteration": 3})
    assert checkpoint.load()["iteration"] == 3
    with pytest.raises(AttributeError):
        checkpoint.save({"iteration": lambda: None})  # cannot be written
    assert checkpoint.load()["iteration"] == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.pt"]


def test_a_training_goes_on_from_its_last_checkpoint_after_a_full_disk(tmp_path, fabric, often):
    path, whole, resumed = tmp_path / "c.pt", small_network(), small_network()
    run("supervised", whole, fabric, tmp_path / "whole.pt")

    def full_before(step):
        def wrap(make_batches):
            def batches(steps):
                for batch_step, batch in zip(steps, make_batches(steps), strict=True):
                    if batch_step == step:
                        stack.enter_context(full_disk(1000))
                    yield batch

            return batches

        return wrap

    with pytest.raises(OSError) as caught, ExitStack() as stack:
        run("supervised", small_network(), fabric, path, batches=full_before(2))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert Checkpoint(path, "a").load()["iteration"] == 2
    run("supervised", resumed, fabric, path)
    assert same(whole, resumed)


def test_a_checkpoint_that_would_run_code_is_not_opened(tmp_path):
    torch.save({"fingerprint": "a", "code": Checkpoint(tmp_path, "a")}, tmp_path / "c.pt")
    assert Checkpoint(tmp_path / "c.pt", "a").load() is None


def test_no_checkpoint_is_written_before_its_time(tmp_path, fabric, monkeypatch):
    monkeypatch.setattr(cag.training.loop, "READ_EVERY", 1)
    monkeypatch.setenv("CAG_CHECKPOINT_SECONDS", "3600")
    path = tmp_path / "c.pt"
    with pytest.raises(KeyboardInterrupt):
        run("supervised", small_network(), fabric, path, batches=interrupted(2), iterations=3)
    assert not path.exists()
    run("supervised", small_network(), fabric, path, iterations=3)
    assert Checkpoint(path, "a").load()["iteration"] == 3  # what follows may fail


# Batch norm


def statistics(network):
    """Running means and variances of all batch norms."""
    return [torch.cat([m.running_mean, m.running_var]).clone() for m in batch_norms(network)]


def close(first, second):
    """Whether the statistics agree."""
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", ["adversarial", "adaptation", "online"])
@pytest.mark.parametrize(
    ("batch_norm", "kept"),
    [("mixed", ("source", "target")), ("target", ("target",)), ("frozen", ())],
)
def test_the_kept_statistics_are_those_of_the_named_domains(kind, batch_norm, kept):
    network = small_network(dropout=0.0)
    reference = copy.deepcopy(network).train()
    momenta = [module.momentum for module in batch_norms(network)]
    (batch,) = both_batches([0])
    with torch.no_grad():
        for name in kept:
            reference(batch[("source", "target").index(name)][0])
        plain = {"class_mix": 0.0, "blur": 0.0} if kind == "online" else {}
        objective, make_batches, _ = problem(kind, network, batch_norm=batch_norm, **plain)
        objective.train()(*make_batches([0]))
    assert len(momenta) > 20
    assert close(statistics(network), statistics(reference))
    assert [module.momentum for module in batch_norms(network)] == momenta


def test_class_mixing_pastes_the_source_with_its_labels():
    network = small_network(dropout=0.0).eval()
    objective, batches, _ = problem("adaptation", network, class_mix=1.0)
    objective.eval()
    (source, labels), (target, pseudo) = next(batches(range(1)))
    seen = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(1)
    mixed = objective(Batch(DomainBatch(source, labels), DomainBatch(target, pseudo)))
    torch.manual_seed(1)
    regions = class_regions(labels[:, 0], CLASSES, 1.0)
    assert 0 < regions.float().mean() < 1
    expected = torch.where(regions[:, None], source, target)
    assert torch.equal(seen[1], expected)
    by_hand, _, _ = problem("adaptation", network)
    by_hand.eval()
    pasted_labels = torch.where(regions[:, None], labels, pseudo)
    pasted = Batch(DomainBatch(source, labels), DomainBatch(expected, pasted_labels))
    assert torch.allclose(mixed, by_hand(pasted))


def test_frozen_batch_norm_normalises_with_the_kept_statistics():
    network = small_network(dropout=0.0)
    (batch,) = both_batches([0])
    frozen, _, _ = problem("adaptation", network, batch_norm="frozen")
    with torch.no_grad():
        trained = frozen.train()(batch)
        assert not any(module.training for module in batch_norms(network))
        assert frozen.network.decoder.training
        assert torch.allclose(trained, frozen.eval()(batch))
        mixed, _, _ = problem("adaptation", network, batch_norm="mixed")
        assert not torch.allclose(trained, mixed.train()(batch), rtol=1e-3)


def test_frozen_stays_frozen_through_a_training(tmp_path, fabric):
    network = small_network()
    before, weights = statistics(network), network.classifier.weight.clone()
    run("adaptation", network, fabric, tmp_path / "c.pt", iterations=2, batch_norm="frozen")
    assert close(before, statistics(network))
    assert not torch.equal(weights, network.classifier.weight)


def test_a_supervised_training_keeps_its_images_statistics(tmp_path, fabric):
    network = small_network()
    before = statistics(network)
    run("supervised", network, fabric, tmp_path / "c.pt", iterations=1)
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(network), strict=True))


@pytest.mark.parametrize("kind", ["supervised", "adversarial", "adaptation", "online"])
def test_a_frozen_encoder_keeps_weights_and_statistics(tmp_path, fabric, kind):
    network, start = small_network(), small_network()
    objective, make_batches, config = problem(kind, network, iterations=2, freeze_encoder=True)
    made, objective_optimizers = [], objective.optimizers
    objective.optimizers = lambda config: made.extend(objective_optimizers(config)) or made
    checkpoint = Checkpoint(tmp_path / "c.pt", "a")
    train(objective, make_batches, run_params(), config, 7, fabric, checkpoint, silent())
    assert same(network.encoder, start.encoder)
    assert not same(network.decoder, start.decoder)
    optimized = {id(p) for o in made for group in o.param_groups for p in group["params"]}
    assert not optimized & set(map(id, network.encoder.parameters()))
    assert optimized >= set(map(id, network.decoder.parameters()))
    if kind == "online":
        assert same(objective.teacher.encoder, start.encoder)
        assert not same(objective.teacher.decoder, start.decoder)


# Compiled


@pytest.mark.parametrize("kind", ["supervised", "adversarial", "online"])
def test_a_compiled_network_trains_as_it_does_uncompiled(tmp_path, fabric, monkeypatch, kind):
    changes = {"iterations": 2} | ({"batch_norm": "target"} if kind == "adversarial" else {})
    plain, graphs = small_network(), []
    run(kind, plain, fabric, tmp_path / "c.pt", **changes)
    compiled = small_network()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with_backend = functools.partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", with_backend)
    run(kind, compiled, fabric, tmp_path / "compiled.pt", compiled=True, **changes)
    assert graphs
    assert same(plain, compiled)


# Schedule and curve


@pytest.mark.parametrize(
    ("step", "iterations", "power", "expected"),
    [(0, 10, 0.9, 1.0), (5, 10, 1.0, 0.5), (9, 10, 2.0, 0.01), (3, 4, 0.5, 0.5), (7, 9, 0.0, 1.0)],
)
def test_polynomial_decay(step, iterations, power, expected):
    assert polynomial_decay(step, iterations, power) == pytest.approx(expected)


def test_the_rate_decays_to_what_the_curve_says(tmp_path, fabric):
    curve = run("supervised", small_network(), fabric, tmp_path / "c.pt", iterations=4, power=1.0)
    assert curve["iteration"].tolist() == [1, 2, 3, 4]
    assert curve["learning_rate"].tolist() == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_every_optimizers_rate_decays(tmp_path, fabric):
    objective, make_batches, config = problem(
        "adversarial", small_network(), iterations=2, power=1.0
    )
    optimizers = objective.optimizers(config)
    objective.optimizers = lambda config: optimizers
    checkpoint = Checkpoint(tmp_path / "c.pt", "a")
    train(objective, make_batches, run_params(), config, 7, fabric, checkpoint, silent())
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([0.5 * 0.02, 0.5 * 1e-3])  # those of the last step


def test_the_decoder_and_the_classifier_have_their_own_rate(tmp_path, fabric):
    """In the first step, in which all networks have the same gradients."""
    networks = {}
    for name, encoder, decoder in [("a", 0.02, 0.1), ("b", 0.02, None), ("c", 0.1, None)]:
        networks[name] = small_network()
        rates = {"learning_rate": encoder, "learning_rate_decoder": decoder, "iterations": 1}
        run("supervised", networks[name], fabric, tmp_path / "c.pt", name, **rates)
    assert same(networks["a"].encoder, networks["b"].encoder)
    assert not same(networks["a"].encoder, networks["c"].encoder)
    for part in ("decoder", "classifier"):
        assert same(getattr(networks["a"], part), getattr(networks["c"], part))


def test_rates_that_are_equal_are_one_rate(tmp_path, fabric):
    one, two = small_network(), small_network()
    run("supervised", one, fabric, tmp_path / "a.pt")
    run("supervised", two, fabric, tmp_path / "b.pt", learning_rate_decoder=0.02)
    assert same(one, two)


def test_rates_rise_before_they_decay(tmp_path, fabric):
    changes = {"iterations": 5, "power": 1.0, "learning_rate_warmup": 4}
    config = Pretrain(**TRAINING | changes)
    expected = [0.25 * 1.0, 0.5 * 0.8, 0.75 * 0.6, 1.0 * 0.4, 0.2]
    assert [rate_factor(step, config) for step in range(5)] == pytest.approx(expected)
    curve = run("supervised", small_network(), fabric, tmp_path / "c.pt", **changes)
    assert curve["learning_rate"].tolist() == pytest.approx([0.02 * x for x in expected])


def test_optimizers_are_as_configured():
    network = torch.nn.Linear(2, 2)
    sgd = make_optimizer(network, Pretrain(**TRAINING))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.9, 5e-4)
    adamw = make_optimizer(network, Pretrain(**TRAINING | {"optimizer": "adamw"}))
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["betas"] == (0.9, 0.999) and adamw.defaults["weight_decay"] == 5e-4
    assert {id(p) for g in sgd.param_groups for p in g["params"]} == set(
        map(id, network.parameters())
    )


@pytest.mark.parametrize(
    ("iterations", "rows", "size"), [(1, 1, 1), (100, 100, 1), (101, 51, 2), (250, 84, 3)]
)
def test_a_curve_has_the_means_of_at_most_100_stretches(iterations, rows, size):
    history = torch.arange(2.0 * iterations).view(iterations, 2)
    config = Pretrain(**TRAINING | {"iterations": iterations, "power": 1.0})
    curve = cag.training.loop._curve(history, ("loss", "source_ce"), config)
    assert len(curve) == rows
    assert curve["iteration"].tolist()[-1] == iterations and curve["iteration"].tolist()[0] == size
    for row, start in enumerate(range(0, iterations, size)):
        steps = range(start, min(start + size, iterations))
        assert curve["loss"][row] == pytest.approx(np.mean([2 * s for s in steps]))
        assert curve["source_ce"][row] == pytest.approx(np.mean([2 * s + 1 for s in steps]))
        expected = np.mean([0.02 * (1 - s / iterations) for s in steps])
        assert curve["learning_rate"][row] == pytest.approx(expected)
