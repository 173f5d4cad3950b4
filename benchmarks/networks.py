"""What each architecture does on each kind of encoder: the tables of docs/networks.md.

python -m benchmarks.networks [--export | --memory]

A pair is built with random weights, trained for two steps and asked for images of another, odd
size, whose pixels are then labelled. With --export, networks are exported as pt2 and ONNX. With
--memory, the activations of large networks are counted on shapes, which needs no memory.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cag.anchors import anchors, resize_labels
from cag.config.extract import Views
from cag.config.networks import Network, Normalization
from cag.config.pseudo_labels import PseudoLabel
from cag.config.training import Augmentation, Pretrain, Run
from cag.deploy import export
from cag.features import reduced_row, source_rows
from cag.networks import SegmentationNetwork, build, feature_form, shapes_only
from cag.prediction import predict, predict_pixels
from cag.projection import span
from cag.pseudo_labels import apply_rules, measure
from cag.runtime.devices import make_fabric
from cag.runtime.errors import UserError
from cag.runtime.progress import Progress
from cag.training.loop import Checkpoint, train
from cag.training.objectives import Batch, DomainBatch, SupervisedObjective

CLASSES = 3
DIRECTIONS = 40  # of the presets
ARCHITECTURES = ("DeepLabV3PlusPaper", "DeepLabV3Plus", "DeepLabV3", "PAN", "PSPNet", "FPN")
ARCHITECTURES += (
    "Segformer",
    "UPerNet",
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "DPT",
    "Linear",
)
ENCODERS = {  # the encoder and its options
    "ResNet": ("resnet18", {}),
    "MiT": ("mit_b0", {}),
    "ResNet of timm": ("tu-resnet18", {}),
    "ConvNeXt": ("tu-convnext_atto", {}),
    "Swin": ("tu-swin_tiny_patch4_window7_224", {}),
    "ViT": ("tu-vit_tiny_patch16_224", {}),
    "DINOv2": ("tu-vit_small_patch14_dinov2", {}),
    "DINOv2, patch 16": ("tu-vit_small_patch14_dinov2", {"patch_size": 16}),
    "DINOv3": ("tu-vit_small_patch16_dinov3", {}),
}
PAPER = {"ResNet-101": ("resnet101", {})}  # for the second table alone: it is slow
EXPORTS = [("Linear", "DINOv3"), ("Linear", "DINOv2"), ("DPT", "ViT"), ("UPerNet", "Swin")]
EXPORTS += [("Segformer", "MiT"), ("DPT", "DINOv2, patch 16"), ("DPT", "DINOv3")]
EXPORTS += [("FPN", "ConvNeXt"), ("PSPNet", "MiT"), ("MAnet", "MiT"), ("PAN", "ResNet")]
EXPORTS += [("DeepLabV3", "ResNet"), ("UnetPlusPlus", "ResNet"), ("Linknet", "ResNet")]
EXPORTS += [("DeepLabV3PlusPaper", "ResNet-101"), ("DeepLabV3PlusPaper", "ResNet")]
EXPORTS += [("DeepLabV3Plus", "ResNet"), ("Unet", "ResNet")]
FORMS = [(export.write_pt2, export.load_pt2), (export.write_onnx, export.load_onnx)]
LARGE = [  # encoder, options, architecture, crop
    ("resnet101", {}, "DeepLabV3PlusPaper", (512, 896)),
    ("mit_b5", {}, "Segformer", (512, 512)),
    ("mit_b5", {}, "Segformer", (1024, 1024)),
    ("tu-vit_large_patch14_dinov2", {}, "Linear", (518, 518)),
    ("tu-vit_large_patch14_dinov2", {"patch_size": 16}, "DPT", (512, 512)),
    ("tu-vit_large_patch16_dinov3", {}, "DPT", (512, 512)),
]


class Form(NamedTuple):
    """What was found of a pair that works."""

    parameters: int
    width: int
    stride: int
    multiple: int

    def __str__(self) -> str:
        return f"{self.width}, {self.stride}"


def made(
    architecture: str, encoder: str, options: dict, classes: int = CLASSES
) -> SegmentationNetwork:
    """A network of random weights; a UserError if there is none."""
    half = (0.5, 0.5, 0.5)
    config = Network(
        architecture=architecture,
        encoder=encoder,
        encoder_weights=None,
        options=options,
        normalization=Normalization(mean=half, std=half),
    )
    torch.manual_seed(0)
    return build(config, classes)


def trained(network: SegmentationNetwork, crop: tuple[int, int]) -> SegmentationNetwork:
    """The network after two steps of the pipeline's training on random crops; in eval mode."""
    config = Pretrain(
        iterations=2,
        batch_size=2,
        optimizer="adamw",
        learning_rate=6e-5,
        learning_rate_decoder=6e-4,
        learning_rate_warmup=2,
        power=1.0,
        momentum=0.9,
        weight_decay=0.01,
        augmentation=Augmentation(scale=(1.0, 1.0), crop=crop, flip=0.5),
    )
    run = Run(seed=0, precision="32-true", max_batch_per_device=None, compile=False)
    labels = torch.randint(0, CLASSES, (2, 1, *crop), dtype=torch.uint8)
    batch = Batch(DomainBatch(torch.rand(2, 3, *crop), labels))
    with tempfile.TemporaryDirectory() as folder:
        train(
            SupervisedObjective(network),
            lambda steps: (batch for _ in steps),
            run,
            config,
            0,
            make_fabric("32-true"),
            Checkpoint(Path(folder) / "checkpoint.pt", ""),
            Progress(lambda count, note: None),
        )
    return network.eval()


