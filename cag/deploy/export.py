"""Models for other programs: ONNX, and programs that PyTorch exports."""

import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders.mix_transformer import Attention
from timm.layers import Conv2dSame, RotaryEmbeddingDinoV3
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from torch import Tensor, nn

from cag.datasets.images import read_image
from cag.datasets.labels import LabelSpace
from cag.datasets.prepared import evenly_spaced
from cag.deploy.image_files import list_images
from cag.networks import SegmentationNetwork, feature_form, load_model
from cag.prediction import upsampled
from cag.runtime.errors import UserError, in_one_line
from cag.runtime.files import binary_file
from cag.scenes import render

OPSET = 18
# Logits may differ by a share of the largest, or by so many times the network's own rounding error,
# which is large if a deep network amplifies it. So many labels must be equal.
TOLERANCE, ROUNDING, AGREEMENT = 1e-4, 10, 0.99
LEAST_SIDE = 33  # pixels: for smaller images the encoder's last map is one pixel, traced apart
INPUT = "images: float32 [B, 3, H, W], RGB in [0, 1], H and W above 32; normalised inside"
OUTPUT = "logits: float32 [B, K, H, W] at the images' size; their argmax over K is the train id"
_ENDLESS = (SwinTransformerBlock, SwinTransformerV2Block)  # windows whose trace takes hours
_EXAMPLE = (2, 3, 100, 157)  # no multiple of a network's stride, so that nothing is traced away

Run = Callable[[Tensor], Tensor]  # logits of images float [B, 3, H, W] in [0, 1]


