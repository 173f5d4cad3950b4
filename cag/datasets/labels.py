"""Label spaces (names and colours of the classes) and class maps (raw label value -> train id)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    StringConstraints,
    ValidationError,
    WrapValidator,
    model_validator,
)

from cag.runtime.errors import CONTROL, UserError
from cag.runtime.validation import explain, read_yaml

IGNORE = 255
MAX_CLASSES = 254
_UNKNOWN = 254  # marks a raw value outside the map
_SHOWN_VALUES = 5


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a project, in the order of their train ids.

    A subset such as ("13_of_16", (0, 1, 2, 6, ...)), a name and train ids, gets its own mean IoU.
    A ValueError if there are no or too many classes, a name is repeated, or a colour is missing.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # (red, green, blue) in 0..255
    subsets: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) == len(set(self.names)) <= MAX_CLASSES:
            raise ValueError(f"expected 1 to {MAX_CLASSES} names, none twice, not {self.names}")
        colours = np.array(self.palette)
        valid = colours.shape == (len(self.names), 3) and colours.dtype.kind == "i"
        if not valid or colours.min() < 0 or colours.max() > 255:
            raise ValueError("each class needs a colour of three integers in 0..255")

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.names)

    @property
    def palette_array(self) -> np.ndarray:
        """The colours as uint8 [K, 3]."""
        return np.array(self.palette, np.uint8)

    def to_dict(self) -> dict[str, Any]:
        """The label space as JSON, in the form of a class map without raw values."""
        pairs = zip(self.names, self.palette, strict=True)
        content = {"classes": [{"name": name, "color": list(color)} for name, color in pairs]}
        subsets = {key: [self.names[i] for i in ids] for key, ids in self.subsets}
        return content | ({"subsets": subsets} if subsets else {})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LabelSpace:
        """The inverse of `to_dict`; a ValueError if the content has another form."""
        try:
            return ClassList.model_validate(content).label_space
        except ValidationError as error:
            raise ValueError(explain(ClassList, error, "expected a list 'classes'")) from None


def _composed(name: str) -> str:
    """The name with its accents in one form: Unicode has two, which look the same."""
    if CONTROL.search(name):
        raise ValueError("a name has no control characters")
    return unicodedata.normalize("NFC", name)


Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[list[Byte], Field(min_length=3, max_length=3), AfterValidator(tuple)]
ClassName = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=100),
    AfterValidator(_composed),
]
SubsetName = Annotated[str, Field(pattern=r"^\w+$")]
COUNT = Field(min_length=1, max_length=MAX_CLASSES)


class Class(BaseModel, strict=True):
    """A class of a label space."""

    name: ClassName
    color: Color = Field(description="[red, green, blue], 0 to 255")


class ClassList(BaseModel, strict=True):
    """Classes and, by name, sets of them."""

    classes: Annotated[list[Class], COUNT]
    subsets: dict[SubsetName, Annotated[list[ClassName], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _check(self) -> ClassList:
        _ = self.label_space
        return self

    @property
    def label_space(self) -> LabelSpace:
        """The classes as a label space; a ValueError if a name is repeated or no class's."""
        names = [entry.name for entry in self.classes]
        named = {f"subsets.{key}": members for key, members in self.subsets.items()}
        for key, members in [("classes", names), *named.items()]:
            if repeated := [name for name, count in Counter(members).items() if count > 1]:
                raise ValueError(f"{key}: the class name {repeated[0]!r} is given twice")
            if unknown := [name for name in members if name not in names]:
                raise ValueError(f"{key}: {unknown[0]!r} is no class of this map")
        palette = tuple(entry.color for entry in self.classes)
        subsets = ((key, tuple(map(names.index, self.subsets[key]))) for key in self.subsets)
        return LabelSpace(tuple(names), palette, tuple(subsets))


