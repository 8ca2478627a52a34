"""Frozen features: what a cache holds, when it is used again, and baselines that learn from it."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from helpers import assert_close
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tiny_runs import LABELS, configuration, train_tiny, without_learning, write_data

import jaxmatch
from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.evaluation import baselines, encoder, features, linear, on_features, probe
from jaxmatch.evaluation.comparison import TITLES
from jaxmatch.evaluation.metrics import METRICS
from jaxmatch.record import run_data
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.settled import settled, standardized

INPUT = {"data__mean": (0.5,), "data__std": (0.25,)}  # else that of the training images
ON_FEATURES = [name for name in TITLES if name.startswith("features_")]


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("pretrained") / "encoder"
    with without_learning():
        train_tiny(data, folder, method="supervised", steps=5, devices=1, **INPUT)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The usual place of caches, runs/features, lies in an empty folder."""
    monkeypatch.chdir(tmp_path)


def config_of(data, pretrained, **options):
    return configuration(data, init_from=pretrained, **(INPUT | options))


def loaded(config):
    chosen, _ = settled(config)
    found = run_data.load_new(chosen)
    return standardized(chosen, found.source.images), found


def test_a_cache_has_the_features_of_every_image(data, pretrained, tmp_path):
    config = config_of(data, pretrained, data__validation=12)
    about, existed = features.of_config(config)
    assert (existed, about["count"], about["unreadable"]) == (False, 64 + 24, 0)
    chosen, some = loaded(config)
    network = encoder.of_init(chosen, some.facts(), tmp_path)
    cache, existed = features.cached(network, some)
    assert existed
    assert str(cache.folder) == about["folder"]
    assert isinstance(cache.features, np.memmap)
    classifier = jaxmatch.load(pretrained)
    known = features.parts(some)
    assert list(known) == ["training", "test", "validation"]
    assert [len(part.ids) for part in known.values()] == [52, 24, 12]
    for part in known.values():
        found = cache.of(part.ids)
        assert found.readable.all()
        expected = probe.features(classifier, np.asarray(part.images))
        assert_close(found.features, expected, 1e-5)
        assert found.features.std(0).max() > 0


def test_a_cache_is_used_again_by_other_labels_seeds_and_methods(data, pretrained, monkeypatch):
    first, _ = features.of_config(config_of(data, pretrained))
    monkeypatch.setattr(features, "compute", None)  # a call would fail
    for options in (
        {"method": "supervised"},
        {"chosen": ",labels=8,seed=3"},
        {"data__validation": 8},
        {"data__batch_size": 4},
    ):
        about, existed = features.of_config(config_of(data, pretrained, **options))
        assert (about["folder"], existed) == (first["folder"], True)
    about, existed = features.of_run(pretrained)
    assert (about["folder"], existed) == (first["folder"], True)


def test_a_cache_of_some_images_is_not_that_of_all(data, pretrained, tmp_path):
    few = config_of(data, pretrained, chosen=f",labels={LABELS},imbalance_unlabeled=4")
    about, existed = features.of_config(few)
    assert (existed, about["count"] < 64 + 24) == (False, True)
    whole = config_of(data, pretrained)
    other, existed = features.of_config(whole)
    assert (existed, other["count"]) == (False, 64 + 24)
    with pytest.raises(InputError, match="other images"):
        features.of_config(whole, tmp_path / about["folder"])
    known = features.Cache(
        folder=tmp_path,
        ids=np.array([1, 5]),
        features=np.zeros((2, 3), np.float32),
        readable=np.ones(2, bool),
    )
    for missing in (0, 3, 9):
        with pytest.raises(InputError, match="lacks features"):
            known.of(np.array([1, missing]))


@pytest.mark.slow
def test_other_weights_images_or_settings_are_other_features(data, pretrained, tmp_path):
    features.of_config(config_of(data, pretrained), tmp_path / "cache")
    other = tmp_path / "other"
    train_tiny(data, other, method="simclr", chosen="", steps=5, seed=1, **INPUT)
    with pytest.raises(InputError, match=r"cache holds features of another network \(.*encoder\)"):
        features.of_config(config_of(data, other), tmp_path / "cache")
    with pytest.raises(InputError, match=r"other settings \(mean=\[0\.5\], now \[0\.1\]\)"):
        features.of_config(config_of(data, pretrained, data__mean=(0.1,)), tmp_path / "cache")
    arrays = np.load(data)
    changed = arrays["x_test"].copy()
    changed[3, 0, 0, 0] ^= 1
    one_pixel = write_data(tmp_path / "x.npz", x_test=changed)
    with pytest.raises(InputError, match=r"cache holds features of other images \(npz:"):
        features.of_config(config_of(one_pixel, pretrained), tmp_path / "cache")
    relabelled = write_data(tmp_path / "y.npz", y_train=(arrays["y_train"] + 1) % 4)
    _, existed = features.of_config(config_of(relabelled, pretrained), tmp_path / "cache")
    assert existed  # labels are no part of the images


