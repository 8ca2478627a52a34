"""k-NN and the linear probe against plain NumPy and scikit-learn, and on trained runs."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_close
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from tiny_runs import (
    LABELS,
    STEPS,
    arguments,
    train_tiny,
    without_extras,
    without_learning,
    write_data,
)

import jaxmatch
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import complete
from jaxmatch.data import sources, splits
from jaxmatch.data.source import Reading, Source
from jaxmatch.data.splits import Split
from jaxmatch.errors import InputError
from jaxmatch.evaluation import probe as probing
from jaxmatch.evaluation.forward import make_features
from jaxmatch.evaluation.probe import features, measure, probe, probe_sets
from jaxmatch.runtime.mesh import make_mesh
from jaxmatch.training import ending

ABOUT = ("step", "evaluated", "labels", "all_labels")


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def clusters(seed, train=300, test=120, width=6, classes=3, noise=1.0):
    """Train and test features and labels of overlapping clusters, off the origin."""
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1.5, (classes, width))
    label = random.integers(0, classes, train + test).astype(np.int32)
    x = 2 + centres[label] + random.normal(0, noise, (train + test, width))
    x = (x * random.uniform(0.1, 10, width)).astype(np.float32)
    return x[:train], label[:train], x[train:], label[train:]


def knn_accuracy(train, labels, test, test_labels, *options, devices=1):
    mesh = make_mesh(devices)
    points = [probing.spread(*part, mesh) for part in ((train, labels), (test, test_labels))]
    return probing.knn_accuracy(*points, mesh, *options)


def linear_accuracy(train, labels, test, test_labels, *options, devices=1):
    mesh = make_mesh(devices)
    points = [probing.spread(*part, mesh) for part in ((train, labels), (test, test_labels))]
    return probing.linear_accuracy(*points, mesh, *options)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def knn_in_numpy(train, labels, test, neighbours):
    """The elected class of each row of ``test``, one at a time."""
    train, test, found = unit(train), unit(test), []
    for row in test:
        similarity = train @ row
        nearest = np.argsort(-similarity, kind="stable")[:neighbours]
        ballot = [(0, 0.0)] * (labels.max() + 1)
        for i in nearest:
            votes, total = ballot[labels[i]]
            ballot[labels[i]] = (votes + 1, total + similarity[i])
        found.append(max(range(len(ballot)), key=lambda c: (*ballot[c], -c)))
    return np.array(found)


@pytest.mark.parametrize(
    "neighbours", [1, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 20, 1000))]
)
def test_knn_is_that_of_a_plain_loop(neighbours):
    train, labels, test, _ = clusters(0)
    expected = knn_in_numpy(train, labels, test, neighbours)
    assert knn_accuracy(train, labels, test, expected, neighbours) == 1
    wrong = np.where(np.arange(len(expected)) % 4 == 0, expected + 1, expected)
    assert knn_accuracy(train, labels, test, wrong, neighbours) == 0.75


def test_knn_is_that_of_scikit_learn():
    train, labels, test, test_labels = clusters(1)
    # An odd number of neighbours of two classes never ties.
    labels, test_labels = np.minimum(labels, 1), np.minimum(test_labels, 1)
    theirs = KNeighborsClassifier(21, metric="cosine").fit(train, labels)
    accuracy = theirs.score(test, test_labels)
    assert 0.6 < accuracy < 1
    assert knn_accuracy(train, labels, test, test_labels, 21) == pytest.approx(accuracy)


def test_knn_ties_go_to_the_more_similar_class():
    degrees = np.deg2rad([0, 40, 50, 20.0])
    train = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    labels = np.array([0, 0, 1, 1])
    for angle, elected in ((10, 0), (30, 1)):  # sums of cosines: 1.851, 1.751 and 1.851, 1.925
        query = np.array([[np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))]])
        assert knn_accuracy(train, labels, query, np.array([elected]), 4) == 1


def test_votes_are_no_more_than_the_smallest_class_has():
    """Two images of a class cannot be outvoted by twenty of another, further away."""
    degrees = np.deg2rad([0, 2, *range(30, 50)])
    train = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    labels = np.array([0, 0] + [1] * 20)
    query = np.array([[1.0, 0.01], [0.7, 0.6]])
    truth = np.array([0, 1])
    assert knn_accuracy(train, labels, query, truth) == 1
    assert knn_accuracy(train, labels, query, truth, 20) == 0.5
    unknown = np.where(np.arange(22) == 1, -1, labels)
    assert probing.smallest_class(labels) == 2
    assert probing.smallest_class(unknown) == 1
    many, classes, test, test_labels = clusters(7)
    assert knn_accuracy(many, classes, test, test_labels) == knn_accuracy(
        many, classes, test, test_labels, 20
    )


def test_knn_queries_in_several_batches(monkeypatch):
    train, labels, test, test_labels = clusters(2)
    whole = knn_accuracy(train, labels, test, test_labels)
    monkeypatch.setattr(probing, "QUERIES", 50)
    assert knn_accuracy(train, labels, test, test_labels) == whole


def test_knn_of_features_that_are_zero_or_in_one_class():
    train, labels, test, test_labels = clusters(3)
    assert knn_accuracy(0 * train, labels, 0 * test, test_labels) > 0
    assert knn_accuracy(train, 0 * labels, test, 0 * test_labels) == 1


@pytest.mark.parametrize("penalty", [probing.PENALTY, pytest.param(0.1, marks=pytest.mark.slow)])
def test_linear_is_that_of_scikit_learn(penalty):
    train, labels, test, test_labels = clusters(4, noise=2.0)
    mean, deviation = train.mean(0), train.std(0)
    theirs = LogisticRegression(C=1 / (len(train) * penalty), tol=1e-8, max_iter=1000)
    theirs.fit((train - mean) / deviation, labels)
    weights, bias = probing._fit((train - mean) / deviation, labels, 3, penalty)
    np.testing.assert_allclose(weights, theirs.coef_.T, atol=0.02 * np.abs(theirs.coef_).max())
    np.testing.assert_allclose(bias - bias.mean(), theirs.intercept_, atol=0.02)
    accuracy = theirs.score((test - mean) / deviation, test_labels)
    assert 0.5 < accuracy < 1
    found = linear_accuracy(train, labels, test, test_labels, penalty)
    assert found == pytest.approx(accuracy, abs=1.5 / len(test))


@pytest.mark.slow
def test_linear_converges_on_few_separable_examples():
    train, labels, test, test_labels = clusters(5, train=12, width=40, noise=0.1)
    first, again = (linear_accuracy(train, labels, test, test_labels) for _ in range(2))
    assert first == again > 0.95
    inputs = (train - train.mean(0)) / train.std(0)
    weights, bias = (leaf.astype(float) for leaf in probing._fit(inputs, labels, 3, 1e-3))
    powers = np.exp(inputs @ weights + bias)
    errors = (powers / powers.sum(1, keepdims=True) - np.eye(3)[labels]) / len(labels)
    slopes = inputs.T @ errors + 1e-3 * weights, errors.sum(0)
    assert np.sqrt(sum((slope**2).sum() for slope in slopes)) < 2 * probing.TOLERANCE


def test_linear_of_features_that_never_change():
    train, labels, test, test_labels = clusters(6)
    train[:, 2], test[:, 2] = 5, 7
    assert linear_accuracy(train, labels, test, test_labels) > 0.5
    same = np.ones_like(train)
    most = np.bincount(labels).argmax()
    found = linear_accuracy(same, labels, np.ones_like(test), test_labels)
    assert found == pytest.approx(np.mean(test_labels == most))


@pytest.mark.slow
def test_several_devices_find_what_one_finds():
    """Also where rows do not divide, and where a device has fewer of them than neighbours."""
    train, labels, test, test_labels = clusters(8, train=31, test=37, noise=2.5)
    for neighbours in (3, 20):
        expected = knn_in_numpy(train, labels, test, neighbours)
        assert knn_accuracy(train, labels, test, expected, neighbours, devices=4) == 1
    for truth in (test_labels, 1 - test_labels.clip(max=1)):
        one, four = (
            linear_accuracy(train, labels, test, truth, devices=devices) for devices in (1, 4)
        )
        assert 0 < one < 1
        assert four == pytest.approx(one, abs=1e-9)


def test_neither_probe_gathers_the_features():
    mesh = make_mesh(4)
    found = clusters(9)
    train, test = (probing.spread(*part, mesh) for part in (found[:2], found[2:]))
    width = train.features.shape[1]
    assert train.features.addressable_shards[0].data.shape == (75, width)
    fit = probing._fit.lower(train.features, train.labels, 3, 1e-3).compile()
    assert "all-gather" not in fit.as_text()
    assert "all-reduce" in fit.as_text()
    hits = probing._hits.lower(train[:2], test[:2], mesh, 20, 3, 5).compile().as_text()
    moved = re.findall(r"= \w+\[([0-9,]+)\]\S* all-gather\(", hits)
    # Only 4 x 5 queries with their classes, and for each the 4 x 20 nearest with theirs.
    assert sorted(moved) == ["20", "20,6", "20,80", "20,80"]


@pytest.mark.slow  # the sets below hold none
def test_images_without_a_label_do_not_count():
    train, labels, test, test_labels = clusters(10)
    hidden, unseen = np.arange(len(labels)) % 3 == 0, np.arange(len(test)) % 4 == 0
    damaged = np.where(hidden[:, None], 1e3, train), np.where(hidden, -1, labels)
    damaged += np.where(unseen[:, None], 1e3, test), np.where(unseen, -1, test_labels)
    left = train[~hidden], labels[~hidden], test[~unseen], test_labels[~unseen]
    for measured in (knn_accuracy, linear_accuracy):
        accuracy = measured(*left)
        assert 0.5 < accuracy < 1
        assert measured(*damaged, devices=4) == pytest.approx(accuracy, abs=1e-9)


def test_standardised_features_are_exact_for_many_rows():
    values = np.full((300_000, 2), 0.1, np.float32)
    values[:, 1] += np.arange(300_000, dtype=np.float32) % 2
    mean, scale = probing._standard(values, np.zeros(300_000, np.int32))
    np.testing.assert_allclose(mean, [0.1, 0.6], rtol=1e-6)
    assert scale[1] == pytest.approx(0.5, rel=1e-5)
    assert scale[0] == 1 or scale[0] < 1e-7


def source(**changed):
    values = {
        "name": "npz:x.npz",
        "classes": ("0", "1"),
        "images": np.arange(10, dtype=np.uint8)[:, None, None, None],
        "labels": np.array([0, -1] * 5, np.int32),
        "rows": np.arange(10),
        "test_images": np.arange(3, dtype=np.uint8)[:, None, None, None],
        "test_labels": np.array([1, 0, 1], np.int32),
    }
    return Source(**(values | changed))


def test_sets_hold_what_has_a_label():
    sets = probe_sets(source())
    np.testing.assert_array_equal(sets.train.images.ravel(), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(sets.train.labels, 0)
    np.testing.assert_array_equal(sets.test.labels, [1, 0, 1])
    few, same = (probe_sets(source(), train=3, test=2) for _ in range(2))
    assert (len(few.train.images), len(few.test.labels)) == (3, 2)
    assert set(few.train.images.ravel()) < {0, 2, 4, 6, 8}
    np.testing.assert_array_equal(few.test.labels, source().test_labels[few.test.images.ravel()])
    np.testing.assert_array_equal(few.train.images, same.train.images)
    seen = probe_sets(source(), split=Split(indices=np.array([6, 2])))
    np.testing.assert_array_equal(seen.train.images.ravel(), [6, 2])
    np.testing.assert_array_equal(seen.train.labels, [0, 0])
    assert len(seen.test.labels) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.full(10, -1)}, "training images with known labels.* npz:x.npz has none"),
        (
            {"test_images": np.zeros((0, 1, 1, 1), np.uint8), "test_labels": np.zeros(0, np.int32)},
            "k-NN .*test images",
        ),
    ],
)
def test_sources_that_cannot_be_probed(changed, message):
    with pytest.raises(InputError, match=message):
        probe_sets(source(**changed))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with labels, one of SimCLR and their data."""
    folder = tmp_path_factory.mktemp("probe")
    data = write_data(folder / "x.npz")
    periods = {"devices": 1, "eval_every": STEPS, "log_every": STEPS}
    with without_learning():
        train_tiny(data, folder / "supervised", method="supervised", **periods)
    config, *overrides = arguments(data, method="simclr", chosen="", **periods)
    overrides += ["--config.optim.warmup_steps=2", "--config.optim.learning_rate=0.1"]
    with without_learning():
        config, _ = from_flags(config.removeprefix("--config="), overrides)
        jaxmatch.train(config, folder / "simclr")
    return folder, np.load(data)


