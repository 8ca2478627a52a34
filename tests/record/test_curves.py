"""Curves: what is drawn of runs with everything, with little and with nothing, and of groups."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxmatch.errors import DiskError
from jaxmatch.record import curves


def lines(keys, steps=40, seed=0):
    noise = np.random.default_rng(seed)
    rising = 1 - np.exp(-np.arange(1, steps + 1) / 8)
    return [
        {"step": 25 * (index + 1), **{key: rise * 0.95 + noise.normal() * 0.01 for key in keys}}
        for index, rise in enumerate(rising)
    ]


EVERYTHING = (
    "loss/total",
    "pseudo/accuracy",
    "unlabeled/weak_accuracy",
    "unlabeled/strong_accuracy",
    "test/teacher/accuracy",
    "test/student/accuracy",
)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, for a look at their artists."""
    figures = []
    save = curves.Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(curves.Figure, "savefig", keep)
    return figures


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_one_run_has_three_panels(tmp_path, drawn):
    curves.plot({"fixmatch": lines(EVERYTHING)}, tmp_path / "deep" / "curves.png")
    with Image.open(tmp_path / "deep" / "curves.png") as image:
        assert image.format == "PNG"
        assert image.size[0] > 1000
    pseudo, unlabeled, test = drawn[0].axes
    assert [len(axes.lines) for axes in (pseudo, unlabeled, test)] == [1, 2, 2]
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        "Pseudo-label accuracy",
        "Unlabeled accuracy",
        "Test accuracy",
    ]
    weak, strong = unlabeled.lines
    assert weak.get_linestyle() == "-"
    assert strong.get_linestyle() != "-"
    teacher, student = test.lines
    assert teacher.get_linewidth() > 2 * student.get_linewidth()
    np.testing.assert_array_equal(teacher.get_xdata(), np.arange(25, 1001, 25))


def test_a_validation_set_is_a_curve_beside_the_test_set(tmp_path, drawn):
    curves.plot({"run": lines([*EVERYTHING, "validation/teacher/accuracy"])}, tmp_path / "c.png")
    test = drawn[0].axes[2]
    assert len(test.lines) == 3
    names = [text.get_text() for text in test.get_legend().texts]
    assert names == ["teacher", "student", "teacher, validation set"]


def test_panels_without_values_are_left_out(tmp_path, drawn):
    supervised = lines(EVERYTHING[-2:])
    curves.plot({"supervised": supervised}, tmp_path / "curves.png")
    (test,) = drawn[0].axes
    assert test.get_title(loc="left") == "Test accuracy"
    assert len(test.lines) == 2
    curves.plot({"supervised": supervised, "fixmatch": lines(EVERYTHING)}, tmp_path / "curves.png")
    assert len(drawn[1].axes) == 3


@pytest.mark.slow
def test_few_values_are_marked(tmp_path, drawn):
    for steps, marker in ((2, "o"), (12, "o"), (13, "None")):
        curves.plot({"run": lines(EVERYTHING, steps=steps)}, tmp_path / "curves.png")
        assert {line.get_marker() for line in drawn[-1].axes[-1].lines} == {marker}


@pytest.mark.slow
def test_panels_stand_below_each_other_on_a_narrow_screen():
    runs = {"fixmatch": [lines([*EVERYTHING, "pseudo/coverage", curves.REPORTED])]}
    sizes = []
    for narrow in (False, True):
        with Image.open(io.BytesIO(curves.comparison(runs, narrow=narrow))) as image:
            sizes.append(image.size)
    (width, height), (narrow_width, narrow_height) = sizes
    assert narrow_width < 0.4 * width
    assert narrow_height > 1.4 * height


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2)), 9]
)
def test_several_runs_have_colors_of_their_own(tmp_path, drawn, number):
    runs = {f"run {index}": lines(EVERYTHING, seed=index) for index in range(number)}
    curves.plot({**runs, "nothing yet": []}, tmp_path / "curves.png")
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.texts] == [*runs, "nothing yet"]
    assert len({str(line.get_color()) for line in drawn[0].axes[0].lines}) == number


def test_a_single_evaluation_is_visible(tmp_path, drawn):
    curves.plot({"short": lines(EVERYTHING, steps=1)}, tmp_path / "curves.png")
    assert drawn[0].axes[2].lines[0].get_marker() == "o"


