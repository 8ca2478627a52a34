"""Results and report: groups, figures over seeds, what the page holds and what is refused."""

import base64
import io
import json
from html.parser import HTMLParser
from statistics import fmean, stdev

import numpy as np
import pytest
from PIL import Image

from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.config.stages import make_stages
from jaxmatch.data.splits import Split
from jaxmatch.data.splits import write as write_split
from jaxmatch.errors import DiskError, InputError
from jaxmatch.record import curves
from jaxmatch.record.metrics import summarise
from jaxmatch.report.baselines import levels, verdicts
from jaxmatch.report.page import report
from jaxmatch.report.results import group, read
from jaxmatch.report.tables import table, table_text

STEPS = 300


def metrics(accuracy, steps=STEPS):
    """Lines whose teacher ends at ``accuracy``, and whose student is one point below."""
    return [
        {
            "step": step,
            "loss/total": 1 / step,
            "pseudo/accuracy": accuracy,
            "pseudo/coverage": step / STEPS,
            "unlabeled/weak_accuracy": accuracy,
            "unlabeled/strong_accuracy": accuracy - 0.1,
            "test/teacher/accuracy": accuracy * step / steps,
            "test/student/accuracy": accuracy * step / steps - 0.01,
            "time/seconds": step / 10,
        }
        for step in range(75, steps + 1, 75)
    ]


def write(folder, config, lines=(), finished=True, **summary):
    """A run folder; keywords change its summary."""
    folder.mkdir(parents=True)
    facts = {"classes": ["a", "b"], "labels": [0, 1], "unlabeled": 4000}
    (folder / "config.json").write_text(json.dumps({**to_json(config), "facts": facts}))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if finished:
        found = summarise(
            lines,
            algorithm=config.algorithm.name,
            evaluated="teacher",
            steps=STEPS,
            images_seen={"labeled": 1000, "unlabeled": 7000},
            forward_images=15000,
            seconds=30.0,
        )
        (folder / "summary.json").write_text(json.dumps({**found, **summary}))
    return folder


def configuration(config, *overrides):
    return from_flags(config, [f"--config.{override}" for override in overrides])[0]


@pytest.fixture
def seeds(tmp_path):
    """Writes runs of ``config``, one for each accuracy, and reads them."""

    def seeds(name, config, accuracies, *overrides):
        runs = []
        for seed, accuracy in enumerate(accuracies):
            chosen = configuration(f"{config},seed={seed}", *overrides)
            runs.append(read(write(tmp_path / f"{name}-s{seed}", chosen, metrics(accuracy))))
        return runs

    return seeds


def test_figures_are_mean_and_sample_deviation_over_seeds(seeds):
    accuracies = (0.9, 0.95, 0.97)
    runs = seeds("fixmatch", "fixmatch:mnist5k,labels=40", accuracies)
    (found,) = group(reversed(runs))
    assert found.label == "fixmatch"
    assert [run.settings["seed"] for run in found.runs] == [0, 1, 2]
    (row,) = table([found])
    percent = [100 * accuracy for accuracy in accuracies]
    assert row["last"] == f"{fmean(percent):.1f} ± {stdev(percent):.1f}" == "94.0 ± 3.6"
    assert row["last"] == row["best"] == row["teacher last"]
    assert row["student last"] == "93.0 ± 3.6"
    assert row["mean_20"] == row["median_20"] == "58.8 ± 2.3"
    assert row["seeds"] == "3 (0, 1, 2)"
    assert (row["labeled seen"], row["unlabeled seen"]) == ("1,000", "7,000")
    assert "k-NN" not in row
    assert "differs in" not in row
    (single,) = table(group(runs[:1]))
    assert single["last"] == "90.0"
    text = table_text([found])
    assert len({line.index("94.0 ± 3.6") for line in text.splitlines()[2:]}) == 1


