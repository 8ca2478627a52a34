"""Runs that learn from a file of pseudo-labels: supervised and distillation; what is refused."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_bitwise
from tiny_runs import (
    LABELS,
    PERIOD,
    configuration,
    state_of,
    train_tiny,
    without_extras,
    without_learning,
)

from jaxmatch.config.checks import check_settings
from jaxmatch.config.own import with_usual_input
from jaxmatch.config.saved import run_name, to_json
from jaxmatch.data.resident import resident
from jaxmatch.errors import InputError
from jaxmatch.evaluation.pseudo_label import make
from jaxmatch.record import pseudo_labels, run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.step import ByIndex
from jaxmatch.training.frozen import logits_of_pool
from jaxmatch.training.train import chosen, prepare

SHORT = {"steps": PERIOD, "devices": 1}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def table(data, tmp_path_factory):
    """Random pseudo-labels of the unlabeled images, one of which was not readable."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    with without_learning():
        train_tiny(data, folder, method="supervised", **SHORT)
    found, _ = make([folder])
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), len(found.names)).astype(np.float32)
    labels = probabilities.argmax(1)
    labels[3], probabilities[3] = -1, np.nan
    confidence = probabilities.max(1)
    return replace(found, probabilities=probabilities, labels=labels, confidence=confidence)


@pytest.fixture(params=["p.csv", "p.npz"])
def file(request, table, tmp_path):
    pseudo_labels.write(tmp_path / request.param, table, False)
    return tmp_path / request.param


@pytest.fixture
def one_file(table, tmp_path):
    pseudo_labels.write(tmp_path / "p.csv", table, False)
    return tmp_path / "p.csv"


def data_of(data, file, **options):
    config, _ = settled(configuration(data, data__pseudo_labels=file, **options))
    return run_data.with_pseudo_labels(config, run_data.load_new(config))


def test_supervised_learns_from_both_kinds_of_labels(data, file, table):
    found = data_of(data, file, method="supervised")
    arrays = np.load(data)
    true, rows = found.split.indices, list(map(int, table.names))
    assert found.pseudo is not None
    assert (len(true), len(rows), len(found.pseudo.rows)) == (LABELS, 48, 47)
    images = resident(found.source, found.split, True, found.more)
    kept = [row for number, row in enumerate(rows) if number != 3]
    expected = arrays["x_train"][[*true, *kept]]
    np.testing.assert_array_equal(images.labeled_images.images, expected)
    labels = [*arrays["y_train"][true], *np.delete(table.labels, 3)]
    np.testing.assert_array_equal(images.labeled_labels, labels)
    assert found.facts().labels == tuple(labels)
    assert list(found.labels()) == list(arrays["y_train"][true])  # baselines see only these


@pytest.mark.parametrize("include_labeled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_targets_of_distillation_are_those_of_the_file(data, file, table, include_labeled):
    found = data_of(data, file, method="distillation", data__include_labeled=include_labeled)
    assert len(found.more[0]) == 0
    logits = logits_of_pool(found)
    images = resident(found.source, found.split, include_labeled)
    assert len(logits) == len(images.unlabeled_images)
    arrays = np.load(data)
    rows = {int(name): number for number, name in enumerate(table.names)}
    pool = np.asarray(images.unlabeled_images.images)
    for image, row in zip(pool, np.asarray(jax.nn.softmax(logits)), strict=True):
        (place,) = [at for at in range(64) if np.array_equal(arrays["x_train"][at], image)]
        if place not in rows:  # a labeled image keeps its true label
            expected = np.eye(4)[arrays["y_train"][place]]
        elif rows[place] == 3:
            expected = np.full(4, 0.25)
        else:
            expected = table.probabilities[rows[place]]
        np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [4])
def test_a_step_of_distillation_compares_with_the_row_of_its_image(
    data, one_file, devices, tmp_path
):
    options = {"method": "distillation", "data__pseudo_labels": one_file, "devices": devices}
    config = configuration(data, **options)
    config, _ = chosen(config, tmp_path / "run")
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        run = prepare(config, tmp_path / "run", checkpoints, 0.0)
        state, _ = run.begin()
        program, frozen = run.program, run.data.frozen
        assert isinstance(program.frozen["teacher"], ByIndex)
        batch = program.examples(run.data, state)
        views, _ = program.augment.apply((), jax.random.key(0), batch)
        (found,) = (program.frozen["teacher"](frozen["teacher"], views.unlabeled.index),)
        table = logits_of_pool(run_data.with_pseudo_labels(config, run_data.load_new(config)))
        np.testing.assert_array_equal(found.logits, table[np.asarray(views.unlabeled.index)])
        _, metrics = program.step(state, batch)
        assert jnp.isfinite(metrics["loss/distillation"])
        assert program.forward_images(run.data) == 8 + 16  # none of the frozen network