def test_every_weight_before_the_classifier_counts(pretrained):
    classifier = jaxmatch.load(pretrained)
    state = classifier.state
    first = encoder.of_run(classifier).digest

    def digest(params):
        changed = state.replace(params=params, teacher={**state.teacher, "params": params})
        return encoder.of_run(dataclasses.replace(classifier, state=changed)).digest

    params = classifier.variables()["params"]
    assert digest(params) == first
    stem = {**params["stem"], "kernel": params["stem"]["kernel"] + 1e-6}
    assert digest({**params, "stem": stem}) != first
    head = {"kernel": params["classifier"]["kernel"] + 1, "bias": params["classifier"]["bias"]}
    assert digest({**params, "classifier": head}) == first


def test_damaged_caches_and_other_folders_are_refused(data, pretrained, tmp_path):
    config, cache = config_of(data, pretrained), tmp_path / "cache"
    features.of_config(config, cache)
    (cache / "ids.npy").unlink()
    with pytest.raises(InputError, match=r"cache is damaged .*: remove the folder"):
        features.of_config(config, cache)
    np.save(cache / "ids.npy", np.arange(3))
    with pytest.raises(InputError, match="its files differ in length"):
        features.of_config(config, cache)
    (cache / features.FILE).unlink()
    with pytest.raises(InputError, match=r"is no cache of features: it has no features\.json"):
        features.of_config(config, cache)
    with pytest.raises(InputError, match=r"x\.npz is a file"):
        features.of_config(config, write_data(tmp_path / "x.npz"))


def test_without_a_network_there_are_no_features(data):
    config = configuration(data)
    with pytest.raises(InputError, match=r"no network .* --config\.init_from=RUN_OR_FILE"):
        features.of_config(config)
    with pytest.raises(InputError, match="but there is no network to take them from"):
        baselines.of_config(config, cache=data)


def folder_of_images(root, images, labels):
    for position, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = root / f"class{label}" / f"{position:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place)
    return root


@pytest.mark.slow
def test_a_streamed_folder_has_the_same_features_and_names_what_is_unreadable(
    data, pretrained, tmp_path, caplog
):
    arrays = np.load(data)
    root = folder_of_images(tmp_path / "photos", arrays["x_train"][:40], arrays["y_train"][:40])
    options = {"data__image_size": 8, "init_from": pretrained, "chosen": ",labels=8", **INPUT}
    whole, _ = features.of_config(configuration(f"folder:{root}", **options), tmp_path / "a")
    _, existed = features.of_config(
        configuration(f"folder:{root}", data__stream=True, **options), tmp_path / "a"
    )
    assert existed  # the same files and the same size
    assert whole["count"] == 40
    bad = next(root.glob("class0/*.png"))
    bad.write_bytes(b"no image")
    config = configuration(f"folder:{root}", data__stream=True, **options)
    with pytest.raises(InputError, match="features of other images"):
        features.of_config(config, tmp_path / "a")
    about, _ = features.of_config(config, tmp_path / "b")
    assert (about["count"], about["unreadable"]) == (40, 1)
    assert bad.name in caplog.text
    one, other = (np.load(tmp_path / name / "features.npy") for name in "ab")
    gone = ~np.load(tmp_path / "b" / "readable.npy")
    assert_close(one[~gone], other[~gone], 1e-5)
    assert not other[gone].any()


@pytest.mark.slow
def test_baselines_on_features_are_those_of_scikit_learn(data, pretrained):
    config = config_of(data, pretrained, data__validation=12)
    found = baselines.of_config(config)
    assert list(found["baselines"]) == list(TITLES)
    assert found["network"]["name"] == str(pretrained)
    assert found["labels"] == LABELS
    for name in ON_FEATURES:
        one = found["baselines"][name]
        for part in ("test", "validation"):
            assert one[part].keys() == {m for m in METRICS if m not in ("top_5", "roc_auc")}
    chosen, some = loaded(config)
    classifier = jaxmatch.load(pretrained)
    at = splits.locate(some.source, some.split)
    x, y = probe.features(classifier, some.source.images[at]), some.source.labels[at]
    scale = linear.Scale.of(x)
    strength = linear.best_strength(x, y, 4, chosen.seed)
    assert (
        f"C={strength:g} (4 folds of the labels)"
        in (found["baselines"]["features_logistic_regression"]["settings"])
    )
    model = LogisticRegression(C=strength, max_iter=500).fit(scale.apply(x), y)
    tested = scale.apply(probe.features(classifier, some.source.test_images))
    ours = found["baselines"]["features_logistic_regression"]["test"]
    assert ours["accuracy"] == pytest.approx(
        np.mean(model.predict(tested) == some.source.test_labels)
    )