@pytest.mark.slow
def test_features_are_those_of_the_network_that_is_reported(runs):
    folder, arrays = runs
    images = arrays["x_test"][:7]
    for name, network in (("supervised", "teacher"), ("simclr", "student")):
        found = jaxmatch.load(folder / name)
        inputs = (images / 255 - np.float32(found.program.mean)) / np.float32(found.program.std)
        outputs, _ = jax.jit(found.program.model.apply, static_argnames=("train", "mutable"))(
            found.variables(network), inputs.astype(np.float32), train=False, mutable=()
        )
        ours = features(found, images)
        assert ours.shape == outputs.features.shape
        assert_close(ours, outputs.features, 1e-4)


@pytest.mark.parametrize(
    ("name", "all_labels", "evaluated", "every"),
    [
        ("supervised", False, "teacher", False),
        pytest.param("supervised", True, "teacher", True, marks=pytest.mark.slow),
        pytest.param("simclr", False, "student", True, marks=pytest.mark.slow),  # it saw none
    ],
)
def test_a_run_is_probed_with_the_labels_that_it_saw(runs, name, all_labels, evaluated, every):
    folder, arrays = runs
    found = probe(folder / name, all_labels=all_labels)
    used = np.arange(64) if every else splits.read(folder / name / "split.json").indices
    assert len(used) == (64 if every else LABELS)
    about = {"step": STEPS, "evaluated": evaluated, "labels": len(used), "all_labels": every}
    assert {key: found[key] for key in about} == about
    classifier = jaxmatch.load(folder / name)
    train, test = (features(classifier, arrays[f"x_{part}"]) for part in ("train", "test"))
    train, labels = train[used], arrays["y_train"][used]
    expected = knn_in_numpy(train, labels, test, min(20, np.bincount(labels).min()))
    assert found["knn"] == np.mean(expected == arrays["y_test"])
    assert found["linear"] == linear_accuracy(train, labels, test, arrays["y_test"])
    assert min(found["knn"], found["linear"]) > 0.5


