"""Figures show their numbers, and repeat exactly."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.text import Text
from PIL import Image

from cag.analysis import plots
from cag.analysis.fonts import FIRST, fonts_for
from cag.analysis.threshold_figures import (
    pseudo_label_quality_figure,
    threshold_curves_figure,
)

NAMES = ("road", r"$\car$", "train")  # no formula


def coverage(anchor=(60, 20, 0)):
    return pd.DataFrame(
        {
            "class": NAMES,
            "nearest": [100, 40, 0],
            "anchor": anchor,
            "probability": [80, 10, 0],
            "agree": [50, 10, 0],
        }
    )


def curve(columns=("loss", "source_ce")):
    iterations = np.arange(1, 31)
    return pd.DataFrame({"iteration": iterations, **{name: 1 / iterations for name in columns}})


def threshold_curves():
    """Two thresholds of each rule for NAMES and `all`; the last class is never labelled."""
    rules = ("margin", "relative_margin", "quantile", "probability")
    rows = [
        (rule, t, name, pixels, pixels / 10, t / 2, 1 - t)
        for rule in rules
        for t in (0.25, 0.5)
        for name, pixels in {
            **dict.fromkeys(NAMES, 0),
            NAMES[0]: int(8 * t),
            NAMES[1]: int(4 * t),
            "all": int(12 * t),
        }.items()
    ]
    columns = ["rule", "threshold", "class", "pixels", "share", "class_threshold", "precision"]
    return pd.DataFrame(rows, columns=columns)


FIGURES = (
    "confusion",
    "miou",
    "per_class",
    "coverage",
    "curves",
    "thresholds",
    "quality",
    "inspect",
    "sweep",
)
CONFIGURED = {"margin": None, "relative_margin": 0.25, "quantile": None, "probability": 0.5}


def figure(name, theme=plots.LIGHT):
    table = pd.DataFrame({"model": ["a", "b"], "miou": [0.3, 0.5], "change": [np.nan, 0.2]})
    confusion = np.array([[9, 1, 0], [2, 2, 0], [0, 0, 0]])
    before, after = np.array([0.2, 0.6, np.nan]), np.array([0.5, 0.4, np.nan])
    drawn = {
        "confusion": lambda: plots.confusion_figure(confusion, NAMES, theme),
        "miou": lambda: plots.miou_figure(table, theme),
        "per_class": lambda: plots.per_class_figure(before, after, NAMES, theme),
        "coverage": lambda: plots.coverage_figure({"round1": coverage()}, theme),
        "curves": lambda: plots.curves_figure({"a": curve()}, theme),
        "thresholds": lambda: threshold_curves_figure(
            threshold_curves().query("`class` != 'all'"), NAMES, np.eye(3) * 200, CONFIGURED, theme
        ),
        "quality": lambda: pseudo_label_quality_figure(threshold_curves(), CONFIGURED, theme),
        "inspect": lambda: inspection(theme),
        "sweep": lambda: sweep(theme),
    }
    return drawn[name]()


def sweep(theme=plots.LIGHT):
    rows = pd.DataFrame({"margin": [1.0, 2.0], "round1.miou": [0.2, 0.3]})
    rows["round1.coverage.anchor"] = [0.6, 0.4]
    rows["round1.precision.anchor"] = np.nan
    return plots.sweep_figure([("", rows), ("agreement True", rows[:1])], "margin", theme)


def inspection(theme=plots.LIGHT):
    pictures = {"image": np.full((8, 16, 3), 90, np.uint8), "heat": np.linspace(0, 1, 128)}
    pictures["heat"] = pictures["heat"].reshape(8, 16)
    return plots.inspection_figure(pictures, {NAMES[1]: (128, 64, 128)}, (3, 2), "a", theme)


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=["light", "dark"])
def test_figure_is_drawn_and_its_bytes_repeat(name, theme):
    first, second = (plots.png_bytes(figure(name, theme)) for _ in range(2))
    pixels = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    assert first == second
    # Something stands on the background, and the background is the theme's.
    assert (pixels != pixels[0, 0]).any(axis=-1).mean() > 0.005
    assert "#" + bytes(pixels[0, 0]).hex() == theme.surface


def test_a_users_matplotlibrc_changes_nothing():
    expected = plots.png_bytes(figure("confusion"))
    theirs = {"text.usetex": True, "savefig.bbox": "tight", "savefig.transparent": True}
    with rc_context({**theirs, "font.family": "serif", "axes.grid": True}):
        assert plots.png_bytes(figure("confusion")) == expected


def test_saved_file_names_no_program_or_date(tmp_path):
    plots.save_png(figure("miou"), tmp_path / "miou.png")
    with Image.open(tmp_path / "miou.png") as picture:
        assert set(picture.info) == {"dpi"}


def test_confusion_rows_are_shares_of_the_truth():
    axes = figure("confusion").axes[0]
    shares = axes.images[0].get_array().filled(np.nan)
    np.testing.assert_allclose(shares, [[0.9, 0.1, 0], [0.5, 0.5, 0], [np.nan] * 3])
    assert sorted(texts(axes)) == ["10", "50", "50", "90"]


def test_miou_bars_carry_the_values_and_changes():
    axes = figure("miou").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.5]
    assert texts(axes) == ["30.0", "50.0   (+20.0)"]
    source_only, adapted = (bar.get_facecolor() for bar in axes.patches)
    assert source_only != adapted


def test_per_class_sorts_by_change_and_marks_losses():
    before, after = np.array([0.6, 0.2, np.nan]), np.array([0.4, 0.5, np.nan])
    figure = plots.per_class_figure(before, after, NAMES)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [NAMES[1], "road", "train"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["before", "after (lower)", "after (higher)"]


def test_coverage_shares_by_hand():
    shares = plots.coverage_shares(coverage()).set_index("class")
    assert shares.loc["road"].tolist() == [0.6, 0.8, 50 / 90]
    assert shares.loc[NAMES[1]].tolist() == [0.5, 0.25, 0.5]
    assert shares.loc["train"].isna().all()
    assert shares.loc["all classes"].tolist() == [80 / 140, 90 / 140, 60 / 110]


def test_share_relative_to_no_pixel_is_undefined():
    shares = plots.coverage_shares(coverage(anchor=(60, 20, 5)))
    assert np.isnan(shares.set_index("class").at["train", "anchor"])


def test_coverage_keeps_values_beyond_the_axis_visible():
    figure = plots.coverage_figure({"round1": coverage(anchor=(300, 20, 0))})
    points = np.concatenate([dots.get_offsets() for dots in figure.axes[0].collections])
    beyond = points[points[:, 0] > 1.05]
    assert beyond.tolist() == [[1.1, 0.0], [1.1, 3.0]]  # road, and all classes: 320 / 140


def test_curves_draw_each_quantity_once_and_the_learning_rate_last():
    figure = plots.curves_figure(
        {"a": curve(("learning_rate", "loss")), "b": curve(("learning_rate", "loss", "target_ce"))}
    )
    assert [axes.get_title() for axes in figure.axes] == ["loss", "target ce", "learning rate"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert len(figure.axes[0].lines) == 4 and len(figure.axes[1].lines) == 2


def test_curve_of_an_empty_table_draws():
    assert plots.png_bytes(plots.curves_figure({"a": curve().head(0)}))


def test_threshold_curves_draw_each_class_and_the_threshold_in_use():
    margin, relative, quantile, _ = figure("thresholds").axes
    assert [len(axes.lines) for axes in (margin, relative, quantile)] == [4, 5, 3]
    assert texts(margin) == [] and texts(relative) == ["0.25"]
    np.testing.assert_allclose(margin.lines[0].get_ydata(), [0.2, 0.4])
    np.testing.assert_allclose(margin.lines[3].get_ydata(), [0.5, 1])  # all: 3 and 6 pixels
    np.testing.assert_allclose(quantile.lines[0].get_ydata(), [0.125, 0.25])


def test_quality_marks_the_threshold_in_use():
    whole, first, *_ = figure("quality").axes
    assert (whole.get_title(), first.get_title()) == ("all classes", NAMES[0])
    np.testing.assert_allclose(first.lines[1].get_xydata(), [[0.2, 0.75], [0.4, 0.5]])
    points = [dots.get_offsets().tolist() for dots in first.collections]
    assert points == [[[0.2, 0.75]], [[0.4, 0.5]]]


def test_classes_may_be_called_all_or_begin_with_an_underscore():
    table, odd = threshold_curves(), ("_background_", "all", "train")
    named = table.assign(**{"class": table["class"].replace(dict(zip(NAMES, odd, strict=True)))})
    quality = pseudo_label_quality_figure(named, CONFIGURED)
    assert [axes.get_title() for axes in quality.axes] == ["all classes", *odd]
    for axes, plain in zip(quality.axes, figure("quality").axes, strict=True):
        for line, other in zip(axes.lines, plain.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    rows = named[table["class"] != "all"]
    drawn = threshold_curves_figure(rows, odd, np.eye(3) * 200, CONFIGURED)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [*odd, "all classes"]


def test_a_threshold_far_beyond_the_curves_is_an_arrow_at_their_end():
    rows, far = threshold_curves().query("`class` != 'all'"), CONFIGURED | {"relative_margin": 60.0}
    drawn = threshold_curves_figure(rows, NAMES, np.eye(3) * 200, far)
    plots.png_bytes(drawn)  # a warning, here an error, where the text leaves the plots no room
    texts = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in drawn.axes}
    assert sorted(texts.values()) == [[], [], ["0.5"], ["60 \N{RIGHTWARDS ARROW}"]]


def test_quality_of_nothing_says_so():
    figure = pseudo_label_quality_figure(threshold_curves().iloc[:0], CONFIGURED)
    assert [text.get_text() for text in figure.texts][0] == "no labelled validation images"


def test_inspection_marks_the_pixel_in_each_picture():
    axes = figure("inspect").axes[:2]
    assert [one.get_title() for one in axes] == ["image", "heat"]
    for one in axes:
        assert {tuple(line.get_xydata()[0]) for line in one.lines} == {(3, 2)}


def test_sweep_draws_what_is_known_against_the_parameter():
    drawn = figure("sweep")
    scores, precision, coverage = drawn.axes
    np.testing.assert_allclose(scores.lines[0].get_xydata(), [[1, 0.2], [2, 0.3]])
    np.testing.assert_allclose(coverage.lines[1].get_xydata(), [[1, 0.6]])
    assert not precision.lines and scores.get_xticks().tolist() == [1, 2]
    legend = dict(
        zip(map(Text.get_text, drawn.legends[0].texts), drawn.legends[0].get_lines(), strict=True)
    )
    assert list(legend) == ["round1", "round1 anchor", "agreement True"]
    assert legend["round1 anchor"].get_color() == coverage.lines[1].get_color()
    assert legend["agreement True"].get_linestyle() == coverage.lines[1].get_linestyle() == "--"


def test_panel_places_each_picture_in_its_cell():
    red, green = (np.full((32, 64, 3), color, np.uint8) for color in ((255, 0, 0), (0, 255, 0)))
    blue = np.full((64, 128, 3), (0, 0, 255), np.uint8)  # another size: scaled to the first's
    panel = plots.panel([[red, green], [green, blue]], ["image", "truth"], gap=6)
    top = panel.shape[0] - 2 * (32 + 6)
    assert panel.shape[1] == 2 * (64 + 6) + 6 and panel.dtype == np.uint8
    for row, column, expected in ((0, 0, red), (0, 1, green), (1, 0, green), (1, 1, blue)):
        y, x = top + row * 38, 6 + column * 70
        cell = panel[y : y + 32, x : x + 64]
        assert (cell == expected[0, 0]).all()
    assert (panel[:top] < 128).any()  # titles are written above


def test_panel_enlarges_label_colours_without_inventing_any():
    labels = np.random.default_rng(0).choice([0, 255], (8, 16, 1)).astype(np.uint8).repeat(3, 2)
    panel = plots.panel([[np.zeros((32, 64, 3), np.uint8), labels]], ["image", "truth"], gap=6)
    assert set(np.unique(panel[-38:-6, 76:140])) == {0, 255}


@pytest.mark.parametrize("rows", [[], [[np.zeros((4, 4, 3), np.uint8)]]])
def test_panel_refuses_rows_that_do_not_fit(rows):
    with pytest.raises(ValueError, match="at least one row, and 2 pictures"):
        plots.panel(rows, ["image", "truth"])


def test_a_figure_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "plot.png"
    path.write_bytes(b"before")
    monkeypatch.setattr(plots, "png_bytes", lambda figure: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plots.save_png(None, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


# Many classes, and names in any script

UNDRAWABLE = "\U0010fffd"  # in no font
MANY_NAMES = [f"class number {i}" for i in range(150)]


def many_curves(names):
    return pd.DataFrame(
        [
            (rule, t, name, number, t, t, t)
            for rule in ("margin", "relative_margin", "quantile", "probability")
            for t in (0.25, 0.5)
            for number, name in enumerate([*names, "all"])
        ],
        columns=["rule", "threshold", "class", "pixels", "share", "class_threshold", "precision"],
    )


def test_a_legend_of_many_classes_fits_its_figure():
    curves = many_curves(MANY_NAMES).query("`class` != 'all'")
    palette = np.full((150, 3), 200)
    figure = threshold_curves_figure(curves, MANY_NAMES, palette, CONFIGURED)
    plots.png_bytes(figure)  # a legend larger than the figure would be a warning, here an error
    (legend,) = figure.legends
    inches = legend.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    width, height = figure.get_size_inches()
    assert inches.height < height and inches.width < width / 2


def test_of_many_classes_the_largest_have_a_plot_of_precision():
    figure = pseudo_label_quality_figure(many_curves(MANY_NAMES), CONFIGURED)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["all classes", *MANY_NAMES[-plots.MANY :]]
    assert "the largest 24 of 150 classes" in figure.get_supxlabel()


def test_a_confusion_matrix_of_the_most_classes_is_a_picture_that_opens():
    names = [str(i) for i in range(254)]
    figure = plots.confusion_figure(np.eye(254), names)
    assert np.prod(figure.get_size_inches() * plots.DPI) < 40e6  # Pillow's limit is 89 million
    assert figure.axes[0].get_yticklabels()[0].get_size() > 5
    assert plots.confusion_figure(np.eye(24), names[:24]).get_size_inches()[0] == 2.6 + 0.34 * 24


def test_letters_come_from_a_font_that_has_them():
    first, *more = fonts_for("ᶁ road") or [None]  # in STIX, which comes with matplotlib
    assert first == FIRST and more
    assert fonts_for("road дорога طريق é") == (FIRST,)
    drawn = plots.confusion_figure(np.eye(2), ["ᶁ road", "sky"])
    plots.png_bytes(drawn)  # without a warning of missing glyphs
    assert set(more) < set(drawn.axes[0].get_yticklabels()[0].get_family())


@pytest.mark.parametrize("name", ["confusion", "per_class", "thresholds", "quality", "coverage"])
def test_a_name_that_no_font_can_draw_is_a_number(name, monkeypatch):
    monkeypatch.setattr("test_plots.NAMES", ("road", UNDRAWABLE, "train"))
    drawn = figure(name)
    plots.png_bytes(drawn)  # without a warning
    texts = {text.get_text() for text in drawn.findobj(Text)}
    assert "class 1" in texts and "class 0" not in texts and UNDRAWABLE not in texts


@pytest.mark.parametrize("name", ["confusion", "per_class", "thresholds", "quality", "coverage"])
def test_a_long_name_is_drawn_shortened_with_its_number(name, monkeypatch):
    monkeypatch.setattr("test_plots.NAMES", ("wide " * 18, "wide " * 20, "train"))
    drawn = figure(name)
    plots.png_bytes(drawn)  # without a warning that nothing is left for the plot
    texts = {text.get_text() for text in drawn.findobj(Text)}
    assert {"wide wide wide wide wide... (0)", "wide wide wide wide wide... (1)"} <= texts


def test_a_title_that_no_font_can_draw_is_spelt():
    picture = {"image": np.zeros((4, 4, 3), np.uint8)}
    drawn = plots.inspection_figure(picture, {}, title=f"photo {UNDRAWABLE}")
    plots.png_bytes(drawn)
    assert drawn.get_suptitle() == "photo \\U0010fffd"
