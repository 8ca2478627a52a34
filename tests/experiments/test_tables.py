"""The published tables: their runs, the figures beside them, and what is shown of run folders."""

import itertools
import json
import re
import shlex
from html.parser import HTMLParser
from statistics import fmean, median, stdev

import pytest

from experiments.tables import __main__ as command
from experiments.tables.render import page
from experiments.tables.sweep import METHODS, TABLES, choose
from experiments.tables.sweep import sweep as points_of
from jaxmatch.cli import main as cli
from jaxmatch.cli import sweep
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.config.stages import stage_folders, stages_of
from jaxmatch.errors import DiskError, InputError
from jaxmatch.record.metrics import summarise

LABELS = {
    "cifar10": ("40", "250", "4000"),
    "cifar100": ("400", "2500", "10000"),
    "svhn": ("40", "250", "1000"),
    "stl10": ("40", "250", "1000"),
}


def points(argument, **options):
    return sweep.points(f"{command.SWEEP}:{argument}", **options)


def value(cell):
    return float(cell.partition("±")[0])


def call(monkeypatch, capfd, *words):
    """Run the command: (exit code, stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["experiments.tables", *map(str, words)])
    code = 0
    try:
        command.main()
    except SystemExit as error:
        code = error.code
    return code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("stl10", ",labels=40"),
        *(pytest.param(name, "", marks=pytest.mark.slow) for name in LABELS),
    ],
)
def test_every_run_of_a_table_has_its_recipe(name, some):
    found = points(f"{name},seeds=0{some}")
    table = TABLES[name]
    every = [method for method in table.methods if METHODS[method].labels == "all"]
    assert len(found) == (1 if some else 3) * (len(table.methods) - len(every)) + len(every)
    for one in found:
        method, labels, seed = one.workdir.name.rsplit("-", 2)
        *_, last = stages_of(one.config).values()
        assert (last.data.name, last.data.labels) == (table.data, labels)
        assert f"s{one.config.seed}" == seed == "s0"
        assert one.config.recipe == METHODS[method].config
        assert one.config.preset == "jaxmatch"


def test_commands_are_complete_and_stay_as_they_are(monkeypatch, capfd, tmp_path):
    base = tmp_path / "my runs"
    words = ["cifar10", "--list", "--methods", "fixmatch,fully_supervised", "--seeds", "0,2"]
    chosen = [*words, "--workdir", base, "--config.steps=6400"]
    code, output, error = call(monkeypatch, capfd, *chosen)
    assert (code, error) == (0, "")
    assert not base.exists()
    folders = []
    for line in output.splitlines():
        program, train, config, *overrides, workdir = shlex.split(line)
        assert (program, train) == ("jaxmatch", "train")
        parsed, _ = from_flags(config.removeprefix("--config="), overrides)
        assert parsed.steps == 6400
        folders.append(workdir.removeprefix(f"--workdir={base}/"))
    assert folders == [
        f"{name}-s{seed}"
        for seed in (0, 2)
        for name in ("fixmatch-40", "fixmatch-250", "fixmatch-4000", "fully_supervised-all")
    ]
    argument = "cifar10,methods=fixmatch+fully_supervised,seeds=0+2"
    cli.main(["sweep", f"--config={command.SWEEP}:{argument}", f"--workdir={base}", *chosen[-1:]])
    assert capfd.readouterr().out == output


@pytest.mark.slow
def test_a_preset_has_folders_of_its_own_and_the_methods_of_its_code_base():
    only = points("svhn,methods=fixmatch+simmatch,labels=250,seeds=1,preset=usb")
    assert [one.workdir.name for one in only] == ["fixmatch-usb-250-s1", "simmatch-usb-250-s1"]
    assert all(one.config.preset == "usb" and one.config.data.extra for one in only)
    names = {one.workdir.name for one in points("svhn,labels=40,seeds=0,preset=torchssl")}
    assert "fixmatch-torchssl-40-s0" in names
    assert not {name for name in names if name.startswith(("simmatch", "fixmatch_eman"))}
    with pytest.raises(InputError, match="fixmatch_eman has no preset 'usb'"):
        points("svhn,methods=fixmatch_eman,preset=usb")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("cifar11", "did you mean 'cifar10'?"),
        ("cifar10,methods=fixmtch", "did you mean 'fixmatch'?"),
        ("cifar10,labels=10", "did you mean '40'?"),
        ("cifar10,seeds=one", "'one' is no seed"),
        ("cifar10,seed=1", "did you mean 'seeds'?"),
        ("cifar10,preset=torch", "did you mean 'torchssl'?"),
        ("cifar10,preset=usb+google", "one preset"),
        ("stl10,methods=fully_supervised", "is none of stl10"),
        ("imagenet,methods=vat", "vat has no ImageNet recipe"),
    ],
)
def test_a_wrong_choice_is_one_sentence(argument, expected, monkeypatch, capfd):
    with pytest.raises(InputError, match=re.escape(expected)):
        points(argument)
    table, *pairs = argument.split(",")
    words = [f"--{pair.replace('=', ' ').replace('+', ',')}".split() for pair in pairs]
    if table == "cifar10" and "seed=1" not in pairs:
        code, output, error = call(monkeypatch, capfd, table, *itertools.chain(*words))
        assert (code, output, error.count("\n")) == (2, "", 1)
    code, output, error = call(monkeypatch, capfd, "imagenet", "--methods=vat", "--run")
    assert (code, output, error.count("\n")) == (2, "", 1)


def test_run_hands_over_to_the_sweep(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "main", seen.append)
    monkeypatch.setattr("sys.argv", ["tables", "svhn", "--run", "--labels", "40,250"])
    command.main()
    assert seen == [
        [
            "sweep",
            f"--config={command.SWEEP}:svhn,labels=40+250",
            "--workdir=runs/tables/svhn",
            "--run",
        ]
    ]


def write(base, point, accuracies, *overrides, finished=True):
    """The folder of a run with these test accuracies, every 1,024 steps."""
    flags = [f"--config.{key}={point[key]}" for key in point if key not in ("config", "workdir")]
    config, _ = from_flags(point["config"], [*flags, *overrides])
    folder = base / point["workdir"]
    stages = stage_folders(config) if "order" in config else {"": config}
    for name, stage in stages.items():
        write_stage(folder / name, stage, accuracies, finished)
    if "order" in config:
        (folder / "config.json").write_text(json.dumps(to_json(config)))
        last = folder / list(stages)[-1] / "summary.json"
        (folder / "summary.json").write_bytes(last.read_bytes())


def write_stage(folder, config, accuracies, finished):
    folder.mkdir(parents=True)
    facts = {"classes": ["a", "b"], "labels": [0, 1], "unlabeled": 4000}
    (folder / "config.json").write_text(json.dumps({**to_json(config), "facts": facts}))
    lines = [
        {"step": 1024 * number, "test/teacher/accuracy": accuracy, "test/student/accuracy": 0.5}
        for number, accuracy in enumerate(accuracies, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        summary = summarise(
            lines,
            algorithm=config.algorithm.name,
            evaluated="teacher",
            steps=config.steps,
            images_seen={"labeled": 1, "unlabeled": 7},
            forward_images=15,
            seconds=1.0,
        )
        (folder / "summary.json").write_text(json.dumps(summary))


def one_point(argument):
    (point,) = points_of(argument)
    return point


def curve(last, peak):
    """25 accuracies whose last 20 have the median ``last`` and one of them is ``peak``."""
    return [0.1] * 5 + [last] * 10 + [peak] + [last] * 9


def rows_of(found, title):
    (section,) = [section for section in found.sections if section.title.startswith(title)]
    return {row["method"]: row for row in section.rows}


ENDS = {"0": (0.94, 0.95), "1": (0.93, 0.955), "2": (0.90, 0.93)}


@pytest.fixture
def runs(tmp_path):
    for seed, (last, peak) in ENDS.items():
        argument = f"cifar10,methods=fixmatch,labels=40,seeds={seed}"
        write(tmp_path, one_point(argument), curve(last, peak))
    return tmp_path


def test_a_cell_is_the_mean_error_over_the_seeds(runs):
    found = page(choose("cifar10"), runs)
    assert len(found.sections) == 6
    headline = rows_of(found, "40 labels. Median")
    assert list(headline["fixmatch"]) == [
        "method",
        "ours",
        "FixMatch paper",
        "USB 2022, last 20",
        "authors",
    ]
    last = [100 - 100 * end for end, _ in ENDS.values()]
    peak = [100 - 100 * end for _, end in ENDS.values()]
    assert median(curve(0.94, 0.95)[-20:]) == 0.94
    ours = headline["fixmatch"]["ours"]
    assert ours == f"{fmean(last):.2f} ± {stdev(last):.2f} (3)" == "7.67 ± 2.08 (3)"
    best = rows_of(found, "40 labels. Best")
    assert best["fixmatch"]["ours"] == f"{fmean(peak):.2f} ± {stdev(peak):.2f} (3)"
    assert best["fixmatch"]["TorchSSL"] == "7.47±0.28"
    assert headline["fixmatch"]["FixMatch paper"] == "13.81±3.37"
    assert {row["ours"] for name, row in best.items() if name in METHODS} == {
        "not run",
        best["fixmatch"]["ours"],
    }
    assert best["crmatch"]["ours"] == "-"
    assert set(TABLES["cifar10"].methods) <= set(best)
    assert rows_of(found, "250 labels. Best")["fixmatch"]["ours"] == "not run"
    assert not any(line.startswith("*") for line in found.legend)


def test_chosen_seeds_methods_and_labels_alone(runs):
    found = page(choose("cifar10,methods=fixmatch+uda,labels=40,seeds=2"), runs)
    assert [section.title[:9] for section in found.sections] == ["40 labels"] * 2
    rows = rows_of(found, "40 labels. Median")
    assert list(rows) == ["fixmatch", "uda"]
    assert rows["fixmatch"]["ours"] == "10.00 (1)"


def test_another_preset_is_another_cell(runs):
    found = page(choose("cifar10,preset=torchssl"), runs)
    assert rows_of(found, "40 labels. Median")["fixmatch"]["ours"] == "not run"
    assert "preset torchssl" in found.legend[0]


def test_a_run_with_other_settings_is_marked(runs):
    point = one_point("cifar10,methods=fixmatch,labels=250,seeds=0")
    write(runs, point, [0.9], "--config.steps=6400", "--config.devices=2")
    found = page(choose("cifar10"), runs)
    assert rows_of(found, "250 labels. Median")["fixmatch"]["ours"] == "10.00 (1)*"
    (note,) = [line for line in found.legend if line.startswith("*")]
    assert note.endswith("steps: 6400 -> 1048576 (fixmatch at 250).")
    assert "\\*" in found.markdown()


def test_a_run_in_stages_and_one_that_has_not_finished(tmp_path):
    write(tmp_path, one_point("svhn,methods=selfmatch,labels=40,seeds=0"), curve(0.9, 0.95))
    write(tmp_path, one_point("svhn,methods=fixmatch,labels=40,seeds=0"), [0.5], finished=False)
    (tmp_path / "fixmatch-40-sx").mkdir()
    rows = rows_of(page(choose("svhn"), tmp_path), "40 labels. Median")
    assert rows["selfmatch"]["ours"] == "10.00 (1)"
    assert rows["selfmatch"]["authors"].startswith("3.42±1.02 [")
    assert rows["fixmatch"]["ours"] == "not finished"


def test_a_run_with_all_labels_stands_in_every_column(tmp_path):
    write(tmp_path, one_point("cifar100,methods=fully_supervised,seeds=0"), [0.8])
    found = page(choose("cifar100"), tmp_path)
    for labels in LABELS["cifar100"]:
        assert rows_of(found, f"{labels} labels. Best")["fully_supervised"]["ours"] == "20.00 (1)"
    assert page(choose("cifar100,labels=all"), tmp_path).sections


def footnote(found, cell):
    number = re.search(r"\[\d+\]", cell).group()
    (text,) = [line for line in found.legend if line.startswith(number)]
    return text


def test_known_defects_are_footnotes(tmp_path):
    found = page(choose("cifar100"), tmp_path)
    best = rows_of(found, "400 labels. Best")
    small = "USB 2023, best (WRN-28-2)"
    assert "Invalid" in footnote(found, best["mean_teacher"][small])
    assert "sharpening" in footnote(found, best["uda"][small])
    assert "diverged" in footnote(found, best["uda"]["USB 2022, best"])
    assert best["mean_teacher"]["USB 2022, best"] == "87.24±0.1"
    assert any("16 times smaller" in line for line in found.legend)
    svhn = page(choose("svhn"), tmp_path)
    extra = [line for line in svhn.legend if "604,388" in line]
    assert [line.partition(":")[0] for line in extra] == [
        "USB 2022, last 20",
        "TorchSSL",
        "USB 2022, best",
        "USB 2023, best",
    ]


def test_sources_without_a_table_have_no_column(tmp_path):
    found = page(choose("stl10"), tmp_path)
    assert list(rows_of(found, "40 labels. Median")["uda"]) == [
        "method",
        "ours",
        "USB 2022, last 20",
    ]
    assert not any(line.startswith("USB 2023") for line in found.legend)
    assert rows_of(found, "40 labels. Best")["fully_supervised"]["ours"] == "-"


def test_imagenet_runs_read_the_published_lists():
    found = points("imagenet,seeds=0")
    assert len(found) == 12
    assert all(point.config.data.name == "tfds:imagenet2012" for point in found)
    first, last = found[0].config, found[-1].config
    assert (first.recipe, first.data.split, first.steps) == ("s4l_rotation", "1percent.txt", 50_000)
    assert (last.recipe, last.data.split, last.data.labels) == (
        "simmatch_v2",
        "10percent.txt",
        "128116",
    )


def test_imagenet_shows_what_is_published(tmp_path):
    found = page(choose("imagenet"), tmp_path)
    assert [section.title for section in found.sections] == [
        "1% of the labels (12,811)",
        "10% of the labels (128,116)",
        "100,000 labels",
    ]
    one, ten, _ = (list(section.rows) for section in found.sections)
    simmatch = [(row["top-1"], row["top-5"]) for row in one if row["method"] == "simmatch"]
    assert simmatch == [("32.800", "12.918"), ("33.0", "13.1")]
    (rotation, *_) = [row for row in ten if row["method"] == "s4l_rotation"]
    assert (rotation["ours, top-1"], rotation["top-1"]) == ("not run", "38.63")
    legend = "\n".join(found.legend)
    assert "53.4 as S4L-Rotation" in legend
    assert "VAT+EntMin" in legend
    errors = {value(row["top-1"]) for row in ten if row["top-1"] != "-"}
    assert 46.6 not in errors
    assert page(choose("imagenet,methods=simmatch,labels=12811"), tmp_path).sections[0].rows


class Cells(HTMLParser):
    """Counts the cells of a page and refuses tags that stay open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.cells += tag == "td"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_files_and_terminal(runs, monkeypatch, capfd):
    words = ["cifar10", "--labels", "40", "--workdir", runs]
    code, markdown, _ = call(monkeypatch, capfd, *words)
    assert code == 0
    assert "| fixmatch | 7.67 ± 2.08 (3) | 13.81±3.37 | 12.85±4.51 | - |" in markdown
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {6}
    code, output, _ = call(monkeypatch, capfd, *words, "-o", runs / "new" / "table.md")
    assert (code, output) == (0, f"wrote {runs / 'new' / 'table.md'}\n")
    assert (runs / "new" / "table.md").read_text() == markdown
    assert call(monkeypatch, capfd, *words, "-o", runs / "table.html")[0] == 0
    parsed = Cells((runs / "table.html").read_text())
    assert not parsed.open
    assert parsed.cells == sum(line.count("|") - 1 for line in lines if "---" not in line) - 10
    code, _, error = call(monkeypatch, capfd, *words, "-o", runs / "table.pdf")
    assert (code, error.count("\n")) == (2, 1)
    code, _, error = call(monkeypatch, capfd, *words, "--config.steps=3")
    assert (code, error.count("\n")) == (2, 1)
    (runs / "taken").write_text("")
    with pytest.raises(DiskError):
        command.show("cifar10,labels=40", runs, runs / "taken" / "table.md")


def test_the_benchmark_of_transformers_spans_data_sets(tmp_path):
    points = list(points_of("usb_cv"))
    assert len(points) == 16 * 9 * 3
    assert points[0] == {
        "config": "supervised:tfds:cifar100,labels=200,seed=0,preset=usb_cv",
        "init_from": "pretrained/vit_small_patch2_32_mlp_im_1k_32.safetensors",
        "workdir": "supervised-usb_cv-cifar100-200-s0",
    }
    (aves,) = points_of("usb_cv,labels=semi_aves-3959,methods=simmatch,seeds=2")
    assert aves["config"] == "simmatch:folder:semi_aves,labels=all,seed=2,preset=usb_cv"
    shown = page(choose("usb_cv,methods=fixmatch,labels=eurosat-20"), tmp_path)
    best = shown.sections[1]
    assert best.title.startswith("eurosat-20. Best evaluation")
    assert best.rows == [{"method": "fixmatch", "ours": "not run", "USB 2023": "13.44±3.53"}]