def test_probes_are_made_as_asked(runs):
    folder, _ = runs
    assert probe(folder / "supervised", step=5, linear=False).keys() == {*ABOUT, "knn"}
    assert probe(folder / "supervised", knn=False).keys() == {*ABOUT, "linear"}


def test_data_without_labels_is_refused(runs, tmp_path):
    _, arrays = runs
    nothing = {"x_test": arrays["x_test"][:0], "y_test": arrays["y_test"][:0]}
    write_data(tmp_path / "x.npz", y_train=np.full_like(arrays["y_train"], -1), **nothing)
    source = sources.load(f"npz:{tmp_path / 'x.npz'}", Reading(label_free=True))
    with pytest.raises(InputError, match=r"k-NN .*training images with known labels"):
        probe_sets(source)


def test_measure_computes_what_is_asked(runs):
    folder, arrays = runs
    found = jaxmatch.load(folder / "simclr")
    sets = probe_sets(
        source(
            images=arrays["x_train"],
            labels=arrays["y_train"],
            test_images=arrays["x_test"],
            test_labels=arrays["y_test"],
        ),
        train=30,
        test=10,
    )
    program, counted = found.program, []
    exact = make_features(program, spread=True)

    def compute(variables, images):
        counted.append(len(images))
        return exact(variables, images)

    measured = measure(compute, found.variables(), sets, program.mesh, ["knn"])
    assert dict(measured).keys() == {"knn"}
    assert counted == [30, 10]