class ClassMap:
    """A map from a data set's raw label values, all integers or all (r, g, b), to train ids.

    With `ignore_rest` values beside `train_ids` become 255. `channel` holds the class (0: red);
    None: labels have one channel, or are colour-coded. Messages name its `path`.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        train_ids: Mapping,
        ignore_rest: bool = False,
        channel: int | None = None,
        path: Path | None = None,
    ):
        self.called = "the class map" if path is None else f"the class map {path}"
        self.label_space, self.channel, self._train_ids = label_space, channel, train_ids
        self.by_color = any(isinstance(value, tuple) for value in train_ids)
        self._rest = IGNORE if ignore_rest else _UNKNOWN
        values = np.array(list(train_ids), np.int64).reshape(len(train_ids), -1)
        keys = _pack(values) if self.by_color else values.reshape(-1)
        order = np.argsort(keys)
        self._keys = keys[order]  # (V,) ascending
        self._ids = np.array(list(train_ids.values()), np.uint8)[order]  # (V,)

    @property
    def mapped(self) -> frozenset[int]:
        """The train ids that have raw values."""
        return frozenset(self._train_ids.values()) - {IGNORE}

    def encode(self, raw: np.ndarray) -> np.ndarray:
        """Translate a raw label map to train ids uint8 [H, W]; 255 = ignored.

        `raw` is integers [H, W], or [H, W, C] for a map of colours or with a channel. A UserError
        if a value is not in the map, only one of the two has colours, or the channel is missing.
        """
        raw = self._class_values(raw)
        if raw.dtype in (np.uint8, np.uint16) and not self.by_color:
            labels = self._search(np.arange(np.iinfo(raw.dtype).max + 1))[raw]  # far faster
        else:
            labels = self._search(_pack(raw) if self.by_color else raw)
        if self._rest == _UNKNOWN and (labels == _UNKNOWN).any():
            raise UserError(_unknown_message(raw[labels == _UNKNOWN], self.called))
        return labels

    def count(self, raw: np.ndarray) -> dict[int | tuple[int, int, int], int]:
        """Count the pixels of each raw value, in the map or not; a UserError on another kind."""
        raw = self._class_values(raw)
        if raw.dtype in (np.uint8, np.uint16) and not self.by_color:
            counts = np.bincount(raw.ravel())
            return {value: int(counts[value]) for value in np.flatnonzero(counts).tolist()}
        keys, counts = np.unique(_pack(raw) if self.by_color else raw, return_counts=True)
        values = map(_unpack, keys.tolist()) if self.by_color else keys.tolist()
        return dict(zip(values, counts.tolist(), strict=True))

    def train_id(self, value: int | tuple[int, int, int]) -> int | None:
        """The train id of a raw value or 255; None where `encode` would raise."""
        train_id = self._train_ids.get(value, self._rest)
        return None if train_id == _UNKNOWN else train_id

    def decoding(self) -> np.ndarray | None:
        """The raw value of each train id, uint8 [256]: the inverse of `encode`.

        A class gets its smallest value. 255 gets the smallest of `ignore`, or with `rest` the
        largest that is not listed. None if the map has colours, or a class or 255 has no value up
        to 255.
        """
        if self.by_color:
            return None
        values = {}  # train id -> raw value
        for value, train_id in sorted(self._train_ids.items()):
            if 0 <= value <= 255:
                values.setdefault(train_id, value)
        free = set(range(256)) - set(self._train_ids)
        if free and self._rest == IGNORE:
            values.setdefault(IGNORE, max(free))
        if set(values) != {*range(self.label_space.num_classes), IGNORE}:
            return None
        table = np.full(256, values[IGNORE], np.uint8)
        table[list(values)] = list(values.values())
        return table

    def _class_values(self, raw: np.ndarray) -> np.ndarray:
        """The raw values of the classes: integers [H, W] or colours [H, W, 3]."""
        if self.channel is not None:
            if raw.ndim == 3:
                return raw[..., self.channel]
            problem = f"has one channel, {self.called} reads channel {self.channel} of several"
            remedy = "use the data set's own label files, or a class map without 'channel' for them"
            raise UserError(f"the label {problem}; {remedy}")
        if raw.ndim == 3 and not self.by_color:
            problem = f"the label holds colours, {self.called} lists integers"
            remedy = "check the folder of labels, or set `channel` if one channel holds the class"
            raise UserError(f"{problem}; {remedy}")
        if raw.ndim == 2 and self.by_color:
            problem = f"the label holds integers, {self.called} lists colours"
            raise UserError(f"{problem}; use the class map that belongs to these labels")
        return raw

    def _search(self, keys: np.ndarray) -> np.ndarray:
        position = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        known = self._keys[position] == keys
        return np.where(known, self._ids[position], np.uint8(self._rest))


def _pack(colors: np.ndarray) -> np.ndarray:
    """One int64 for each colour [..., 3] of up to 16 bits a channel."""
    red, green, blue = np.moveaxis(colors.astype(np.int64), -1, 0)
    return red << 32 | green << 16 | blue


def _unpack(key: int) -> tuple[int, int, int]:
    return key >> 32, key >> 16 & 0xFFFF, key & 0xFFFF


def _unknown_message(values: np.ndarray, class_map: str) -> str:
    unique = np.unique(values, axis=0).tolist()
    shown = ", ".join(map(str, unique[:_SHOWN_VALUES]))
    more = ", ..." if len(unique) > _SHOWN_VALUES else ""
    noun = "label value" if len(unique) == 1 else "label values"
    remedy = "list each under a class's 'values' or under 'ignore' (or write 'ignore: rest')"
    return f"{noun} {shown}{more} not in {class_map}; {remedy}"


def read_class_map(path: Path) -> ClassMap:
    """Read a class map from YAML; a UserError if it cannot be read or breaks a rule.

    The order of `classes` gives the train ids. Values are integers, or [r, g, b] for colour-coded
    labels; a class that the data set lacks has an empty list. `ignore` lists the raw values that
    become 255; `rest` means all others. `channel` is the channel that holds the class (0: the
    first). `subsets` names sets of classes that get their own mean IoU.

        classes:
          - {name: road, color: [128, 64, 128], values: [7]}
          - {name: wall, color: [102, 102, 156], values: [12]}
        ignore: [0, 1, 255]
        channel: 0
        subsets: {1_of_2: [road]}
    """
    examples = "classes/ holds complete class maps"
    content = read_yaml(path, examples, examples)
    try:
        file = ClassMapFile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {explain(ClassMapFile, error, examples)}") from None
    ignore_rest = file.ignore == "rest"
    return ClassMap(file.label_space, file.train_ids, ignore_rest, file.channel, path)


def _raw_value(value: Any, handler: Callable[[Any], Any]) -> int | tuple[int, int, int]:
    try:
        return handler(value)
    except ValidationError:
        raise ValueError("expected an integer or [r, g, b]") from None


def _list_or_rest(value: Any, handler: Callable[[Any], list]) -> Any:
    if value != "rest" and not isinstance(value, list):
        raise ValueError("expected a list of values or 'rest'")
    return value if value == "rest" else handler(value)


RawInteger = Annotated[int, Field(ge=-(2**31), lt=2**32)]  # all that an image file can hold
RawValues = list[Annotated[RawInteger | Color, WrapValidator(_raw_value)]]


class MappedClass(Class, extra="forbid"):
    """A class and its raw values."""

    values: RawValues = Field(description="a list, [] if the data set lacks the class")


class ClassMapFile(ClassList, extra="forbid"):
    """The content of a class map's file."""

    classes: Annotated[list[MappedClass], COUNT]
    ignore: Annotated[RawValues, WrapValidator(_list_or_rest)] = []
    channel: Annotated[int, Field(ge=0, le=2)] | None = None

    @model_validator(mode="after")
    def _check_values(self) -> ClassMapFile:
        _ = self.train_ids
        return self

    @property
    def train_ids(self) -> dict[int | tuple[int, int, int], int]:
        """Raw value -> train id or 255; a ValueError if one is repeated or there are two kinds."""
        listed = [(f"classes.{i}.values", entry.values, i) for i, entry in enumerate(self.classes)]
        if self.ignore != "rest":
            listed.append(("ignore", self.ignore, IGNORE))
        train_ids, first_key = {}, {}
        for key, values, train_id in listed:
            for value in values:
                if value in train_ids:
                    raise ValueError(f"{key}: the value {value} is already in {first_key[value]}")
                train_ids[value], first_key[value] = train_id, key
        if not train_ids:
            raise ValueError("classes: no class has a value")
        if len(set(map(type, train_ids))) > 1:
            raise ValueError("classes: integers and [r, g, b] colours are mixed; use one kind")
        if self.channel is not None and isinstance(next(iter(train_ids)), tuple):
            raise ValueError("channel: one channel holds integers, but the classes list colours")
        return train_ids
