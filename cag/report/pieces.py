"""Pieces of HTML: tables, figures and pictures. Texts are escaped, cells are HTML."""

import base64
import html
import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from cag.analysis import plots
from cag.anchors import resize_labels
from cag.datasets.labels import LabelSpace
from cag.report.tables import number

THUMBNAIL = 512  # widest picture of the page, in pixels
NOTHING, MINUS, THIN_SPACE = "\u2013", "\u2212", "\u202f"  # an en dash stands for no value


def escape(value: object) -> str:
    """Text as HTML."""
    return html.escape(str(value), quote=True)


def percent(value: float | None) -> str:
    """A share as percent with one digit."""
    value = number(value)
    return f"{100 * value:.1f}" if np.isfinite(value) else NOTHING


def points(value: float) -> str:
    """A difference of shares in points."""
    # A true minus sign is as wide as the plus, so that the columns align.
    return f"{100 * value:+.1f}".replace("-", MINUS) if np.isfinite(value) else NOTHING


def decimal(value: float) -> str:
    """A number with two digits."""
    return f"{value:.2f}" if np.isfinite(value) else NOTHING


def count(value: float | None) -> str:
    """A whole number in groups of three digits."""
    value = number(value)
    return f"{int(value):,}".replace(",", THIN_SPACE) if np.isfinite(value) else NOTHING


def th(value: object) -> str:
    """A row's head."""
    return f'<th scope="row">{escape(value)}</th>'


def class_th(name: str, label_space: LabelSpace) -> str:
    """A row's head with the class's colour."""
    return f'<th scope="row">{swatch(name, label_space)}{escape(name)}</th>'


def td(text: str, kind: str = "") -> str:
    """A cell."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{escape(text)}</td>"


def change(value: float) -> str:
    """A cell with a gain or a loss."""
    kind = "gain" if value > 0 else "loss" if value < 0 else ""
    return td(points(value), kind)


def swatch(name: str, label_space: LabelSpace) -> str:
    """A spot of the class's colour."""
    if name not in label_space.names:
        return ""
    red, green, blue = (int(part) for part in label_space.palette[label_space.names.index(name)])
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def legend(label_space: LabelSpace) -> str:
    """The colours of the classes."""
    items = "".join(
        f"<li>{swatch(name, label_space)}{escape(name)}</li>" for name in label_space.names
    )
    black = '<li><i class="swatch" style="background:#000"></i>unlabelled</li>'
    return f'<ul class="legend" aria-label="Class colours">{items}{black}</ul>'


def table(
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Sequence[tuple[str, int]] = (),
    total: Sequence[str] = (),
) -> str:
    """Build a table that scrolls sideways on a narrow screen; cells are HTML, the rest is text."""
    first = rows[0] if rows else [""] * len(heads)
    kinds = [' class="word"' if 'class="word"' in cell else "" for cell in first]
    columns = "".join(
        f'<th scope="col"{kind}>{escape(head)}</th>'
        for head, kind in zip(heads, kinds, strict=True)
    )
    upper = "".join(
        f'<th scope="colgroup" colspan="{width}">{escape(name)}</th>' if name else "<td></td>"
        for name, width in groups
    )
    upper = f'<tr class="groups">{upper}</tr>' if upper else ""
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    foot = f'<tfoot><tr class="total">{"".join(total)}</tr></tfoot>' if total else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead>{upper}<tr>{columns}</tr></thead>"
        f"<tbody>{body}</tbody>{foot}</table></div>"
    )


def figure(draw: Callable[[plots.Theme], Figure], alt: str, kind: str = "plot") -> str:
    """Embed a figure twice, for a light and for a dark screen."""
    light, dark = (_uri(_reduced(draw(theme))) for theme in (plots.LIGHT, plots.DARK))
    return (
        f'<figure class="scroll {kind}" tabindex="0" role="region" '
        f'aria-label="{escape(alt)}"><picture>'
        f'<source media="screen and (prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(alt)}"></picture></figure>'
    )


def _reduced(figure: Figure) -> bytes:
    """Encode a figure in 256 colours: a third of the size, and none of its hues is lost."""
    picture = Image.open(io.BytesIO(plots.png_bytes(figure))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG")
    return buffer.getvalue()


def switch(key: str, names: Sequence[str], content: str) -> str:
    """A choice between rounds that works without scripts.

    Args:
        key: Name of the choice, an identifier.
        names: What can be chosen; the last is chosen first.
        content: HTML; an element of class `of of-0` shows only while the first name is chosen.
    """
    picks = "".join(
        f'<input type="radio" name="{key}" id="{key}-{i}" class="pick pick-{i}"'
        f"{' checked' if i == len(names) - 1 else ''}>"
        f'<label for="{key}-{i}">{escape(name)}</label>'
        for i, name in enumerate(names)
    )
    return f'<div class="switch">{picks}<div class="chosen">{content}</div></div>'


def switch_style(count: int) -> str:
    """The rules that hide what is not chosen, for choices between at most `count` rounds."""
    shown = ",".join(f".pick-{i}:checked ~ .chosen .of-{i}" for i in range(count))
    return f"@media screen {{ .of {{ display: none; }} {shown} {{ display: grid; }} }}\n"


def card(name: str, kind: str, pictures: Sequence[str]) -> str:
    """Pictures of one image under its name."""
    return (
        f'<article class="card"><h3>{escape(name)}</h3>'
        f'<div class="pictures {kind}">{"".join(pictures)}</div></article>'
    )


def shown_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a picture of such a size is shown."""
    scale = min(1.0, THUMBNAIL / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def photo(image: np.ndarray, caption: str, name: str, key: str = "") -> str:
    """An image uint8 [H, W, 3], with an id if `key` is given."""
    height, width = shown_size(image.shape[:2])
    shown = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    shown.save(buffer, format="JPEG", quality=90)
    return _picture(
        _uri(buffer.getvalue(), "jpeg"),
        caption,
        name,
        (height, width),
        "photo",
        f' id="{key}"' if key else "",
    )


def label_map(labels: np.ndarray, caption: str, name: str, palette: np.ndarray) -> str:
    """A map of an image's size, uint8 [H, W], in colours uint8 [K, 3]; what has none is black."""
    size = shown_size(labels.shape)
    small = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    small.putpalette(
        np.vstack([palette, np.zeros((256 - len(palette), 3))]).astype(np.uint8).tobytes()
    )
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return _picture(_uri(buffer.getvalue()), caption, name, size, "labels")


def enlarged(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map uint8 [h, w] of the features' size at that of a picture, as `resize_labels` does it."""
    return resize_labels(torch.from_numpy(labels)[None], size, align_corners=True)[0].numpy()


def _picture(
    uri: str, caption: str, name: str, size: tuple[int, int], kind: str, key: str = ""
) -> str:
    height, width = size
    return (
        f'<figure><img class="{kind}" src="{uri}" width="{width}" height="{height}"{key} '
        f'alt="{escape(f"{name}: {caption}")}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