@pytest.fixture
def again(runs, tmp_path):
    """Trains the SimCLR run in a folder of its own, and what its summary said at first."""
    folder, _ = runs
    workdir = tmp_path / "run"
    shutil.copytree(folder / "simclr", workdir)
    values = json.loads((workdir / "config.json").read_text())
    values.pop("facts")
    summary = json.loads((workdir / "summary.json").read_text())
    return workdir, (lambda: jaxmatch.train(complete(values), workdir)), summary


def results(workdir):
    """All that training writes but what tells the probes."""
    return {
        path.relative_to(workdir).as_posix(): path.read_bytes()
        for path in workdir.rglob("*")
        if path.is_file() and path.name not in ("summary.json", "log.txt")
    }


def test_the_summary_tells_how_many_images_the_probes_used(again):
    _, train, summary = again
    assert set(summary["probe"]) == {"knn", "linear"}
    assert summary["probe_images"] == {"train": 64, "test": 24}
    assert summary["probe_labels"] == "all known"
    assert train() == summary


@pytest.mark.slow  # the next test, too, makes those that are missing
def test_only_missing_probes_are_made_after_a_restart(again, monkeypatch):
    workdir, train, summary = again
    before = results(workdir)
    unfinished = summary | {"probe": summary["probe"] | {"linear": None}}
    (workdir / "summary.json").write_text(json.dumps(unfinished))
    monkeypatch.setitem(probing.PROBES, "knn", None)  # calling it would fail
    assert train() == summary == json.loads((workdir / "summary.json").read_text())
    assert results(workdir) == before