def test_groups_are_told_apart_by_what_differs(seeds):
    runs = [
        *seeds("few", "fixmatch:mnist5k,labels=10", (0.5, 0.6)),
        *seeds("high", "fixmatch:mnist5k,labels=10", (0.5,), "algorithm.threshold=0.99"),
        *seeds("many", "supervised:mnist5k,labels=40", (0.8,)),
    ]
    groups = group(runs)
    assert [one.label for one in groups] == [
        "fixmatch, 10 labels, threshold=0.95",
        "fixmatch, 10 labels, threshold=0.99",
        "supervised, 40 labels",
    ]
    assert [len(one.runs) for one in groups] == [2, 1, 1]
    assert groups[0].differs == {"algorithm.threshold": 0.95, "data.ratio": 7}
    assert groups[2].differs == {"data.ratio": 0}


def test_the_seed_in_a_file_name_makes_no_group(tmp_path):
    runs = []
    for seed in (0, 1):
        config = configuration(
            f"fixmatch:mnist5k,seed={seed},split=labels_seed{seed}.json",
            f"init_from=runs/simclr-mnist5k-none-s{seed}-0123456{seed}",
            f"devices={seed}",
        )
        runs.append(read(write(tmp_path / str(seed), config, metrics(0.9))))
    assert len(group(runs)) == 1
    other = configuration("fixmatch:mnist5k,seed=1,split=labels_seed0.json")
    runs.append(read(write(tmp_path / "other", other, metrics(0.9))))
    assert len(group(runs)) == 2


def test_what_a_run_chooses_from_its_own_images_makes_no_group(tmp_path):
    def runs(name, chosen, *overrides):
        for seed, mean, steps in ((0, 0.4, 600), (1, 0.5, 800)):
            scale = f"data.mean=({mean},)", f"data.std=({mean / 2},)"
            config = configuration(
                f"fixmatch:npz:x.npz,labels=40,seed={seed}{chosen}", *scale, *overrides
            )
            if config.minutes:
                config.steps = config.eval_every = steps
            yield read(write(tmp_path / f"{name}-{seed}", config, metrics(0.9)))

    assert len(group(runs("small", ",size=small"))) == 1
    assert len(group(runs("minutes", ",size=small", "minutes=5"))) == 1
    assert len(group(runs("paper", ",size=paper"))) == 2


def test_a_run_older_than_a_setting_has_its_default(seeds, tmp_path):
    (new,) = seeds("new", "fixmatch:mnist5k", (0.9,))
    old = write(tmp_path / "old", configuration("fixmatch:mnist5k,seed=1"), metrics(0.8))
    config = json.loads((old / "config.json").read_text())
    del config["init_from"], config["algorithm"]["temperature"]
    (old / "config.json").write_text(json.dumps(config))
    assert len(group([new, read(old)])) == 1


@pytest.mark.usefixtures("undrawn")
def test_unfinished_runs_are_marked_and_left_out_of_the_mean(seeds, tmp_path):
    finished = seeds("done", "fixmatch:mnist5k", (0.9, 0.92))
    config = configuration("fixmatch:mnist5k,seed=2")
    folder = write(tmp_path / "running", config, metrics(0.3, steps=150), finished=False)
    running = read(folder)
    (found,) = group([*finished, running])
    (row,) = table([found])
    assert row["seeds"] == "2 (0, 1), 1 more running"
    assert row["last"] == "91.0 ± 1.4"
    (alone,) = table(group([running]))
    assert (alone["seeds"], alone["last"], alone["steps"]) == ("1 (2), running", "30.0", "150")
    page = report([folder], tmp_path / "report.html")[0].read_text()
    assert "<td>running</td>" in page
    assert "Runs marked running have no summary yet" in page