def test_a_run_goes_on_with_no_other_file(data, one_file, table, tmp_path):
    options = {"method": "supervised", "data__pseudo_labels": one_file, **SHORT}
    with without_learning():
        train_tiny(data, tmp_path / "run", **options)
    assert list(RunFolder(tmp_path / "run").read_facts().frozen) == ["pseudo_labels"]
    (tmp_path / "run" / "summary.json").unlink()
    changed = replace(table, labels=np.where(table.labels < 0, -1, 0))
    pseudo_labels.write(tmp_path / "q.csv", changed, False)
    for other in (tmp_path / "q.csv", ""):
        with pytest.raises(InputError, match=r"data\.pseudo_labels is not the file that .*run"):
            train_tiny(data, tmp_path / "run", **(options | {"data__pseudo_labels": other}))
    moved = shutil.copy(one_file, tmp_path / "moved.csv")
    train_tiny(data, tmp_path / "run", **(options | {"data__pseudo_labels": moved}))
    findings = RunFolder(tmp_path / "run").read_findings()
    assert any("pseudo-labels of 47 unlabeled images" in note for note in findings["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["supervised", "distillation"])
def test_a_run_resumes_with_its_file_and_with_no_other(method, data, one_file, table, tmp_path):
    options = {"method": method, "data__pseudo_labels": one_file, "steps": 2 * PERIOD}
    options["devices"] = 1
    train_tiny(data, tmp_path / "whole", **options)
    facts = RunFolder(tmp_path / "whole").read_facts()
    assert list(facts.frozen) == ["pseudo_labels"]
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / str(2 * PERIOD))
    (tmp_path / "half" / "summary.json").unlink()
    moved = tmp_path / "moved.csv"
    shutil.copy(one_file, moved)
    changed = replace(table, labels=np.where(table.labels < 0, -1, 0))
    pseudo_labels.write(tmp_path / "q.csv", changed, False)
    for other in ({"data__pseudo_labels": tmp_path / "q.csv"}, {"data__pseudo_labels": ""}):
        if method == "distillation" and not other["data__pseudo_labels"]:
            continue  # then it asks for a teacher
        with pytest.raises(InputError, match=r"data\.pseudo_labels is not the file that .*half"):
            train_tiny(data, tmp_path / "half", **(options | other))
    train_tiny(data, tmp_path / "half", **(options | {"data__pseudo_labels": moved}))
    assert_bitwise(state_of(tmp_path / "whole"), state_of(tmp_path / "half"))
    findings = RunFolder(tmp_path / "whole").read_findings()
    assert findings is not None
    assert any("pseudo-labels of 47 unlabeled images" in note for note in findings["notes"])


def test_files_of_other_images_or_classes_are_refused(data, table, tmp_path):
    def refused(message, method="supervised", **changed):
        pseudo_labels.write(tmp_path / "x.csv", replace(table, **changed), False)
        with pytest.raises(InputError, match=message):
            data_of(data, tmp_path / "x.csv", method=method)

    refused("is of other classes", classes=("0", "1", "2", "x"))
    contents = ("0" * 16, *table.contents[1:])
    refused(f"made from images of other content: '{table.names[0]}'", contents=contents)
    names = ("64", *table.names[1:])
    refused("no training images of this run: '64'", names=names)
    labeled = next(str(row) for row in range(64) if str(row) not in table.names)
    names = (labeled, *table.names[1:])
    refused(f"has no row for unlabeled images of this run: '{table.names[0]}'", names=names)
    probabilities = table.probabilities.copy()
    probabilities[0] = 0.5
    refused("not numbers that add up to 1", probabilities=probabilities)
    refused("names an image twice", names=(table.names[1], *table.names[1:]))
    with pytest.raises(InputError, match="cannot be read"):
        data_of(data, tmp_path / "nowhere.csv", method="supervised")
    (tmp_path / "y.csv").write_text("path,class\na,b\n")
    with pytest.raises(InputError, match="is no file of pseudo-labels"):
        data_of(data, tmp_path / "y.csv", method="supervised")


def test_a_labeled_image_keeps_its_label_even_if_the_file_has_another(data, table, tmp_path):
    labeled = next(row for row in range(64) if str(row) not in table.names)
    more = replace(
        table,
        names=(*table.names, str(labeled)),
        contents=(*table.contents, table.contents[0]),
        labels=np.append(table.labels, (np.load(data)["y_train"][labeled] + 1) % 4),
        confidence=np.append(table.confidence, np.float32(1)),
        probabilities=np.concatenate([table.probabilities, table.probabilities[:1]]),
    )
    pseudo_labels.write(tmp_path / "x.csv", more, False)
    found = data_of(data, tmp_path / "x.csv", method="supervised")
    assert found.pseudo is not None
    assert labeled not in found.source.rows[found.pseudo.rows]
    assert found.pseudo.probabilities[labeled].argmax() == np.load(data)["y_train"][labeled]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("fixmatch", {}, "fixmatch makes its own labels of the unlabeled images"),
        ("simclr", {"chosen": ""}, "data.pseudo_labels is for supervised"),
        (
            "distillation",
            {"frozen__teacher": "x"},
            r"takes the place of frozen\.teacher=x",
        ),
    ],
)
def test_methods_that_have_no_use_for_it_refuse_it(method, options, expected):
    config = configuration("digits", method=method, data__pseudo_labels="p.csv", **options)
    with pytest.raises(InputError, match=expected):
        check_settings(with_usual_input(config))


def test_runs_without_it_keep_their_names():
    config = configuration("digits")
    name = run_name(config)
    values = to_json(config)
    assert values["data"]["pseudo_labels"] == ""
    config.data.pseudo_labels = "p.csv"
    assert run_name(config) != name
