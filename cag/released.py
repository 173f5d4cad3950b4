"""The authors' released files: checkpoints and anchors, read without running what they contain."""

from __future__ import annotations

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

from cag.errors import UserError


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
    """Read what the authors of the paper released.

    Args:
        path: A checkpoint `{"DeepLab": {"model_state": ...}, ...}`, or the file `category_anchors`:
            `{"objective_vectors": [K, D], ...}`, or such an array alone. Written by torch.save, of
            today or of 2019, or as a plain pickle.

    Returns:
        The checkpoint's weights under the authors' keys, on the CPU; or the anchors, float32
        [K, D], with a row of NaN for a class that was never seen (theirs: zeros).

    Raises:
        UserError: The file cannot be read, holds something else, or asks for anything but tensors,
            arrays and numbers, which is then not run.
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


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict of {', '.join(repr(key)[:40] for key in list(content)[:5]) or 'nothing'}"
    if isinstance(content, np.ndarray):
        return f"an array {list(content.shape)} of {content.dtype}"
    return f"a {type(content).__name__}"


def _load(path: Path) -> Any:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return _load_torch(data) if data[:4] == ZIP or LEGACY in data[:32] else _load_pickle(data)
    except Exception as error:  # damaged files raise many kinds
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:
            raise UserError(
                f"{path}: asks to run {named[1]}, which weights and anchors do not need; nothing "
                "of it was run; do not use this file"
            ) from None
        raise UserError(
            f"{path}: not a file that torch.save or pickle wrote, or damaged "
            f"({type(error).__name__}); fetch it again"
        ) from None


def _load_torch(data: bytes) -> Any:
    allowed = [(value, name) for name, value in NUMPY_GLOBALS.items()]
    with torch.serialization.safe_globals([*allowed, *DTYPES]):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


class _Pickle(pickle.Unpickler):
    """Reads a plain pickle of tensors, arrays and numbers, and looks no other name up."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name that the file holds stands for."""
        try:
            return PICKLE_GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None


def _load_pickle(data: bytes) -> Any:
    return _Pickle(io.BytesIO(data)).load()


PICKLE_GLOBALS = NUMPY_GLOBALS | {
    "_codecs.encode": codecs.encode,
    "collections.OrderedDict": OrderedDict,
    "torch.storage._load_from_bytes": _load_torch,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
}
