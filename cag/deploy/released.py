"""The authors' released files: checkpoints and anchors, read without running what they contain."""

import codecs
import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cag.config.networks import Network, Normalization
from cag.datasets.labels import read_class_map
from cag.networks import build, load_weights, save_model
from cag.runtime.errors import UserError, refuse_special
from cag.runtime.files import atomic_file, binary_file


def _number_dtype(kind: str, *_: bool) -> np.dtype:
    if not re.fullmatch(r"[bfiu]\d", kind):
        raise ValueError(f"an array of {kind}")
    return np.dtype(kind, copy=True)


# All that NumPy's arrays and scalars of numbers need, under the names of NumPy 1 and 2.
NUMPY_GLOBALS = {
    f"numpy.{core}.{name}": function
    for core in ("core", "_core")
    for name, function in {
        "multiarray._reconstruct": np.zeros(0).__reduce__()[0],
        "multiarray.scalar": np.float64(0).__reduce__()[0],
        "numeric._frombuffer": np.zeros(0).__reduce_ex__(5)[0],
    }.items()
} | {"numpy.ndarray": np.ndarray, "numpy.dtype": _number_dtype}
DTYPES = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64")]
ZIP = b"PK\x03\x04"
LEGACY = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")


def read_released(path: Path) -> dict[str, Tensor] | np.ndarray:
    """Read a file of the paper's authors, by torch.save of today or of 2019 or a plain pickle.

    A checkpoint `{"DeepLab": {"model_state": ...}, ...}` gives its weights under the authors' keys,
    on the CPU. The file `category_anchors`, `{"objective_vectors": [K, D], ...}` or such an array
    alone, gives anchors float32 [K, D], NaN for a class that was never seen (theirs: zeros).

    Raises:
        UserError: The file cannot be read, holds something else, or asks to run anything that
            tensors, arrays and numbers do not need; nothing of it is then run.
    """
    content = _load(path)
    if isinstance(content, dict) and "DeepLab" in content:
        network = content["DeepLab"]
        state = network.get("model_state") if isinstance(network, dict) else None
        if not isinstance(state, dict):
            raise UserError(f"{path}: a checkpoint without DeepLab.model_state, the weights")
        return dict(state)
    vectors = content.get("objective_vectors") if isinstance(content, dict) else content
    if isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype.kind == "f":
        anchors = vectors.astype(np.float32)  # (K, D)
        anchors[(vectors == 0).all(axis=1)] = np.nan
        return anchors
    raise UserError(
        f"{path}: holds {_described(content)}; expected one of the authors' checkpoints "
        "(DeepLab.model_state) or their category_anchors (objective_vectors)"
    )


def import_released(path: Path, out: Path, class_map: Path) -> str:
    """Convert a file that `read_released` reads: "weights" to .safetensors, "anchors" to .npy.

    The result says which. `class_map` is the YAML file of the 19 classes. A UserError as for
    reading, or if `out` has another extension or a weight does not fit.
    """
    content = read_released(path)
    kind, suffix = ("weights", ".safetensors") if isinstance(content, dict) else ("anchors", ".npy")
    if out.suffix != suffix:
        raise UserError(f"{path}: holds {kind}, so OUT must end in {suffix}, not '{out}'")
    if kind == "anchors":
        with atomic_file(out) as partial, binary_file(partial) as file:
            np.save(file, content)
        return kind
    try:
        weights = convert_released_weights(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    network = build(RELEASED_NETWORK, RELEASED_CLASSES)
    load_weights(network, weights, path, "its network")
    save_model(out, network, RELEASED_NETWORK, read_class_map(class_map).label_space)
    return kind


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(repr(key)[:40] for key in list(content)[:5]) or 'nothing'}"
    if isinstance(content, np.ndarray):
        return f"an array {list(content.shape)} of {content.dtype}"
    return f"a {type(content).__name__}"


def _load(path: Path) -> Any:
    refuse_special(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        by_torch = data[:4] == ZIP or LEGACY in data[:32]
        return _load_torch(data) if by_torch else _Pickle(io.BytesIO(data)).load()
    except Exception as error:  # damaged files raise many kinds
        problem = f"not a file that torch.save or pickle wrote, or damaged ({type(error).__name__})"
        remedy = "fetch it again"
        if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
            problem = f"asks to run {named[1]}, which weights and anchors do not need"
            remedy = "nothing of it was run; do not use this file"
        raise UserError(f"{path}: {problem}; {remedy}") from None


def _load_torch(data: bytes) -> Any:
    allowed = [(value, name) for name, value in NUMPY_GLOBALS.items()]
    with torch.serialization.safe_globals([*allowed, *DTYPES]):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _Pickle(pickle.Unpickler):
    """Reads a plain pickle of tensors, arrays and numbers; resolves no other name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the object that a name in the file stands for."""
        try:
            return PICKLE_GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None


PICKLE_GLOBALS = NUMPY_GLOBALS | {
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": OrderedDict,
    "torch.storage._load_from_bytes": _load_torch,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}
# The network of the authors' checkpoints: 19 classes, inputs in [0, 1] without normalisation.
RELEASED_NETWORK = Network(
    architecture="DeepLabV3PlusPaper",
    encoder="resnet101",
    encoder_weights=None,
    normalization=Normalization(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
)
RELEASED_CLASSES = 19
# Beginnings of a checkpoint's keys and of ours.
RELEASED_KEYS = {
    "backbone.": "encoder.",
    **{f"aspp.aspp{i + 1}.atrous_conv.": f"decoder.aspp.convs.{i}.0." for i in range(4)},
    **{f"aspp.aspp{i + 1}.bn.": f"decoder.aspp.convs.{i}.1." for i in range(4)},
    "aspp.global_avg_pool.": "decoder.aspp.convs.4.",
    "aspp.conv1.": "decoder.aspp.project.0.",
    "aspp.bn1.": "decoder.aspp.project.1.",
    "decoder.conv1.": "decoder.low_level.0.",
    "decoder.bn1.": "decoder.low_level.1.",
    "decoder.last_conv.8.": "classifier.",
    "decoder.last_conv.": "decoder.last.",
}


def convert_released_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the 680 weights `DeepLab.model_state` the keys, in order, of our `RELEASED_NETWORK`.

    A UserError names the first key that is missing, is too many or has a tensor of another shape.
    """
    with torch.device("meta"):
        expected = build(RELEASED_NETWORK, RELEASED_CLASSES).state_dict()
    released = {_released_key(key): key for key in expected}
    missing = [key for key in released if key not in state]
    unknown = [key for key in state if key not in released]
    if missing or unknown:
        first = f"'{missing[0]}' is missing" if missing else f"'{unknown[0]}' is not one of them"
        raise UserError(
            f"released weights: {len(state)} keys, expected the {len(released)} of the authors' "
            f"DeepLab v3+ on ResNet-101; {first}"
        )
    for key, ours in released.items():
        value, shape = state[key], list(expected[ours].shape)
        form = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if form != shape:
            network = f"the authors' DeepLab v3+ on ResNet-101 with {RELEASED_CLASSES} classes"
            raise UserError(f"released weights: '{key}' is {form}, expected {shape}: {network}")
    return {ours: state[key] for key, ours in released.items()}


def _released_key(key: str) -> str:
    for theirs, ours in RELEASED_KEYS.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key