def labelled(network: SegmentationNetwork, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """The anchor rule's labels of two images of three colours side by side, a class each.

    They go through class sums, anchors, their span, stored rows and the rule, as in the stages. The
    anchors are means of all pixels, because it is chance which of them an untrained network
    predicts right. Gives the labels from all features, those from a reduced store, and the classes:
    uint8 [2, h, w].
    """
    fabric, rules = make_fabric("32-true"), PseudoLabel(relative_margin=0.0, probability=0.5)
    classes = torch.arange(size[1]) * CLASSES // size[1]
    labels = classes.expand(2, *size).byte()  # (2, H, W)
    images = 200 * torch.eye(CLASSES)[labels.long()].movedim(-1, 1)  # (2, 3, H, W)
    images = (images + 50 * torch.rand(images.shape)).byte()
    output = predict(network, images, fabric)
    sums, counts, *_ = source_rows(*output, labels, range(2), seed=0, per_class=10)
    vectors = anchors(sums, counts, min_pixels=1)  # (K, D)
    projection = span([(sums, counts)], DIRECTIONS)
    row = predict_pixels(network, images, Views(), fabric)
    numbers, *maps = reduced_row(*row, projection)
    measured = (
        measure(*row, vectors),
        measure(projection.coordinates(numbers), *maps, projection.place(vectors)[0]),
    )
    found = (apply_rules(pixels, rules, None)[0] for pixels in measured)
    return *found, resize_labels(labels, output.logits.shape[2:])


def tried(architecture: str, kind: str) -> Form:
    """Train, predict and label; UserError: the pair does not work, AssertionError: it is wrong."""
    network = made(architecture, *ENCODERS[kind])
    crop, odd = ((128, 128), (130, 163)) if architecture == "PAN" else ((64, 96), (78, 101))
    width, stride = feature_form(network, crop)
    trained(network, crop)
    with torch.inference_mode():
        features, logits = network(torch.rand(1, 3, *odd))
    expected = tuple(-(-side // stride) for side in odd)
    assert features.shape == (1, width, *expected), features.shape
    assert logits.shape == (1, CLASSES, *expected) and logits.isfinite().all()
    assert feature_form(network, odd) == (width, stride)
    whole, reduced, _ = labelled(network, odd)
    assert whole.shape == (2, *expected) and (whole < CLASSES).all()
    assert (whole == reduced).float().mean() > 0.99
    count = sum(parameter.numel() for parameter in network.parameters())
    return Form(count, width, stride, network.input_multiple)


def exported(architecture: str, kind: str) -> list[str]:
    """For pt2 and ONNX: yes, if the file gives the network's logits at two sizes, or why not."""
    network = made(architecture, *(ENCODERS | PAPER)[kind]).eval()
    for name, parameter in network.encoder.named_parameters():
        if "gamma" in name or "qkv" in name:  # so small at first that no attention shows
            parameter.data.normal_(std=0.1)
    try:
        program = export.trace(network)
    except UserError as error:
        return [f"no: {str(error)[:160]}"] * len(FORMS)
    return [_exported(network, program, *form) for form in FORMS]


def _exported(
    network: SegmentationNetwork,
    program: torch.export.ExportedProgram,
    write: Callable[[Path, torch.export.ExportedProgram, dict], None],
    load: Callable[[Path], export.Run],
) -> str:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            write(path, program, {})
            images = export.comparison_images()[:2]
            found = list(export.compare(network, load(path), images))
    except UserError as error:
        return f"no: {str(error)[:160]}"
    return "yes" if all(one.passed for one in found) else f"other logits: {found}"


def rows() -> Iterator[list[str]]:
    """The first table: feature channels and stride, or the number of the reason why not."""
    reasons: list[str] = []
    yield ["", *ENCODERS]
    yield ["---"] * (len(ENCODERS) + 1)
    for architecture in ARCHITECTURES:
        row = [f"`{architecture}`"]
        for kind in ENCODERS:
            try:
                row.append(str(tried(architecture, kind)))
            except UserError as error:
                reason = str(error).partition(": ")[2].rpartition("cannot be built: ")[2]
                reason = reason.replace(ENCODERS[kind][0], "...")
                reasons += [] if reason in reasons else [reason]
                row.append(f"no ({reasons.index(reason) + 1})")
            print(architecture, kind, row[-1], file=sys.stderr, flush=True)
        yield row
    yield from ([f"{number}. {reason}"] for number, reason in enumerate(reasons, 1))


def export_rows() -> Iterator[list[str]]:
    """The second table."""
    yield ["", "encoder", "pt2", "onnx"]
    yield ["---"] * 4
    for architecture, kind in EXPORTS:
        yield [f"`{architecture}`", kind, *exported(architecture, kind)]


def memory_rows() -> Iterator[list[str]]:
    """The third table: 19 classes, float32, attention maps kept whole."""
    yield ["", "encoder", "parameters, million", "crop", "GiB an image", "GiB, frozen encoder"]
    yield ["---"] * 6
    for encoder, options, architecture, crop in LARGE:
        with shapes_only():
            network = made(architecture, encoder, options, classes=19).to("meta").train()
        count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        whole = saved_bytes(network, crop)
        network.freeze_encoder()
        gigabytes = (f"{number / 2**30:.1f}" for number in (whole, saved_bytes(network, crop)))
        row = f"`{architecture}`", f"`{encoder}`", f"{count:.1f}", f"{crop[0]} x {crop[1]}"
        yield [*row, *gigabytes]


def saved_bytes(network: SegmentationNetwork, crop: tuple[int, int]) -> int:
    """Bytes that a forward pass of a network on the meta device keeps for each image of two."""
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    saved = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.empty(2, 3, *crop, device="meta"))
    return sum(part.nbytes() for key, part in saved.items() if key not in weights) // 2


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    tables = {"--export": export_rows, "--memory": memory_rows}
    for row in tables.get(sys.argv[-1], rows)():
        print(f"| {' | '.join(row)} |" if len(row) > 1 else row[0], flush=True)