def test_label_free_runs_show_their_probes(tmp_path):
    lines = [{"step": step, "loss/contrastive": 4.0, "probe/knn": 0.8} for step in (75, 150)]
    config = configuration("simclr:mnist5k")
    probe = {"knn": 0.875, "linear": 0.9}
    run = read(write(tmp_path / "done", config, lines, probe=probe, teacher=None, student=None))
    (row,) = table(group([run]))
    assert (row["k-NN"], row["linear probe"]) == ("87.5", "90.0")
    assert "last" not in row
    running = read(write(tmp_path / "running", config, lines, finished=False))
    assert table(group([running]))[0]["k-NN"] == "80.0"


@pytest.fixture
def staged(tmp_path):
    """Writes a run in stages, of which so many have begun."""

    def staged(name, begun):
        first = configuration("simclr:mnist5k,seed=3")
        last = configuration("fixmatch:mnist5k,labels=40,seed=3")
        config = make_stages("selfmatch", {"simclr": first, "fixmatch": last})
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_json(config)))
        probe = {"probe": {"knn": 0.7, "linear": 0.8}, "teacher": None, "student": None}
        for number, stage, more in ((1, "simclr", probe), (2, "fixmatch", {}))[:begun]:
            write(folder / f"{number}_{stage}", config.stages[stage], metrics(0.9), **more)
        return folder

    return staged