class FullResolution(nn.Module):
    """A network whose logits come at the images' size, in a form that is traced for all sizes.

    It computes `prediction.upsampled` of the network's logits. The network, in eval mode on the
    CPU, sometimes pads and crops by 0, which a trace takes for always or never; this module always
    does both.
    """

    def __init__(self, network: SegmentationNetwork):
        super().__init__()
        self.network = traceable(network) if network.input_multiple > 1 else network
        _, self.stride = feature_form(network, (LEAST_SIDE, LEAST_SIDE))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K, H, W] of images float [B, 3, H, W] in [0, 1]."""
        network, multiple, stride = self.network, self.network.input_multiple, self.stride
        height, width = images.shape[2:]
        images = (images - network.mean) / network.std
        if multiple > 1:
            below, right = (-side % multiple for side in (height, width))
            images = F.pad(images, (0, right + multiple, 0, below + multiple))
            images = images[..., : height + below, : width + right]
        features = network.decoder(network.encoder(images))  # (B, D, h', w')
        if multiple > 1:
            rows, columns = ((side + stride - 1) // stride for side in (height, width))
            features = F.pad(features, (0, 1, 0, 1))[..., :rows, :columns]  # (B, D, h, w)
        logits = network.classifier(features)
        return F.interpolate(logits, (height, width), mode="bilinear", align_corners=True)


def traceable(network: nn.Module) -> nn.Module:
    """A copy of a network without the layers that a trace cannot follow for all sizes.

    timm's `Conv2dSame` pads by what is missing to a multiple of its stride. Where an image's sides
    are a multiple of all strides together, as `input_multiple` is, nothing is missing and the
    widths are fixed. Adaptive pooling to several cells becomes a product of matrices. The rotary
    embedding of DINOv3 takes the numbers of patches as they come, where timm's makes constants. The
    attention of MiT multiplies dense tensors: the trace of others would need two images or more.
    """
    network = deepcopy(network)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv2dSame):
                setattr(parent, name, _FixedPadding(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(parent, name, _Pooling(child.output_size))
            elif isinstance(child, RotaryEmbeddingDinoV3) and child.normalize_coords == "separate":
                setattr(parent, name, _Rotary(child))
            elif isinstance(child, Attention):
                setattr(parent, name, _Attention(child))
    return network


class _Pooling(nn.Module):
    def __init__(self, cells: int | tuple[int, int]):
        super().__init__()
        self.cells = (cells, cells) if isinstance(cells, int) else cells

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = map(_cell_weights, images.shape[2:], self.cells)
        return rows @ images @ columns.T


def _cell_weights(side: int, cells: int) -> Tensor:
    """The weights of each pixel in each cell's mean, float [cells, side]."""
    cell, pixel = torch.arange(cells)[:, None], torch.arange(side)
    inside = (pixel >= cell * side // cells) & (pixel * cells < (cell + 1) * side)
    return inside / inside.sum(dim=1, keepdim=True)


class _Rotary(nn.Module):
    def __init__(self, rotary: RotaryEmbeddingDinoV3):
        super().__init__()
        self.rotary = rotary

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        sides = [(2 * torch.arange(side) + 1) / side - 1 for side in shape]  # in [-1, 1]
        grid = torch.stack(torch.meshgrid(sides, indexing="ij"), dim=-1).flatten(0, 1)  # [h w, 2]
        return torch.cat(self.rotary._get_pos_embed_from_coords(grid), dim=-1)


class _Attention(nn.Module):
    def __init__(self, attention: Attention):
        super().__init__()
        self.of = attention

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        of, (batch, _, channels) = self.of, tokens.shape
        fewer = tokens
        if of.sr_ratio > 1:
            maps = tokens.mT.reshape(batch, channels, height, width)
            fewer = of.norm(of.sr(maps).flatten(2).mT)  # (B, M, C)
        query, (key, value) = of.q(tokens), of.kv(fewer).chunk(2, dim=2)
        parts = (part.unflatten(2, (of.num_heads, -1)) for part in (query, key, value))
        heads = (part.transpose(1, 2).contiguous() for part in parts)  # (B, heads, ., C / heads)
        attended = F.scaled_dot_product_attention(*heads, scale=of.scale)
        return of.proj(attended.transpose(1, 2).flatten(2))  # (B, N, C)


class _FixedPadding(nn.Module):
    def __init__(self, convolution: Conv2dSame):
        super().__init__()
        self.convolution, self.padding = convolution, []
        sizes = zip(convolution.kernel_size, convolution.dilation, convolution.stride, strict=True)
        for kernel, dilation, stride in sizes:
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            self.padding = [total // 2, total - total // 2, *self.padding]  # the last side first

    def forward(self, images: Tensor) -> Tensor:
        of = self.convolution
        padded = F.pad(images, self.padding)
        return F.conv2d(padded, of.weight, of.bias, of.stride, 0, of.dilation, of.groups)


class Comparison(NamedTuple):
    """An exported network's logits beside the network's own."""

    images: str  # their name
    shape: tuple[int, ...]  # [B, 3, H, W]
    difference: float  # largest absolute difference
    rounding: float  # the same between the network's own logits and those computed in float64
    scale: float  # largest absolute logit
    agreement: float  # share of pixels with one label

    @property
    def passed(self) -> bool:
        """Whether the two are one network but for rounding."""
        allowed = max(TOLERANCE * self.scale, ROUNDING * self.rounding)
        return self.difference <= allowed and self.agreement >= AGREEMENT


def export(model: Path, form: str, path: Path, images: Sequence[str] = ()) -> list[Comparison]:
    """Write a model as "onnx" or "pt2", and compare the file with it on `comparison_images`.

    A UserError if a file cannot be read, a package is missing, or the network cannot be exported.
    """
    if form == "onnx":
        require_packages("onnx", "onnxscript", "onnxruntime")
    write, load = {"onnx": (write_onnx, load_onnx), "pt2": (write_pt2, load_pt2)}[form]
    network, _, classes, size = load_model(model)
    compared_with = comparison_images(images)
    write(path, trace(network), metadata(classes, size))
    try:
        run = load(path)
    except Exception as error:  # a runtime raises kinds of its own
        raise _failed("the exported network cannot be loaded", error) from None
    return list(compare(network, run, compared_with))


def comparison_images(patterns: Sequence[str] = ()) -> list[tuple[str, Tensor]]:
    """Random images of two sizes, and 4 images of files, folders or patterns, or else two scenes.

    They are names and float32 [B, 3, H, W] in [0, 1]. A UserError if there is no image, or one is
    too small.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 3, 96, 160), (2, 3, 125, 203))
    images = [("random", torch.rand(shape, generator=generator)) for shape in shapes]
    if patterns:
        files = list_images(patterns)
        paths = [files[i][1] for i in evenly_spaced(len(files), 4)]
        real = [(path.name, read_image(path)) for path in paths]
    else:
        sizes = {"source": (128, 256), "target": (180, 300)}
        real = [(f"scene {name}", render(name, 0, 0, *sizes[name])[0]) for name in sizes]
    for name, image in real:
        if min(image.shape[:2]) < LEAST_SIDE:
            raise UserError(f"{name}: is too small; compare with images above 32 pixels a side")
        images.append((name, torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255))
    return images


def trace(network: SegmentationNetwork) -> torch.export.ExportedProgram:
    """Trace a network in eval mode on the CPU; batch, height and width (above 32) stay free.

    A UserError if it cannot be traced, at once for Swin transformers.
    """
    if any(isinstance(layer, _ENDLESS) for layer in network.modules()):
        problem = (
            "the shifted windows of a Swin transformer cannot be traced for images of any size"
        )
        raise UserError(f"{problem}; train another network.encoder")
    shapes = {"images": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    try:
        with _quiet():
            example = (torch.rand(_EXAMPLE),)
            return torch.export.export(FullResolution(network), example, dynamic_shapes=shapes)
    except Exception as error:  # the tracer raises many kinds
        raise _failed("this network cannot be traced", error) from None


def write_pt2(path: Path, program: torch.export.ExportedProgram, about: dict) -> None:
    """Write a program that `torch.export.load` reads; its file cag.json holds `metadata`.

    A UserError if it cannot be written in this form.
    """
    with binary_file(path) as file, _quiet():
        try:
            torch.export.save(program, file, extra_files={"cag.json": json.dumps(about)})
        except OSError:
            raise
        except Exception as error:  # the writer raises many kinds
            raise _failed("this network cannot be written as pt2", error) from None


def write_onnx(path: Path, program: torch.export.ExportedProgram, about: dict) -> None:
    """Write an ONNX model in one file; each entry of `metadata` is a property, as JSON.

    A UserError if it cannot be translated.
    """
    free = {0: "batch", 2: "height", 3: "width"}
    try:
        with _quiet():
            names = {"input_names": ["images"], "output_names": ["logits"]}
            options = {"dynamo": True, "opset_version": OPSET, "verbose": False}
            model = torch.onnx.export(program, **names, **options)
    except Exception as error:  # the translator raises many kinds
        raise _failed("this network cannot be translated to ONNX", error) from None
    for value in (*model.model.graph.inputs, *model.model.graph.outputs):
        value.shape = type(value.shape)([free.get(i, d) for i, d in enumerate(value.shape)])
    for key, entry in about.items():
        model.model.metadata_props[key] = entry if isinstance(entry, str) else json.dumps(entry)
    model.save(path, external_data=False)


def metadata(classes: LabelSpace, size: tuple[int, int] | None) -> dict:
    """A description; `size` is the (height, width) of all training images, or None."""
    about = {"classes": list(classes.names), "palette": [list(color) for color in classes.palette]}
    return about | {"size": list(size) if size else None, "input": INPUT, "output": OUTPUT}


def load_pt2(path: Path) -> Run:
    """Read what `write_pt2` wrote: a function from images to logits."""
    with open(path, "rb") as file, _quiet():
        return torch.export.load(file).module()


def load_onnx(path: Path) -> Run:
    """Read what `write_onnx` wrote, for the CPU: a function from images to logits."""
    import onnxruntime

    model = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(model.run(["logits"], {"images": images.numpy()})[0])


@torch.inference_mode()
def compare(
    network: SegmentationNetwork, run: Run, images: Sequence[tuple[str, Tensor]]
) -> Iterator[Comparison]:
    """Run an exported network beside the network, in eval mode, on names and `Run`'s images."""
    exact = deepcopy(network).double()
    for name, batch in images:
        logits = network(batch).logits
        expected = torch.stack([upsampled(image, batch.shape[2:]) for image in logits])
        try:
            exported = run(batch)
        except Exception as error:  # a runtime raises kinds of its own
            size = " x ".join(map(str, batch.shape))
            raise _failed(f"the exported network cannot run on images of {size}", error) from None
        yield Comparison(
            name,
            tuple(batch.shape),
            float((exported - expected).abs().max()),
            float((logits - exact(batch.double()).logits).abs().max()),
            float(expected.abs().max()),
            float((exported.argmax(1) == expected.argmax(1)).float().mean()),
        )


def require_packages(*names: str) -> None:
    """A UserError unless the optional packages of an export are there."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            problem = f"the export to ONNX needs the package {name}, which is not installed"
            raise UserError(f"{problem}; run: pip install 'cag[export]'") from None


def _failed(problem: str, error: Exception) -> UserError:
    hint = "try the other --format, or train another network.architecture"
    return UserError(f"{problem} ({type(error).__name__}: {in_one_line(error)}); {hint}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on itself."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)
