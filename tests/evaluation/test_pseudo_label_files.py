"""Pseudo-labels: how predictions of several runs are averaged, and which runs belong together."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy.special import softmax
from tiny_runs import LABELS, PERIOD, train_tiny, without_extras, without_learning, write_data

from jaxmatch import load
from jaxmatch.cli.main import main
from jaxmatch.data import splits
from jaxmatch.errors import InputError
from jaxmatch.evaluation.pseudo_label import AVERAGES, averaged, check_same, make, predicted
from jaxmatch.record import pseudo_labels
from jaxmatch.record.folder import RunFolder

SHORT = {"method": "supervised", "steps": PERIOD, "data__ratio": 0, "devices": 1}


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Two runs with the same labels, of other learning rates."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("a", 0.03), ("b", 0.1)):
        with without_learning():
            train_tiny(data, folder / name, optim__learning_rate=rate, **SHORT)
    return folder / "a", folder / "b"


def some_probabilities(runs, images, classes, seed=0):
    return softmax(np.random.default_rng(seed).normal(0, 2, (runs, images, classes)), axis=-1)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("runs", "classes"), [(1, 2), (2, 4), (5, 10)])
def test_averages_are_distributions(average, runs, classes):
    stacked = some_probabilities(runs, 50, classes)
    labels, confidence, found = averaged(stacked, average)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found >= 0).all()
    assert ((confidence > 0) & (confidence <= 1 + 1e-12)).all()
    best = found.max(1)
    np.testing.assert_allclose(found[np.arange(50), labels], best)
    if runs == 1:  # each average of a single run has its classes
        np.testing.assert_array_equal(labels, stacked[0].argmax(-1))


def test_probabilities_are_averaged():
    stacked = some_probabilities(3, 20, 4)
    labels, confidence, found = averaged(stacked, "probability")
    np.testing.assert_allclose(found, stacked.mean(0))
    np.testing.assert_array_equal(labels, stacked.mean(0).argmax(1))
    np.testing.assert_allclose(confidence, stacked.mean(0).max(1))


def test_ranks_count_the_order_of_classes_alone():
    """Two of three runs put class 1 first; the third is very sure of class 0."""
    stacked = np.array([[[0.3, 0.4, 0.3]], [[0.35, 0.4, 0.25]], [[0.98, 0.01, 0.01]]])
    assert averaged(stacked, "probability")[0] == [0]
    labels, confidence, found = averaged(stacked, "rank")
    # Points: (.5 2 .5), (1 2 0), (2 .5 .5); a run gives three.
    np.testing.assert_allclose(found, np.array([[3.5, 4.5, 1.0]]) / 9)
    assert labels == [1]
    assert confidence == pytest.approx(4.5 / 6)
    sharper = softmax(3 * np.log(some_probabilities(3, 30, 5)), axis=-1)
    np.testing.assert_allclose(
        averaged(sharper, "rank")[2], averaged(some_probabilities(3, 30, 5), "rank")[2]
    )
    agreeing = np.repeat(some_probabilities(1, 30, 5), 4, axis=0)
    np.testing.assert_allclose(averaged(agreeing, "rank")[1], 1)


def test_votes_count_each_run_once_and_probability_breaks_ties():
    stacked = np.array([[[0.4, 0.6]], [[0.9, 0.1]]])
    labels, confidence, found = averaged(stacked, "vote")
    np.testing.assert_allclose(found, [[0.5, 0.5]])
    assert (labels, confidence) == ([0], [0.5])
    flipped, *_ = averaged(stacked[..., ::-1], "vote")
    assert flipped == [1]


@pytest.mark.parametrize("average", AVERAGES)
def test_an_image_that_one_run_cannot_read_has_no_label(average):
    stacked = some_probabilities(2, 4, 3)
    stacked[1, 2] = np.nan
    labels, confidence, found = averaged(stacked, average)
    assert labels[2] == -1
    assert np.isnan(confidence[2])
    assert np.isnan(found[2]).all()
    kept = [0, 1, 3]
    others = averaged(stacked[:, kept], average)
    np.testing.assert_array_equal(labels[kept], others[0])
    np.testing.assert_allclose(found[kept], others[2])


@pytest.mark.parametrize("average", AVERAGES)
def test_the_table_has_every_unlabeled_training_image_and_no_other(average, runs, data, tmp_path):
    table, of_files = make(runs, average)
    assert not of_files
    labeled = set(RunFolder(runs[0]).read_split().indices.tolist())
    assert len(labeled) == LABELS
    expected = [str(row) for row in range(64) if row not in labeled]
    assert list(table.names) == expected
    images = np.load(data)["x_train"][list(map(int, expected))]
    stacked = np.stack([load(run).predict(images).probabilities for run in runs])
    labels, confidence, found = averaged(stacked, average)
    np.testing.assert_array_equal(table.labels, labels)
    np.testing.assert_allclose(table.probabilities, found, atol=1e-6)
    np.testing.assert_allclose(table.confidence, confidence, atol=1e-6)
    for name in ("p.csv", "p.npz"):
        pseudo_labels.write(tmp_path / name, table, of_files)
        again, _ = pseudo_labels.read(tmp_path / name)
        for field in dataclasses.fields(table):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(table, field.name))


@pytest.mark.slow
def test_hidden_labels_of_the_data_change_nothing(runs, data, tmp_path):
    """Neither the labels that the run does not see nor those of the test set are read."""
    arrays = np.load(data)
    labeled = RunFolder(runs[0]).read_split().indices
    wrong = (arrays["y_train"] + 1) % 4
    wrong[labeled] = arrays["y_train"][labeled]
    other = write_data(tmp_path / "x.npz", y_train=wrong, y_test=(arrays["y_test"] + 1) % 4)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"indices": labeled.tolist()}))
    for name, place in (("one", data), ("two", other)):
        train_tiny(place, tmp_path / name, data__split=split, **SHORT)
    one, two = (make([tmp_path / name])[0] for name in ("one", "two"))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-6)


def test_the_command_writes_a_table(runs, data, tmp_path, capsys):
    main(["pseudo-label", *map(str, runs), "-o", str(tmp_path / "p.csv"), "--average=vote"])
    output = capsys.readouterr().out
    assert output.startswith(f"wrote {tmp_path / 'p.csv'}: 48 unlabeled images, vote of 2 runs")
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 48
    assert list(rows[0])[:4] == ["index", "content", "class", "confidence"]
    assert {row["confidence"] for row in rows} <= {"0.5", "1.0"}
    shutil.copy(data, tmp_path / "moved.npz")
    main(["pseudo-label", str(runs[0]), "-o", str(tmp_path / "q.npz"), "--data", str(data)])
    with pytest.raises(SystemExit):
        main(["pseudo-label", str(runs[0]), "-o", str(tmp_path / "q.txt")])
    assert "written as .csv or .npz" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_that_do_not_belong_together_are_refused(runs, data, tmp_path):
    train_tiny(data, tmp_path / "seed", seed=1, **SHORT)
    with pytest.raises(InputError, match=r"have other unlabeled images: '\d+' is one in only one"):
        make([runs[0], tmp_path / "seed"])
    train_tiny(data, tmp_path / "simclr", method="simclr", chosen="", steps=PERIOD)
    with pytest.raises(InputError, match="was trained without labels and has no classifier"):
        make([tmp_path / "simclr"])
    with pytest.raises(InputError, match="unknown average 'mean'; known: probability, rank, vote"):
        make(runs, "mean")
    one = predicted(runs[0])
    with pytest.raises(InputError, match="tell other classes apart: 0, 1, 2, 3, and a, 1, 2, 3"):
        check_same(one, one._replace(classes=("a", "1", "2", "3")))
    changed = one._replace(contents=("x", *one.contents[1:]))
    with pytest.raises(InputError, match=r"have other images: '.*' differs in content"):
        check_same(one, changed)
    every = tmp_path / "all"
    train_tiny(data, every, chosen=",labels=all", **SHORT)
    with pytest.raises(InputError, match="has no unlabeled images"):
        make([every])


def test_names_and_contents_tell_images_of_a_folder_apart(tmp_path, data):
    from test_features import folder_of_images

    from jaxmatch.record import run_data
    from jaxmatch.record.settled import settled
    from tiny_runs import configuration  # isort: skip

    arrays = np.load(data)
    root = folder_of_images(tmp_path / "photos", arrays["x_train"][:40], arrays["y_train"][:40])
    found = {}
    for stream in (False, True):
        options = {"data__image_size": 8, "chosen": ",labels=8", "data__stream": stream}
        config, _ = settled(configuration(f"folder:{root}", **options))
        some = run_data.load_new(config)
        at = splits.locate(some.source, some.split)
        rows = some.source.rows[np.setdiff1d(np.arange(len(some.source.rows)), at)]
        names = pseudo_labels.names(some.source, rows)
        assert all((root / name).is_file() for name in names)
        found[stream] = names, pseudo_labels.contents(some.source, some.record, rows)
    assert found[True] == found[False]
    assert len(set(found[True][1])) == len(found[True][1])


def test_a_run_has_one_vote(runs):
    for other in (runs[0], f"{runs[0]}/"):
        with pytest.raises(InputError, match="is named twice"):
            make([*runs, other])


@pytest.mark.parametrize("name", ["p.csv", "p.npz"])
def test_files_of_others_are_kept_and_own_ones_replaced(runs, tmp_path, name):
    table, of_files = make(runs[:1])
    file = tmp_path / name
    for _ in range(2):
        pseudo_labels.check_file(file)
        pseudo_labels.write(file, table, of_files)
    assert pseudo_labels.read(file)[0].classes == table.classes
    file.write_text("path,label,prediction,confidence\na.png,ant,bee,0.9\n")
    with pytest.raises(InputError, match="is no file of pseudo-labels, and would be lost"):
        pseudo_labels.check_file(file)
    np.savez(tmp_path / "p.npz", images=np.zeros(3))
    with pytest.raises(InputError, match="is no file of pseudo-labels, and would be lost"):
        pseudo_labels.check_file(tmp_path / "p.npz")
    for content in (b"PK\3\4 cut", b"path,content,class,confidence,p:a,p:b\n" + b"x" * 200_000):
        file.write_bytes(content)
        with pytest.raises(InputError, match="is no file of pseudo-labels"):
            pseudo_labels.read(file)
    with pytest.raises(InputError, match="name of a folder's table of labels"):
        pseudo_labels.check_file(tmp_path / "labels.csv")