@pytest.mark.slow
def test_baselines_with_a_cache_are_those_without(data, pretrained):
    config = config_of(data, pretrained, data__validation=12)
    found = baselines.of_config(config)
    features.of_config(config)
    again = baselines.of_config(config)
    assert again["baselines"].keys() == found["baselines"].keys()
    for name in ON_FEATURES:
        for part in ("test", "validation"):
            one, other = (each["baselines"][name][part] for each in (found, again))
            assert one["accuracy"] == other["accuracy"]


def with_other_labels(data, pretrained, folder):
    """What a run has, the same with wrong labels where it sees none, and the network."""
    chosen, some = loaded(config_of(data, pretrained))
    at = splits.locate(some.source, some.split)
    wrong = (some.source.labels + 1) % 4
    wrong[at] = some.source.labels[at]
    other = dataclasses.replace(some, source=dataclasses.replace(some.source, labels=wrong))
    return some, other, baselines.network_of(chosen, some, folder, None)


def test_labels_that_the_run_does_not_see_are_not_gathered(data, pretrained, tmp_path):
    some, other, network = with_other_labels(data, pretrained, tmp_path)
    one, two = (baselines.gather_features(each, network, 0) for each in (some, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_labels_that_the_run_does_not_see_change_nothing(data, pretrained, tmp_path):
    some, other, network = with_other_labels(data, pretrained, tmp_path)
    one, two = (baselines.measure(each, 0, network) for each in (some, other))
    assert one == two


def points(each, seed=0, classes=3, unlabeled=60):
    """Sets of clustered features."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(0, 1, (classes, 16))

    def some(count, hidden=False):
        labels = np.arange(count * classes).astype(np.int32) % classes
        x = centres[labels] + random.normal(0, 0.5, (len(labels), 16))
        return on_features.Points(
            x.astype(np.float32), np.full_like(labels, -1) if hidden else labels
        )

    return on_features.Sets(some(each), some(unlabeled, True), {"test": some(80)}, classes)


@pytest.mark.parametrize(
    "each", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (4, 20))]
)
def test_every_baseline_learns_clusters(each):
    found = dict(on_features.each(points(each), 0))
    assert list(found) == ON_FEATURES
    chance = 1 / 3
    for one in found.values():
        assert one["test"]["accuracy"] > chance + 0.4
        fixed = "fixed: a class has one label" in one["settings"]
        assert fixed == (each == 1)
        assert one["validation"] is None
        json.dumps(one)


def test_unlabeled_features_help_where_only_they_show_the_classes():
    """Label spreading and self-training read them; logistic regression does not."""
    sets = points(1, unlabeled=200)
    found = {name: one["test"]["accuracy"] for name, one in on_features.each(sets, 0)}
    without = sets._replace(unlabeled=on_features.Points(*(each[:0] for each in sets.unlabeled)))
    alone = {name: one["test"]["accuracy"] for name, one in on_features.each(without, 0)}
    for name in ("features_logistic_regression", "features_knn"):
        assert found[name] == alone[name]
    assert found["features_label_spreading"] > alone["features_label_spreading"]


@pytest.mark.slow
def test_a_run_that_began_from_a_network_ends_with_the_best_baseline(data, pretrained, tmp_path):
    from jaxmatch.report.scores import ending

    folder = tmp_path / "run"
    summary = train_tiny(data, folder, method="supervised", init_from=pretrained, steps=5, **INPUT)
    found = RunFolder(folder).read_baselines()
    assert found is not None
    assert list(found["baselines"]) == list(TITLES)
    assert found == baselines.of_run(folder)
    assert any(line.startswith("best baseline: ") for line in ending(folder, summary, found))
    shutil.copytree(folder, tmp_path / "moved")
    lost = json.loads((tmp_path / "moved" / "config.json").read_text())
    lost["init_from"] = str(tmp_path / "nowhere")
    (tmp_path / "moved" / "config.json").write_text(json.dumps(lost))
    without = baselines.of_run(tmp_path / "moved")
    assert list(without["baselines"]) == list(TITLES)[:4]
    assert "No baselines on features: " in without["notes"][-1]


def test_folders_that_differ_in_the_middle_of_files_have_other_features(tmp_path):
    def identity(level):
        image = np.full((256, 256, 3), 255, np.uint8)
        image[100:150] = level
        for number in range(16):
            file = tmp_path / "photos" / "ab"[number % 2] / f"{number}.bmp"
            file.parent.mkdir(parents=True, exist_ok=True)
            image[0, 0] = number
            Image.fromarray(image).save(file)
        config = configuration(f"folder:{tmp_path / 'photos'}", chosen="", data__image_size=8)
        return features.identity(loaded(config)[1])

    assert identity(0) == identity(0) != identity(1)
