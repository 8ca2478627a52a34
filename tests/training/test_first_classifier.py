"""The first classifier: fitted to the labeled features of the encoder that a run begins from."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_close, on_host
from scipy.special import softmax
from tiny_runs import configuration, state_of, train_tiny, without_extras, without_learning

import jaxmatch
from jaxmatch import load
from jaxmatch.config.checks import check_settings
from jaxmatch.config.flags import from_flags
from jaxmatch.config.own import with_usual_input
from jaxmatch.config.saved import complete, identity, run_name, to_json
from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.evaluation import linear, probe
from jaxmatch.report.page import report
from jaxmatch.report.scores import ending
from jaxmatch.runtime.checkpoint import Checkpoints
from jaxmatch.training import together
from jaxmatch.training.run import Run
from jaxmatch.training.train import chosen, prepare

INPUT = {
    "data__mean": (0.5,),
    "data__std": (0.25,),
    "model__bn_decay": 0.9,
    "devices": 1,
}
CLASSIFIER = ("kernel", "bias")


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """A run without labels whose head has two layers; nobody reads its probes."""
    folder = tmp_path_factory.mktemp("pretrained") / "simclr_v2"
    with without_learning(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "evaluate", lambda *_: {})
        patch.setattr(Run, "with_probes", lambda *_: {})
        train_tiny(data, folder, method="simclr_v2", chosen="", steps=5, **INPUT)
    return folder


@contextlib.contextmanager
def begun(data, pretrained, folder, **options):
    """A run before its first step, and its state on the host."""
    options = {"method": "supervised"} | INPUT | options
    config = configuration(data, init_from=pretrained, **options)
    found, _ = chosen(config, folder)
    with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        run = prepare(found, folder, checkpoints, 0.0)
        yield run, run.begin()[0]


def labeled(run):
    rows = splits.locate(run.source, run.split)
    return run.source.images[rows], run.source.labels[rows]


@pytest.mark.parametrize(
    ("kind", "devices"), [("means", 4), pytest.param("logistic", 1, marks=pytest.mark.slow)]
)
def test_logits_are_those_of_the_fitted_classifier(kind, devices, data, pretrained, tmp_path):
    options = {"classifier_init": kind, "devices": devices, "model__zero_classifier": True}
    with begun(data, pretrained, tmp_path / "run", **options) as (run, state):
        images, labels = labeled(run)
        features = probe.features(load(pretrained), images)
        if kind == "means":
            fitted = linear.class_means(features, labels, 4)
            fit = lambda x, y: linear.class_means(x, y, 4)  # noqa: E731
        else:
            strength = linear.best_strength(features, labels, 4, run.config.seed)
            fit = lambda x, y: linear.logistic(x, y, 4, strength)  # noqa: E731
            fitted = fit(features, labels)
        temperature = linear.temperature(fit, features, labels, run.config.seed)
        expected = fitted.divided(temperature).logits(features)
        for network in ("teacher", "student"):
            variables = state.teacher if network == "teacher" else state.student()
            views = (images / 255.0 - 0.5) / 0.25
            outputs, _ = run.program.network(variables, views.astype(np.float32), train=False)
            assert_close(np.asarray(outputs.logits), expected, 2e-3)
        buffers = {id(leaf) for leaf in jax.tree.leaves(state.params)}
        assert not buffers & {id(leaf) for leaf in jax.tree.leaves(state.teacher)}


def test_only_the_classifier_differs_from_a_random_start(data, pretrained, tmp_path):
    states = {}
    for kind in ("random", "means"):
        with begun(data, pretrained, tmp_path / kind, classifier_init=kind) as (_, state):
            states[kind] = on_host(state)
    one, other = states.values()
    differing = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        )
        if not np.array_equal(a, b)
    }
    assert differing == {
        f"{place}/classifier/{name}"
        for place in ("params", "teacher/params")
        for name in CLASSIFIER
    }


def test_the_classifier_that_labels_is_fitted_beside_the_balanced_one(data, pretrained, tmp_path):
    options = {"method": "fixmatch", "classifier_init": "means", "unequal__abc": 1.0}
    with begun(data, pretrained, tmp_path / "abc", **options) as (_, state):
        for params in (state.params, state.teacher["params"]):
            for name in CLASSIFIER:
                fitted = np.asarray(params["classifier"][name])
                np.testing.assert_array_equal(params["ordinary"]["dense"][name], fitted)
                assert fitted.any()


@pytest.mark.slow
def test_a_method_whose_heads_have_outputs_for_each_class(data, pretrained, tmp_path):
    options = {"method": "iomatch", "classifier_init": "means"}
    with begun(data, pretrained, tmp_path / "run", **options) as (run, state):
        images, labels = labeled(run)
        views = ((images / 255.0 - 0.5) / 0.25).astype(np.float32)
        outputs, _ = run.program.network(state.student(), views, train=False)
        assert np.mean(np.asarray(outputs.logits).argmax(1) == labels) > 0.6  # chance is 0.25


def test_a_kept_head_lies_before_the_classifier(data, pretrained, tmp_path):
    options = {"model__head_layers": 1, "classifier_init": "means", "method": "supervised"}
    with begun(data, pretrained, tmp_path / "run", **options) as (run, state):
        images, labels = labeled(run)
        views = ((images / 255.0 - 0.5) / 0.25).astype(np.float32)
        outputs, _ = run.program.network(state.student(), views, train=False)
        found = np.asarray(outputs.logits).argmax(1)
        assert np.mean(found == labels) > 0.6  # chance is 0.25


@pytest.mark.slow
def test_a_given_temperature_divides_the_logits(data, pretrained, tmp_path):
    kernels = {}
    for number in (1.0, 4.0):
        options = {"classifier_init": "means", "classifier_temperature": number}
        with begun(data, pretrained, tmp_path / str(number), **options) as (_, state):
            kernels[number] = np.asarray(state.params["classifier"]["kernel"])
    assert_close(kernels[1.0], kernels[4.0] * 4, 1e-6)


@pytest.mark.slow
def test_each_seed_of_one_program_has_a_classifier_of_its_own_labels(data, pretrained, tmp_path):
    options = {
        "init_from": pretrained,
        "classifier_init": "means",
        "method": "supervised",
        "steps": 5,
        **INPUT,
        "devices": 2,
    }
    runs = [(configuration(data, seed=seed, **options), tmp_path / str(seed)) for seed in (0, 1)]
    together.train(runs)
    train_tiny(data, tmp_path / "alone", seed=1, **options)
    ours, theirs = (state_of(tmp_path / name).params["classifier"] for name in ("1", "alone"))
    assert_close(ours, theirs, 1e-4)
    for seed in (0, 1):
        log = (tmp_path / str(seed) / "log.txt").read_text()
        assert "the classifier starts from class means of 16 labeled images" in log
    kernels = [state_of(tmp_path / str(seed)).params["classifier"]["kernel"] for seed in (0, 1)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_a_resumed_run_keeps_its_classifier(data, pretrained, tmp_path):
    folder = tmp_path / "run"
    options = {"init_from": pretrained, "classifier_init": "means", "method": "supervised", **INPUT}
    with without_learning():
        train_tiny(data, folder, steps=10, **options)
    text = (folder / "log.txt").read_text()
    assert text.count("the classifier starts from") == 1
    state = state_of(folder, 5)
    assert state.params["classifier"]["kernel"].shape[1] == 4
    with pytest.raises(InputError, match="classifier_init: means -> logistic"):
        train_tiny(data, folder, steps=10, **(options | {"classifier_init": "logistic"}))


@pytest.mark.slow
def test_it_is_more_confident_and_right_than_a_random_start(data, pretrained, tmp_path):
    """What a threshold needs: confidence on images that the labels say nothing about."""
    found = {}
    for kind in ("random", "means", "logistic"):
        with begun(data, pretrained, tmp_path / kind, classifier_init=kind) as (run, state):
            images = run.source.test_images
            views = ((images / 255.0 - 0.5) / 0.25).astype(np.float32)
            outputs, _ = run.program.network(state.teacher, views, train=False)
            p = softmax(np.asarray(outputs.logits), axis=1)
            found[kind] = p.max(1).mean(), np.mean(p.argmax(1) == run.source.test_labels)
    for kind in ("means", "logistic"):
        assert found[kind][0] > found["random"][0]
        assert found[kind][1] > 0.7 > found["random"][1]


@pytest.mark.slow
def test_unused_unlabeled_images_are_told_once(data, pretrained, tmp_path):
    folder = tmp_path / "run"
    options = {"init_from": pretrained, "algorithm__threshold": 1.0, **INPUT}
    summary = train_tiny(data, folder, **options)
    assert summary["unlabeled_unused"] == {"since": 0, "step": 20}
    told = "no unlabeled image has passed the threshold"
    assert (folder / "log.txt").read_text().count(told) == 1
    assert "step 15: since step 0" in (folder / "log.txt").read_text()
    for step in (15, 20):  # the run goes on from before and from after the message
        shutil.copytree(folder, tmp_path / str(step))
        for newer in range(step + 5 if step == 15 else 25, 25, 5):
            shutil.rmtree(tmp_path / str(step) / "checkpoints" / str(newer))
        (tmp_path / str(step) / "summary.json").unlink()
        again = train_tiny(data, tmp_path / str(step), **options)
        assert again["unlabeled_unused"] == summary["unlabeled_unused"]
        assert (tmp_path / str(step) / "log.txt").read_text().count(told) == 1
    text = report([folder], tmp_path / "r.html")[0].read_text()
    assert "at the end no unlabeled image passed the threshold (seeds 0)" in text
    assert any("passed the threshold after step 0" in line for line in ending(folder, summary))


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("fixmatch:digits", {"classifier_init": "means"}, r"give init_from=RUN_OR_FILE"),
        ("simclr:digits", {"classifier_init": "means", "init_from": "x"}, "simclr reads none"),
        ("fixmatch:digits", {"classifier_init": "mean"}, "did you mean 'means'"),
        ("fixmatch:digits", {"classifier_temperature": -1.0}, "must be at least 0"),
        (
            "fixmatch:digits",
            {
                "classifier_init": "means",
                "init_from": "x",
                "unequal.abc": 1.0,
                "model.head_layers": 1,
            },
            "two read different features; set model.head_layers=0",
        ),
    ],
)
def test_what_cannot_work_is_refused(text, overrides, expected):
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    with pytest.raises(InputError, match=expected):
        check_settings(with_usual_input(from_flags(text, flags)[0]))


def test_runs_of_before_keep_their_names_and_settings():
    config = jaxmatch.config("fixmatch:digits", labels=40)
    old = to_json(config)
    name = run_name(config)
    for key in ("classifier_init", "classifier_temperature"):
        del old[key]
    assert "classifier_init" not in identity(to_json(config))
    found = complete(json.loads(json.dumps(old)))
    assert (found.classifier_init, found.classifier_temperature) == ("random", 0.0)
    config.classifier_init = "means"
    assert run_name(config) != name