@pytest.mark.slow
def test_a_run_that_ends_in_its_probes_has_its_summary(again, monkeypatch):
    workdir, train, summary = again
    (workdir / "summary.json").unlink()

    def killed(*arguments):
        raise KeyboardInterrupt

    for name in ("knn", "linear"):
        with monkeypatch.context() as patched:
            patched.setitem(probing.PROBES, name, killed)
            with pytest.raises(KeyboardInterrupt):
                train()
        found = json.loads((workdir / "summary.json").read_text())
        known = {"knn": None, "linear": None}
        if name == "linear":
            known["knn"] = summary["probe"]["knn"]
        assert found["probe"] == known
        assert found["algorithm"] == "simclr"
    state = results(workdir)
    found = train()
    assert found["probe"] == summary["probe"]
    assert results(workdir) == state


@pytest.mark.slow
def test_probes_use_a_bounded_number_of_images(again, monkeypatch):
    workdir, train, summary = again
    whole = summary | {"probe": {"knn": None, "linear": None}}
    (workdir / "summary.json").write_text(json.dumps(whole))
    monkeypatch.setattr(ending, "MOST_IMAGES", 20)
    found = train()
    assert found["probe_images"] == {"train": 20, "test": 20}
    few = probe(workdir, images=20)
    assert found["probe"] == {name: few[name] for name in ("knn", "linear")}
    with pytest.raises(InputError, match="--images=0 must be at least 1"):
        probe(workdir, images=0)
