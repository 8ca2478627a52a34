"""How strange images look: the scores, their scale by known images, and the column of predict."""

import csv
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers import toy_images
from PIL import Image
from scipy import special, stats
from sklearn.metrics import roc_auc_score
from tiny_runs import train_tiny, without_extras, without_learning, write_data

import jaxmatch
from jaxmatch.algorithms.simclr import SimCLR
from jaxmatch.cli import main as cli
from jaxmatch.errors import InputError
from jaxmatch.evaluation.unknown import energy, max_logit, scores, traced
from jaxmatch.models.inputs import normalize
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.unknown import KnownImages


@pytest.fixture(scope="module", autouse=True)
def only_steps():
    with without_extras():
        yield


def known(values, step=5):
    """Known images with these energies in both networks."""
    names = {"energy": np.sort(np.float32(values))}
    of = {"teacher": names, "student": names}
    return KnownImages(step=step, part="validation", score="energy", scores=of)


def test_scores_are_those_of_the_papers():
    logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
    np.testing.assert_allclose(energy(logits), -special.logsumexp(logits, axis=1), rtol=1e-6)
    np.testing.assert_array_equal(max_logit(logits), [-max(row) for row in logits])
    assert np.isfinite(energy(np.float32([[3e38, -3e38]]))).all()
    assert set(scores(logits, None)) == {"energy", "max_logit"}
    assert set(scores(logits, logits[:, 0])) == {"energy", "max_logit", "heads"}


def test_images_of_no_class_look_strange():
    """Of two linear classes: a stranger has small logits, but not a flat softmax."""
    random = np.random.default_rng(0)
    knowns = random.normal(0, 1, (300, 4)) + 6 * np.eye(4)[random.integers(0, 4, 300)]
    strangers = random.normal(0, 1, (300, 4)) + 2
    logits = np.concatenate([knowns, strangers])
    truth = np.repeat([0, 1], 300)
    for score in (energy, max_logit):
        assert roc_auc_score(truth, score(logits)) > 0.7
    share = known(energy(knowns[:100])).unknown(energy(logits[100:]), "teacher", "energy")
    assert roc_auc_score(truth[100:], share) > 0.7


def test_a_share_counts_the_known_images_that_look_less_strange():
    found = known([1, 2, 2, 5]).unknown([0.5, 1, 2, 2.5, 9], "student", "energy")
    np.testing.assert_allclose(found, np.array([0, 0, 1, 3, 4]) / 5)
    assert found.dtype == np.float32


def test_new_known_images_have_uniform_shares():
    random = np.random.default_rng(0)
    shares = [
        known(values[1:]).unknown(values[:1], "teacher", "energy")[0]
        for values in random.normal(size=(20_000, 20))
    ]
    counts = np.bincount(np.rint(np.array(shares) * 20).astype(int), minlength=20)
    assert counts.sum() == 20_000
    assert len(counts) == 20
    assert stats.chisquare(counts).pvalue > 0.01
    assert abs(np.mean(np.array(shares) >= np.float32(0.95)) - 0.05) < 0.006