def test_no_runs(tmp_path):
    curves.plot({}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"curves\.png could not be written"):
        curves.plot({}, tmp_path / "file" / "curves.png")
    (tmp_path / "full.png").symlink_to("/dev/full")
    with pytest.raises(DiskError, match=r"full\.png could not be written \(No space left"):
        curves.plot({"fixmatch": lines(EVERYTHING)}, tmp_path / "full.png")


def test_a_group_is_thin_lines_and_their_bold_mean(drawn):
    runs = [
        lines([*EVERYTHING, "pseudo/coverage", curves.REPORTED], seed=seed) for seed in range(3)
    ]
    picture = curves.comparison({"fixmatch": runs, "simmatch": runs[:1]})
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        assert min(image.size) > 1000
    pseudo, coverage, unlabeled, test = drawn[0].axes
    assert [len(axes.lines) for axes in (pseudo, coverage, unlabeled, test)] == [5, 5, 10, 5]
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["accuracy", "share"] + ["accuracy"] * 2
    assert [axes.get_legend() is None for axes in drawn[0].axes] == [True, True, False, False]
    *seeds, mean, single = test.lines
    assert mean.get_linewidth() > single.get_linewidth() > 2 * seeds[0].get_linewidth()
    assert {line.get_color() for line in seeds} == {mean.get_color()} != {single.get_color()}
    expected = np.mean([[line[curves.REPORTED] for line in run] for run in runs], axis=0)
    np.testing.assert_allclose(mean.get_ydata(), expected)


@pytest.mark.slow
def test_baselines_are_dashed_lines_in_the_panel_of_test_accuracy(drawn):
    every = lines([*EVERYTHING, curves.REPORTED])
    runs = {"fixmatch": [[{**line, curves.REPORTED: 0.1} for line in every]]}
    curves.comparison(runs)
    curves.comparison(runs, {"SVC on pixels": 0.5, "k-NN on pixels": 0.99})
    without, figure = drawn
    for before, after in zip(without.axes[:2], figure.axes[:2], strict=True):
        assert len(before.lines) == len(after.lines)
    test = figure.axes[2]  # there is no coverage
    svc, knn = test.lines[len(without.axes[2].lines) :]
    for line, level in ((svc, 0.5), (knn, 0.99)):
        assert set(line.get_ydata()) == {level}
        assert line.get_linestyle() == "--"
        assert test.get_ylim()[0] < level < test.get_ylim()[1]
    legend = [text.get_text() for text in test.get_legend().texts]
    assert legend == ["reported network", "SVC on pixels", "k-NN on pixels"]


def test_the_mean_is_over_the_steps_that_all_runs_have(drawn):
    runs = [lines([curves.REPORTED], steps=steps) for steps in (10, 4)]
    del runs[0][1][curves.REPORTED]
    curves.comparison({"fixmatch": runs})
    *_, mean = drawn[0].axes[-1].lines
    np.testing.assert_array_equal(mean.get_xdata(), [25, 75, 100])


def test_runs_without_a_step_in_common_have_no_mean(drawn):
    late = [{**line, "step": line["step"] + 1} for line in lines([curves.REPORTED])]
    curves.comparison({"fixmatch": [lines([curves.REPORTED]), late]})
    assert len(drawn[0].axes[-1].lines) == 2


def test_each_loss_has_a_panel_and_a_fitting_scale(drawn):
    values = {"loss/unsupervised": 0.5, "loss/in_batch": -1.0, "loss/total": 1.0}
    recorded = [{"step": step, **values, "loss/supervised": 10.0**-step} for step in range(1, 4)]
    curves.losses({"fixmatch": [recorded], "supervised": [recorded, recorded]})
    axes = drawn[0].axes[:4]
    titles = [one.get_title(loc="left") for one in axes]
    assert titles == ["loss/total", "loss/supervised", "loss/unsupervised", "loss/in_batch"]
    assert [one.get_yscale() for one in axes] == ["linear", "log", "linear", "linear"]
    curves.losses({"no losses": [[{"step": 1}]]})
    assert texts(drawn[1].axes[0]) == ["no values"]


def test_names_are_drawn_as_they_are(tmp_path, drawn):
    names = ["folder:$x^$", "_first", "a$b", "plain"]
    curves.plot({name: lines(EVERYTHING) for name in names}, tmp_path / "curves.png")
    (legend,) = drawn[0].legends
    shown = [text.get_text().replace(r"\$", "$").strip() for text in legend.get_texts()]
    assert shown == names