@pytest.mark.usefixtures("undrawn")
def test_a_staged_run_is_its_last_stage_with_the_cost_of_all(staged, tmp_path):
    run = read(staged("selfmatch", 2))
    (row,) = table(group([run]))
    assert (row["method"], row["last"]) == ("selfmatch", "90.0")
    assert (row["steps"], row["unlabeled seen"], row["seconds"]) == ("600", "14,000", "60")
    page = report([run.folder], tmp_path / "report.html")[0].read_text()
    assert "1_simclr (steps=300, knn=70.0, linear=80.0)" in page
    summary = run.folder / "1_simclr" / "summary.json"  # as while its linear probe is made
    summary.write_text(summary.read_text().replace('"linear": 0.8', '"linear": null'))
    page = report([run.folder], tmp_path / "report.html")[0].read_text()
    assert "1_simclr (steps=300, knn=70.0)" in page
    half = read(staged("half", 1))
    assert not half.finished
    (found,) = group([run, half])  # one configuration
    assert table([found])[0]["seeds"] == "1 (3), 1 more running"
    with pytest.raises(InputError, match="no metrics yet"):
        read(staged("planned", 0))


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects tables and images."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.rows, self.scripts = [], [], [], 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert not {"href", "onload"} & attributes.keys()
        assert attributes.get("srcset", "data:").startswith("data:")
        self.scripts += tag in ("script", "link", "iframe")
        if tag == "img":
            self.images.append(attributes["src"])
        elif tag not in ("meta", "br", "source"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_the_page_is_whole_and_needs_nothing_else(seeds, tmp_path):
    runs = [
        *seeds("fixmatch", "fixmatch:mnist5k", (0.9, 0.95)),
        *seeds("supervised", "supervised:mnist5k", (0.8,)),
    ]
    folders = [run.folder for run in runs]
    files = report([*folders, folders[0]], tmp_path / "page" / "mine.html")  # one of them twice
    names = ["mine.html", "mine_comparison.png", "mine_losses.png"]
    assert [path.name for path in files] == names
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == names
    text = files[0].read_text()
    page = Page(text)
    assert not page.scripts
    assert "http" not in text
    for source, path in zip(page.images, files[1:], strict=True):
        start, _, content = source.partition(",")
        assert start == "data:image/png;base64"
        assert base64.b64decode(content) == path.read_bytes()
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert min(image.size) > 400
    methods = [row[0] for row in page.rows]
    assert methods[:3] == ["method", "fixmatch", "supervised"]
    assert methods.count("fixmatch") == 6  # the group and both seeds, in two tables each
    assert "best is selected on the test set" in text
    assert "The groups have different seeds" in text
    assert ["optim.learning_rate", "0.03"] in page.rows


def with_baselines(run, svc, spreading, split, seed=0, notes=()):
    """Give a run's folder baselines with these test accuracies, and read it again."""
    write_split(run.folder / "split.json", Split(indices=np.array(split)))
    scores = {"svc": svc, "label_spreading": spreading}
    found = {
        "split": Split(indices=np.array(split)).hash,
        "seed": seed,
        "pixels": [32, 32, 1],
        "notes": list(notes),
        "baselines": {
            name: {"title": name, "test": {"accuracy": share, "balanced_accuracy": share}}
            for name, share in scores.items()
        },
    }
    (run.folder / "baselines.json").write_text(json.dumps(found))
    return read(run.folder)


def test_baselines_are_rows_lines_and_a_plain_sentence(seeds, tmp_path, monkeypatch):
    drawn = {}
    comparison = curves.comparison
    monkeypatch.setattr(
        curves,
        "comparison",
        lambda lines, levels, **options: (
            drawn.update(levels) or comparison(lines, levels, **options)
        ),
    )
    fixmatch = seeds("fixmatch", "fixmatch:mnist5k,labels=40", (0.9, 0.92))
    supervised = seeds("supervised", "supervised:mnist5k,labels=40", (0.6, 0.7))
    alone = seeds("alone", "simmatch:mnist5k,labels=40", (0.8,))
    for runs in (fixmatch, supervised):  # the same labels for the same seed
        for seed, (run, svc) in enumerate(zip(runs, (0.7, 0.74), strict=True)):
            runs[seed] = with_baselines(run, svc, 0.5, [seed, 9], seed, ["Thinned."])
    rows = table(group([*fixmatch, *supervised, *alone]))
    assert [row["method"] for row in rows[3:]] == ["SVC on pixels", "label spreading on pixels"]
    expected = {"data": "mnist5k", "labels": "40", "seeds": "2 (0, 1)", "last": "72.0 ± 2.8"}
    assert {key: rows[3][key] for key in expected} == expected
    assert rows[3]["steps"] == rows[3]["reported"] == ""
    assert rows[4]["last"] == "50.0 ± 0.0"
    folders = [run.folder for run in (*fixmatch, *supervised, *alone)]
    text = report(folders, tmp_path / "r.html")[0].read_text()
    Page(text)
    assert "supervised does not beat SVC on pixels: test accuracy 65.0% against 72.0%." in text
    assert "fixmatch beats the best baseline, SVC on pixels (72.0%)." in text
    assert text.count("Baselines: Thinned.") == 1
    assert "No baselines are measured for simmatch: jaxmatch report --baselines" in text
    assert drawn == {
        "SVC on pixels, 72.0%": pytest.approx(0.72),
        "label spreading on pixels, 50.0%": 0.5,
    }


def test_a_tie_with_a_baseline_is_no_win(seeds):
    (run,) = seeds("fixmatch", "fixmatch:mnist5k,labels=40", (1.0,))
    (text,) = verdicts(group([with_baselines(run, 1.0, 0.5, [0, 9], 0, [])]))
    assert text == "fixmatch is as good as the best baseline, SVC on pixels (100.0%)."


def test_several_data_sets_show_the_best_baseline_of_each(seeds):
    (few,) = seeds("few", "fixmatch:mnist5k,labels=10", (0.9,))
    (many,) = seeds("many", "fixmatch:mnist5k,labels=40", (0.9,))
    groups = group([with_baselines(few, 0.5, 0.6, [1, 2]), with_baselines(many, 0.8, 0.7, [1, 3])])
    assert levels(groups) == {
        "label spreading on pixels, mnist5k, 10 labels, 60.0%": 0.6,
        "SVC on pixels, mnist5k, 40 labels, 80.0%": 0.8,
    }
    assert [row["labels"] for row in table(groups)] == ["10", "40", "10", "10", "40", "40"]


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_without_baselines_the_page_says_how_to_get_them(seeds, tmp_path):
    (run,) = seeds("run", "fixmatch:mnist5k", (0.9,))
    assert "report --baselines" in report([run.folder], tmp_path / "r.html")[0].read_text()
    assert levels(group([run])) == {}
    stale = with_baselines(run, 0.5, 0.6, [1, 2])
    write_split(run.folder / "split.json", Split(indices=np.array([1, 3])))
    assert stale.baselines is not None
    assert read(run.folder).baselines is None  # they are for other labels


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_is_not_yet_compared(seeds, tmp_path):
    config = configuration("fixmatch:mnist5k,seed=2")
    folder = write(tmp_path / "running", config, metrics(0.3, steps=150), finished=False)
    run = with_baselines(read(folder), 0.5, 0.6, [1, 2])
    text = report([run.folder], tmp_path / "r.html")[0].read_text()
    assert "beat" not in text
    assert "No baselines" not in text
    assert "SVC on pixels" in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_notes_of_what_does_not_compare(seeds, tmp_path):
    runs = [
        *seeds("mnist", "fixmatch:mnist5k", (0.9,)),
        *seeds("digits", "fixmatch:digits", (0.9,)),
        *seeds("again", "fixmatch:digits", (0.8,)),
    ]
    page = report([run.folder for run in runs], tmp_path / "report.html")[0].read_text()
    assert "different data sets" in page
    assert "fixmatch, digits contains a seed more than once" in page
    assert "different seeds" not in page


@pytest.mark.slow
def test_learned_bins_are_drawn_as_means_over_finished_runs(seeds, tmp_path):
    def run(name, seed, weight, finished=True):
        bins = {"rotate": {"degrees": [1.0, weight]}, "rescale": {"crop": [1.0], "method": [0.5]}}
        config = configuration(f"fixmatch:mnist5k,seed={seed}")
        return read(write(tmp_path / name, config, metrics(0.9), finished, ctaugment=bins))

    runs = [run("a", 0, 0.8), run("b", 1, 0.6), run("c", 2, 0.0, finished=False)]
    without = seeds("plain", "supervised:mnist5k", (0.8,))
    learned, plain = group([*runs, *without])
    assert plain.bins == {}
    assert learned.bins["rescale"] == {"crop": [1.0], "method": [0.5]}
    assert learned.bins["rotate"]["degrees"] == pytest.approx([1.0, 0.7])
    folders = [run.folder for run in (*runs, *without)]
    page, *pictures = report(folders, tmp_path / "page" / "mine.html")
    assert pictures[-1].name == "mine_ctaugment.png"
    assert len(Page(page.read_text()).images) == 3
    assert "weights at the end of training, as means over the seeds" in page.read_text()
    with Image.open(pictures[-1]) as image:
        pixels = np.asarray(image.convert("RGB"))
    for color in ([253, 231, 37], [68, 1, 84]):  # viridis' ends: weight 1 and the least
        assert (np.abs(pixels.astype(int) - color).max(-1) <= 2).sum() > 100
    assert len(report([without[0].folder], tmp_path / "plain.html")) == 3


@pytest.mark.usefixtures("undrawn")
def test_names_are_escaped(seeds, tmp_path):
    (run,) = seeds("<b>", "fixmatch:mnist5k", (0.9,), "recipe=a<b&c")
    text = report([run.folder], tmp_path / "report.html")[0].read_text()
    Page(text)
    assert "a&lt;b&amp;c" in text


def test_what_cannot_be_reported(seeds, tmp_path):
    config = configuration("fixmatch:mnist5k")
    empty = write(tmp_path / "empty", config, finished=False)
    damaged = write(tmp_path / "damaged", config, metrics(0.9))
    (damaged / "summary.json").write_text("{")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    for folder, expected in (
        (tmp_path / "nowhere", "nowhere is no run folder"),
        (tmp_path, "is no run folder"),
        (tmp_path / "list", r"config\.json is damaged \(it holds no JSON object\)"),
        (empty, "has no metrics yet"),
        (damaged, r"summary\.json is damaged"),
    ):
        with pytest.raises(InputError, match=expected):
            report([folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    (run,) = seeds("run", "fixmatch:mnist5k", (0.9,))
    with pytest.raises(InputError, match="is a folder; give the name of a file in it"):
        report([run.folder], tmp_path)
    (tmp_path / "labels.csv").write_text("path,label\n0.png,cat\n")
    with pytest.raises(InputError, match=r"labels\.csv exists, is no file of reports, and would"):
        report([run.folder], tmp_path / "labels.csv")
    (tmp_path / "full.html").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="No space left"):
        report([run.folder], tmp_path / "full.html")


@pytest.mark.usefixtures("undrawn")
def test_validation_and_what_was_found_are_shown(seeds, tmp_path):
    plain, chosen = (
        seeds(name, f"{name}:mnist5k,labels=40", (0.9, 0.92)) for name in ("supervised", "fixmatch")
    )
    found = {
        "name": "folder:<pets>",
        **{"labeled": 4, "unlabeled": 9, "validation": 2, "test": 3, "unknown": 9},
        "classes": ["cat", "dog"],
        "counts": {name: {"labeled": 2} for name in ("cat", "dog")},
        **{"test_drawn": True, "left_out": {"hidden": 2}, "notes": ["A note."]},
        **{"sizes": [], "modes": {}, "size": [8, 8]},
    }
    for name in found["counts"]:
        found["counts"][name] |= {"unlabeled": 0, "validation": 1, "test": 1}
    for run, accuracy in zip(chosen, (0.8, 0.9), strict=True):
        file = run.folder / "summary.json"
        summary = json.loads(file.read_text())
        summary["teacher"]["metrics"] = {"balanced_accuracy": accuracy - 0.1}
        others = dict.fromkeys(("mean_20", "median_20", "best"), accuracy)
        summary["validation"] = {"teacher": {"last": accuracy, **others}, "student": None}
        best = {"teacher": {"accuracy": accuracy + 0.05}, "student": {"accuracy": 0.2}}
        summary["best"] = {
            "step": 75,
            "key": "validation/teacher/accuracy",
            "value": 1,
            "test": best,
        }
        file.write_text(json.dumps(summary))
        (run.folder / "findings.json").write_text(json.dumps(found))
    rows = {row["method"]: row for row in table(group([*plain, *map(reread, chosen)]))}
    assert rows["fixmatch"]["validation"] == "85.0 ± 7.1"
    assert rows["fixmatch"]["balanced"] == "75.0 ± 7.1"
    assert rows["fixmatch"]["at best validation"] == "90.0 ± 7.1"
    assert rows["supervised"]["validation"] == ""
    assert "validation" not in table(group(plain))[0]
    folders = [run.folder for run in (*plain, *chosen)]
    text = report(folders, tmp_path / "report.html")[0].read_text()
    Page(text)
    data = text.index("<h2>Data</h2>")
    assert data < text.index("<h2>Accuracy</h2>")
    for line in (
        "data: folder:&lt;pets&gt;: 4 labeled, 9 unlabeled, 2 validation, 3 test images (drawn",
        "classes: cat (2 labeled, 1 validation, 1 test), dog (",
        "left out: 2 hidden",
        "note: A note.",
    ):
        assert text.count(line) == 1  # equal facts of both runs once
    assert "<h2>Data</h2>" not in report(folders[:2], tmp_path / "old.html")[0].read_text()


def test_an_unfinished_run_shows_its_validation_so_far(tmp_path):
    lines = [{**line, "validation/teacher/accuracy": 0.5} for line in metrics(0.9)]
    config = configuration("fixmatch:mnist5k,labels=40")
    running = read(write(tmp_path / "running", config, lines, finished=False))
    assert table(group([running]))[0]["validation"] == "50.0"


def reread(run):
    return read(run.folder)