@pytest.mark.parametrize("count", [19, 20, 39, 99, 100, 139, 1000])
def test_the_threshold_is_where_the_share_is_reached(count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    found = known(values)
    threshold = found.threshold("teacher", "energy")
    above = np.nextafter(np.float32(threshold), np.float32(9))
    shares = found.unknown([threshold, above], "teacher", "energy")
    assert shares[0] < 0.95 <= shares[1]
    assert found.threshold("teacher", "energy") in found.to_json()["teacher"]["energy"]["scores"]


def test_too_few_known_images_have_no_threshold():
    assert known(range(18)).threshold("teacher", "energy") is None
    assert known(range(19)).threshold("teacher", "energy") == 18


def test_the_file_holds_all_digits(tmp_path):
    values = np.random.default_rng(0).normal(size=30).astype(np.float32)
    folder = RunFolder(tmp_path)
    assert folder.read_known_images() == {}
    folder.write_known_images(known(values, step=7))
    content = json.loads((tmp_path / "unknown.json").read_text())
    assert {key: content[key] for key in ("step", "images", "part", "score", "share")} == {
        "step": 7, "images": 30, "part": "validation", "score": "energy", "share": 0.95,
    }  # fmt: skip
    again = folder.read_known_images()[7]
    np.testing.assert_array_equal(again.scores["student"]["energy"], np.sort(values))
    assert again.to_json() == content


def test_a_look_at_another_step_keeps_the_others(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (7, 9, 3):
        folder.write_known_images(known(range(30), step=step))
    assert folder.read_known_images().keys() == {3, 7, 9}
    content = json.loads((tmp_path / "unknown.json").read_text())
    assert (content["step"], [*content["other_steps"]]) == (9, ["3", "7"])


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"part": "test"},
        {"score": "heads"},
        {"teacher": 3},
        {"student": {"energy": {"scores": [2, 1] * 15}}},
        {"student": {"energy": {"scores": [1]}}},
        {"teacher": {"energy": {"scores": []}}, "student": {"energy": {"scores": []}}},
        {"student": {"energy": {}}},
        {"other_steps": [3]},
        {"other_steps": {"3": {}}},
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, change):
    content = known(range(30)).to_json() | change
    (tmp_path / "unknown.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"unknown\.json is damaged .*remove it"):
        RunFolder(tmp_path).read_known_images()


def arrays(**more):
    images, labels = toy_images(40, 7)
    return {"x_validation": images, "y_validation": labels, **more}


IOMATCH = {
    "method": "iomatch",
    "chosen": ",labels=8",
    "data__known_classes": "('1','3')",
    "algorithm__projection": 8,
    "devices": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two known classes whose network is compared with a validation set."""
    folder = tmp_path_factory.mktemp("strangers")
    data = write_data(folder / "data.npz", **arrays())
    with without_learning():
        train_tiny(data, folder / "run", **IOMATCH)
    return folder / "run"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(toy_images(24, 1)[0]):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


def test_a_run_with_a_validation_set_ends_with_the_scores_of_it(run):
    classifier = jaxmatch.load(run)
    found = RunFolder(run).read_known_images()[20]
    assert (found.step, found.images, found.part, found.score) == (20, 20, "validation", "heads")
    images, labels = toy_images(40, 7)
    images = images[np.isin(labels, [1, 3])]
    for network in ("teacher", "student"):
        logits, heads = classifier.scored(images, network).values
        for name, values in scores(logits, heads).items():
            np.testing.assert_allclose(
                found.scores[network][name], np.sort(values), rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow  # algorithms/test_iomatch.py has the metrics of a step
def test_a_run_tells_how_many_strangers_pass(tmp_path):
    data = write_data(tmp_path / "data.npz", **arrays())
    train_tiny(data, tmp_path / "run", **IOMATCH)
    log = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert 0 <= log[-1]["pseudo/strangers_passed"] <= 1
    assert 0 <= log[-1]["pseudo/judged_strangers"] <= 1


def test_predictions_are_the_same_with_it(run):
    classifier = jaxmatch.load(run)
    images = toy_images(24, 1)[0]
    plain, found = classifier.predict(images), classifier.predict(images, unknown=True)
    assert plain.unknown is None
    for mine, other in zip(plain, found, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert found.unknown.shape == (24,)
    assert np.all((found.unknown >= 0) & (found.unknown < 1))
    for score in ("energy", "max_logit", "heads"):
        named = classifier.predict(images, "student", unknown=score)
        logits, heads = classifier.scored(images, "student").values
        values = scores(logits, heads)[score]
        there = RunFolder(run).read_known_images()[20].scores["student"][score]
        expected = [np.mean(np.append(there, np.inf) < value) for value in values]
        np.testing.assert_allclose(named.unknown, expected, rtol=1e-6)
    calibrated = replace(classifier, calibration={"teacher": {"temperature": 3.0}})
    hot = calibrated.predict(images, unknown=True)
    assert not np.array_equal(hot.confidence, found.confidence)
    np.testing.assert_array_equal(hot.unknown, found.unknown)


def table(words, path):
    cli.main(["predict", *map(str, words), "-o", str(path)])
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_column_follows_confidence(run, pictures, tmp_path):
    words = ["--workdir", run, pictures]
    plain = table(words, tmp_path / "plain.csv")
    found = table([*words, "--unknown", "--probabilities"], tmp_path / "found.csv")
    lines = table([*words, "--unknown", "--unknown-score=energy"], tmp_path / "found.jsonl")
    assert list(plain[0]) == ["path", "class", "confidence"]
    assert list(found[0]) == ["path", "class", "confidence", "unknown", "p:1", "p:3"]
    assert list(lines[0]) == ["path", "class", "confidence", "unknown"]
    for row, other in zip(plain, found, strict=True):
        assert row == {key: other[key] for key in row}
    classifier = jaxmatch.load(run)
    heads = classifier.predict(pictures, unknown=True)
    np.testing.assert_array_equal(np.float32([row["unknown"] for row in found]), heads.unknown)
    other = classifier.predict(pictures, unknown="energy")
    np.testing.assert_array_equal(np.float32([row["unknown"] for row in lines]), other.unknown)
    assert not np.array_equal(other.unknown, heads.unknown)


def test_known_images_are_looked_at_when_the_file_is_of_another_step(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    before = (run / "unknown.json").read_text()
    early = jaxmatch.load(tmp_path / "run", 10)
    early.predict(toy_images(4, 1)[0], unknown=True)
    found = RunFolder(tmp_path / "run").read_known_images()
    assert (found.keys(), found[10].images) == ({10, 20}, 20)
    (tmp_path / "run" / "unknown.json").unlink()
    jaxmatch.load(tmp_path / "run").predict(toy_images(4, 1)[0], unknown=True)
    again = json.loads((tmp_path / "run" / "unknown.json").read_text())
    assert again["step"] == 20
    np.testing.assert_allclose(
        again["teacher"]["energy"]["scores"],
        json.loads(before)["teacher"]["energy"]["scores"],
        rtol=1e-5,
    )


@pytest.mark.slow
def test_without_a_validation_set_the_labeled_images_stand_in(tmp_path, pictures, caplog):
    data = write_data(tmp_path / "data.npz")
    with without_learning():
        train_tiny(data, tmp_path / "run", steps=5, method="supervised", devices=1)
    assert not (tmp_path / "run" / "unknown.json").exists()
    found = table(["--workdir", tmp_path / "run", pictures, "--unknown"], tmp_path / "p.csv")
    assert len(found) == 24
    assert "compared with its 16 labeled ones" in caplog.text
    assert "so few never give an `unknown` of 0.95" in caplog.text
    (kept,) = RunFolder(tmp_path / "run").read_known_images().values()
    assert (kept.part, kept.images, kept.score) == ("labeled", 16, "energy")
    classifier = jaxmatch.load(tmp_path / "run")
    with pytest.raises(InputError, match="the method has no heads for it"):
        classifier.predict(pictures, unknown="heads")
    with pytest.raises(InputError, match="unknown score 'energie'; did you mean 'energy'"):
        classifier.predict(pictures, unknown="energie")

    (tmp_path / "run" / "unknown.json").unlink()
    data.rename(tmp_path / "moved.npz")
    with pytest.raises(InputError, match=r"no unknown\.json of step 5.*There is no .*data\.npz"):
        jaxmatch.load(tmp_path / "run").predict(pictures, unknown=True)
    words = ["--workdir", tmp_path / "run", pictures, "--unknown", "--data", tmp_path / "moved.npz"]
    assert table(words, tmp_path / "again.csv") == found


def test_a_run_without_labels_knows_no_class(run, pictures):
    classifier = jaxmatch.load(run)
    program = replace(classifier.program, algorithm=SimCLR())
    with pytest.raises(InputError, match="trained without labels and has no classifier"):
        replace(classifier, program=program).predict(pictures, unknown=True)


def test_a_score_needs_the_column(run, pictures, tmp_path, capsys):
    words = ["predict", "--workdir", run, pictures, "--unknown-score=energy", "-o", tmp_path / "p"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(list(map(str, words)))
    assert "add --unknown" in capsys.readouterr().err


@pytest.fixture(scope="module")
def program(run, tmp_path_factory):
    """An exported file that tells how strange images look by the heads; to be read only."""
    path = tmp_path_factory.mktemp("exported") / "heads.stablehlo"
    cli.main(["export", f"--workdir={run}", "--unknown", "-o", str(path)])
    return path


def test_an_exported_file_tells_it_alone(run, program, pictures, tmp_path):
    """Ranks may differ by one: the program sums in another order."""
    expected = jaxmatch.load(run).predict(pictures, unknown=True)
    found = jaxmatch.load(program).predict(pictures, unknown=True)
    step = 1 / (RunFolder(run).read_known_images()[20].images + 1)
    assert expected.unknown.std() > 2 * step
    np.testing.assert_allclose(found.unknown, expected.unknown, rtol=0, atol=1.001 * step)
    assert np.mean(found.unknown == expected.unknown) > 0.8
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-6)
    rows = table(["--workdir", program, pictures, "--unknown"], tmp_path / "found.csv")
    assert [float(row["unknown"]) for row in rows] == pytest.approx(found.unknown, abs=1e-6)
    assert jaxmatch.load(program).predict(pictures).unknown is None


def test_its_card_tells_how_to_read_it(program, monkeypatch, capsys):
    card = program.with_name("heads.stablehlo.card.md").read_text()
    assert "less strange, by the score heads" in card
    assert "PHOTOS -o predictions.csv --unknown" in card
    lines = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(program.parent)
    capsys.readouterr()
    exec(lines, {})
    classifier = jaxmatch.load(program)
    zeros = classifier.predict(np.zeros((1, *classifier.image_shape), np.uint8), unknown=True)
    assert capsys.readouterr().out.rstrip().endswith(f"] {zeros.unknown}")


def test_what_an_exported_file_does_not_know_is_refused(run, program, pictures, tmp_path, capsys):
    with pytest.raises(InputError, match="holds the score heads alone, not 'energy'"):
        jaxmatch.load(program).predict(pictures, unknown="energy")
    cli.main(["export", f"--workdir={run}", "-o", str(tmp_path / "plain.stablehlo")])
    with pytest.raises(InputError, match=r"without --unknown.*export it again with it"):
        jaxmatch.load(tmp_path / "plain.stablehlo").predict(pictures, unknown=True)
    for words, sentence in (
        (["--unknown", "-o", tmp_path / "w.safetensors"], "safetensors holds weights"),
        (["--unknown-score=energy", "-o", tmp_path / "a.stablehlo"], "add --unknown"),
        (["--unknown", "--unknown-score=x", "-o", tmp_path / "a.stablehlo"], "unknown score 'x'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["export", f"--workdir={run}", *map(str, words)])
        assert sentence in capsys.readouterr().err
        assert not words[-1].exists()


@pytest.mark.parametrize(
    "score", ["heads", *(pytest.param(n, marks=pytest.mark.slow) for n in ("energy", "max_logit"))]
)
def test_each_score_is_the_same_in_a_program(run, score):
    classifier = jaxmatch.load(run)
    images = toy_images(24, 1)[0]
    logits, heads = classifier.scored(images).values
    measure = traced(score, classifier.program.algorithm)
    program = classifier.program
    views = normalize(images, program.mean, program.std)
    variables = classifier.variables()
    outputs = jax.jit(lambda x: program.network(variables, x, train=False)[0])(views)
    np.testing.assert_allclose(measure(outputs), scores(logits, heads)[score], rtol=0, atol=1e-4)
