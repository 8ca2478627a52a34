"""The model card of an exported file: what is known is filled in, the rest are questions.

The sections are those of Mitchell et al., "Model Cards for Model Reporting", FAT* 2019,
https://arxiv.org/abs/1810.03993.
"""

import hashlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxmatch.config.own import OPEN
from jaxmatch.data.sources import names_path
from jaxmatch.errors import InputError, counted, printable
from jaxmatch.evaluation.bootstrap import Resampling
from jaxmatch.evaluation.classifier import Classifier
from jaxmatch.evaluation.examples import FORMAT
from jaxmatch.evaluation.metrics import METRICS
from jaxmatch.evaluation.trunk import FIRST_VALUES, OF_TRAINING
from jaxmatch.models.build import model_settings
from jaxmatch.optim.trained import count_values
from jaxmatch.record import findings
from jaxmatch.record.folder import RunFolder
from jaxmatch.record.unknown import SHARE, suffice
from jaxmatch.report.card_code import CODE, code_for
from jaxmatch.report.shares import shares
from jaxmatch.runtime import paths
from jaxmatch.weights.export import PROGRAMS
from jaxmatch.weights.trained import Known, Trained

SUFFIX = ".card.md"
CALIBRATION = ("expected_calibration_error", "negative_log_likelihood")
QUESTIONS = {
    "Intended use": (
        "What are the primary uses?",
        "Who are the intended users?",
        "Which uses are out of scope?",
    ),
    "Factors": (
        "Which groups, devices and surroundings do the images show, and which not?",
        "For which of these should figures be measured apart?",
    ),
    "Ethical considerations": (
        "Do the images show people, or anything that was collected without consent?",
        "What harm may follow from a wrong prediction, and for whom?",
        "What was done against it?",
    ),
    "Caveats and recommendations": (
        "What was not tested?",
        "Which images should a user not give to this classifier?",
        "When should it be measured again, or trained anew?",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """The content of a card, but for the facts that only the exported file tells.

    Attributes:
        details: the rows of the table of model details.
        sections: the lines of the other sections by their names.
    """

    details: Sequence[Sequence[str]]
    sections: Mapping[str, Sequence[str]]


def card_of(path: str | Path) -> Path:
    """The path of the card of an exported file: its whole name and :data:`SUFFIX`.

    Two files never share a card, even if only their suffixes differ.
    """
    path = paths.path(path)
    return path.with_name(path.name + SUFFIX)


def check_card(path: str | Path) -> None:
    """Check that a new card can be written beside an exported file.

    Raises:
        InputError: if not: a card that people have filled in is never overwritten.
    """
    card = card_of(path)
    if card.exists():
        raise InputError(f"{card} exists; remove it, or choose another name for the export.")
    paths.check_output(card)


def make_card(
    path: Path,
    trained: Trained,
    classifier: Classifier,
    kind: str,
    evaluation: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a file that is not written yet.

    Args:
        path: of the exported file.
        trained: the network in it.
        classifier: the checkpoint that it comes from.
        kind: the format of the file.
        evaluation: as :func:`~jaxmatch.report.card_evaluation.read_evaluation` returns it; by
            default the run's own metrics.

    Raises:
        InputError: if a file of the run is damaged.
    """
    run = RunFolder(classifier.folder)
    sections = {
        "How to use it": _usage(path, trained, classifier.config, kind),
        "Intended use": _questions("Intended use"),
        "Factors": _questions("Factors"),
        "Metrics": _metrics(run, trained, evaluation),
        "Evaluation data": _evaluation_data(run),
        "Training data": _training_data(run, classifier),
        "Ethical considerations": _questions("Ethical considerations"),
        "Caveats and recommendations": _questions("Caveats and recommendations"),
    }
    return Card(
        details=tuple(_details(trained, classifier, kind)),
        sections={name: tuple(body) for name, body in sections.items()},
    )


def write_card(path: Path, card: Card, kind: str, holds: str) -> Path:
    """Write the card beside an exported file, and return its path.

    Args:
        path: of the exported file.
        card: its card.
        kind: the format of the file.
        holds: a few words that say what it holds.

    Raises:
        DiskError: if the card cannot be written.
    """
    content, name = paths.read_whole(path), _text(path.name)
    details = (
        ("file", f"{name}, {len(content):,} bytes"),
        ("format", f"{kind}: {holds}"),
        ("SHA-256 of the file", f"`{hashlib.sha256(content).hexdigest()}`"),
        *card.details,
    )
    lines = [
        f"# Model card: {name}",
        "",
        "Facts are of the run. Lines that begin with \u201cTo fill in\u201d are for the people "
        "who publish this file. The sections follow Mitchell et al., Model Cards for Model "
        "Reporting, 2019.",
    ]
    sections = {"Model details": _table(("fact", "value"), details), **card.sections}
    for section, body in sections.items():
        lines += ["", f"## {section}", "", *body]
    written = card_of(path)
    paths.write_output(written, ("\n".join(lines) + "\n").encode())
    return written


def _details(trained: Trained, classifier: Classifier, kind: str) -> Iterable[Sequence[str]]:
    origin, program = trained.origin, classifier.program
    idea = (sys.modules[type(program.algorithm).__module__].__doc__ or "").partition("\n")[0]
    shape = " ".join(map(str, trained.image_shape))
    names = ", ".join(map(_text, trained.classes))
    versions = ", ".join(f"{name} {each}" for name, each in origin["versions"].items())
    return [
        ("method", f"{origin['method']}: {idea}"),
        ("network", f"{origin['model']}, {count_values(trained.variables['params']):,} parameters"),
        ("its settings", " ".join(f"`{word}`" for word in _model_words(classifier.config))),
        (
            "weights",
            f"the {origin['network']} of step {origin['step']:,} of {program.spec.steps:,}",
        ),
        ("classes", f"{len(trained.classes)}: {names}"),
        (
            "input",
            f"uint8 images [b {shape}], of which mean {trained.mean} and standard deviation "
            f"{trained.std} of levels in [0, 1] normalise the channels",
        ),
        *([("computes in", _dtype(trained, classifier))] if kind in PROGRAMS else []),
        ("temperature", _temperature(trained, kind)),
        *([("images of no class", _compared(trained.known))] if trained.known else []),
        ("versions", versions),
        *(
            (f"SHA-256 of the {name}", f"`{value}`" if value else "not recorded")
            for name, value in origin["hashes"].items()
        ),
    ]


def _model_words(config: ConfigDict) -> list[str]:
    """The settings ``key=value`` of the network that its name alone, or own images, do not give."""
    usual, own = model_settings(config.model.name), config.model.to_dict()
    kept = own.keys() - {"name", *OF_TRAINING, *FIRST_VALUES}
    return [
        f"name={config.model.name}",
        *(
            f"{key}={own[key]}"
            for key in sorted(kept)
            if f"model.{key}" in OPEN or own[key] != usual.get(key)
        ),
    ]


def _dtype(trained: Trained, classifier: Classifier) -> str:
    own = (RunFolder(classifier.folder).read_config() or {}).get("dtype", trained.origin["dtype"])
    if own == trained.origin["dtype"]:
        return own
    return f"{trained.origin['dtype']}, while the run computed in {own}: figures differ a little"


def _temperature(trained: Trained, kind: str) -> str:
    told = f"{trained.temperature:.4g} divides the logits before the softmax"
    if kind in PROGRAMS or trained.temperature == 1:
        return told
    return f"{told}; the file does not hold it: divide the network's logits by it"


def _compared(known: Known) -> str:
    count = len(known.scores)
    meaning = (
        f"from {SHARE:g} on an image is likely of no class"
        if suffice(count)
        else f"so few never give the {SHARE:g} from which an image is likely of no class"
    )
    return (
        f"the output `unknown` is the share of {count:,} {known.part} images that look less "
        f"strange, by the score {known.score}; {meaning}"
    )


def _usage(path: Path, trained: Trained, config: ConfigDict, kind: str) -> Iterable[str]:
    if kind not in CODE:
        scale = {"data.mean": trained.mean, "data.std": trained.std}
        words = [
            f"--config.init_from={path.name}",
            *(f"--config.model.{word}" for word in _model_words(config)),
            *(f"--config.{key}={tuple(values)}" for key, values in scale.items()),
        ]
        yield "The file holds weights alone. A run starts from it by:"
        command = ["jaxmatch train --config=finetune:DATA,labels=N", *map(shlex.quote, words)]
        yield from ("", "```", " ".join(command), "```")
        return
    yield f"Without jaxmatch, with `{CODE[kind].install}`:"
    yield from ("", "```python", *code_for(kind, path.name, bool(trained.known)), "```", "")
    yield "With jaxmatch, which also reads photographs and fits them to the size of the images:"
    quoted = shlex.quote(path.name)
    words = " --unknown" if trained.known else ""
    command = f"jaxmatch predict --workdir {quoted} PHOTOS -o predictions.csv{words}"
    yield from ("", "```", command, "```")


def _metrics(
    run: RunFolder, trained: Trained, evaluation: Mapping[str, Any] | None
) -> Iterable[str]:
    network, step = trained.origin["network"], trained.origin["step"]
    found, told = (evaluation or {}).get(network), f"Test images, the {network} of step {step:,}"
    if found is None:
        found, told = _of_run(run, trained)
    yield f"{told}."
    if found is not None:
        limits = found.get("intervals", {})
        share: Any = Resampling().confidence  # that of a run and of its examples
        if evaluation is not None:
            share = evaluation.get("bootstrap", {}).get("confidence")
        if limits:
            named = f"{share:.0%} " if isinstance(share, float) else ""
            yield f"Intervals are {named}bootstrap intervals over the images."
        rows = [
            (name.replace("_", " "), _number(found[name]), _interval(limits.get(name)))
            for name in METRICS
            if isinstance(found.get(name), int | float)
        ]
        yield from ("", *_table(("metric", "value", "interval"), rows, bool(limits)))
        yield from ("", *_per_class(found, limits.get("per_class", {})))
    yield ""
    yield from _calibration(run, trained)


def _of_run(run: RunFolder, trained: Trained) -> tuple[Mapping[str, Any] | None, str]:
    """The metrics that the run has of the network at its temperature, and a sentence about them."""
    network, step = trained.origin["network"], trained.origin["step"]
    summary = run.read_summary() or {}
    scores, best = summary.get(network) or {}, summary.get("best") or {}
    calibration = run.read_calibrations().get(step, {})
    told = f"Test images, the {network} of step {step:,}"
    if scores.get("metrics") and summary["steps"] == step:
        found = {**scores["metrics"], "intervals": scores.get("intervals", {})}
        temperature = calibration.get(network, {}).get("temperature", 1.0)
        told = f"{told}, the last one"
    elif best.get("step") == step and best["test"].get(network):
        found, temperature = best["test"][network], 1.0  # metrics.jsonl is never calibrated
        told = f"{told}, the best one"
    else:
        return None, _missing("no metrics", step)
    if "per_class" in found and temperature == trained.temperature:
        return found, told
    of = {"format": FORMAT, "step": step, "network": network, "temperature": trained.temperature}
    examples = run.read_examples(of)
    if examples is not None and len({*examples.get("test", ())}) == 1:  # all are classified
        return {**examples["metrics"], "intervals": examples["intervals"]}, told
    if "per_class" not in found and "test_images" in best:
        return None, _missing("metrics of a part of the test images alone", step)
    if temperature == trained.temperature:
        return found, told
    return {name: value for name, value in found.items() if name not in CALIBRATION}, (
        f"{told}. Negative log likelihood and calibration error are left out, because the run has "
        "them at another temperature: `jaxmatch evaluate --json --bootstrap 1000` and `jaxmatch "
        "export --evaluation FILE` put all figures into the card"
    )


def _missing(metrics: str, step: int) -> str:
    return (
        f"The run has {metrics} at this step; `jaxmatch evaluate` measures them (`--step {step}`), "
        "and `jaxmatch export --evaluation` takes them"
    )


def _per_class(found: Mapping[str, Any], limits: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for name, row in found.get("per_class", {}).items():
        own = limits.get(name, {})
        known = [
            " ".join(filter(None, (_number(value), _interval(own.get(key)))))
            if value is not None
            else "-"
            for key, value in shares(row).items()
        ]
        rows.append((_text(name), *known, f"{row['support']:,}"))
    return _table(("class", "precision", "recall", "F1", "test images"), rows) if rows else []


def _calibration(run: RunFolder, trained: Trained) -> Iterable[str]:
    network = trained.origin["network"]
    found = run.read_calibrations().get(trained.origin["step"])
    if found is None:
        yield "Calibration: no temperature is fitted for this step."
        return
    each = found[network]
    if each["temperature"] != trained.temperature:
        yield (
            f"Calibration: the fitted temperature, {each['temperature']:.4g}, is left out of this "
            "file."
        )
        return
    yield (
        f"Calibration: temperature {each['temperature']:.4g}, fitted on {found['images']:,} "
        "validation images, which give:"
    )
    rows = [
        (name.replace("_", " "), _number(each["before"][name]), _number(each["after"][name]))
        for name in CALIBRATION
        if name in each["before"] and name in each["after"]
    ]
    yield from ("", *_table(("metric", "before", "after"), rows))


def _evaluation_data(run: RunFolder) -> Iterable[str]:
    found = findings.read(run.path)
    if found is None:
        return ["An older version wrote the run: the numbers of its images are not recorded."]
    drawn = "drawn at random from the training images" if found["test_drawn"] else "of the data set"
    validation = found["validation"]
    return [
        f"- {counted(found['test'], 'test image')}, {drawn}.",
        f"- {counted(validation, 'validation image')}."
        if validation
        else "- There is no validation set.",
    ]


def _training_data(run: RunFolder, classifier: Classifier) -> Iterable[str]:
    found = findings.read(run.path)
    if found is None:
        labels = classifier.program.spec.labels
        rows = [
            (_text(name), f"{labels.count(number):,}")
            for number, name in enumerate(classifier.classes)
        ]
        return [
            f"{len(labels):,} labeled and {classifier.program.spec.unlabeled:,} unlabeled images.",
            "",
            *_table(("class", "labeled"), rows),
        ]
    rows = [
        (_text(name), *(f"{each[kind]:,}" for kind in findings.KINDS))
        for name, each in found["counts"].items()
    ]
    return [
        f"- Data: {_text(_source(found['name']))}: {findings.total(found)}.",
        f"- Images: {_text(findings.pixels(found))}.",
        *(f"- {_text(line)}" for line in findings.remarks(found)),
        "- Of unlabeled images the table counts those whose class is known; the method does not "
        "read it.",
        "",
        *_table(("class", *findings.KINDS), rows),
    ]


def _source(name: str) -> str:
    """The name of a data set, without the folders of this machine."""
    kind, colon, place = name.partition(":")
    return f"{kind}:{Path(place).name}" if colon and names_path(name) else name


def _questions(section: str) -> Iterable[str]:
    return [f"- To fill in: {question}" for question in QUESTIONS[section]]


def _table(
    names: Sequence[str], rows: Iterable[Sequence[str]], whole: bool = True
) -> Iterable[str]:
    """A table in Markdown; without its last column unless ``whole``."""
    end = None if whole else -1
    for row in (names, ["---"] * len(names), *rows):
        yield f"| {' | '.join(row[:end])} |"


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"


def _interval(limits: Sequence[float] | None) -> str:
    return f"[{limits[0]:.4g}, {limits[1]:.4g}]" if limits else ""


def _text(text: str) -> str:
    """A name that does not end a cell of a table, nor begin markup."""
    shown = printable(text)
    return "".join(f"\\{each}" if each in "\\`*_<>[]|#" else each for each in shown)
