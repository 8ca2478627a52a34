"""Every key of a configuration: its default, the values that it takes, and what it means."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from jaxmatch.algorithms import ALGORITHMS
from jaxmatch.algorithms.unequal import Unequal
from jaxmatch.augment.build import CONTRASTS, Crops, Order, Strong
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.ctaugment import CTAugment
from jaxmatch.augment.randaugment import RandAugment
from jaxmatch.augment.weak import Weak
from jaxmatch.config.dotted import flatten
from jaxmatch.errors import InputError, suggest
from jaxmatch.models.build import MODELS, Dtype, model_class, model_settings
from jaxmatch.models.network import Forward, Precision
from jaxmatch.optim.ema import Ema
from jaxmatch.optim.optimizer import Optim
from jaxmatch.runtime.mesh import Placement
from jaxmatch.settings import Count, NonNegative, Part, Positive, Range, Share, Whole
from jaxmatch.types import Algorithm

LIST = "jaxmatch describe --keys"  # the command that lists the keys
Level = Annotated[int, Range(least=0, most=255)]


class Key(NamedTuple):
    """A setting that belongs to no dataclass."""

    default: Any
    kind: Any  # a type as :mod:`jaxmatch.settings` describes them
    meaning: str


KEYS: dict[str, Key] = {
    "recipe": Key("", str, "Name of the config file; the run folder's name begins with it."),
    "preset": Key("jaxmatch", str, "Code base whose settings are taken; set in the argument."),
    "views_preset": Key(
        "", str, "Named augmentation that is taken; set by views= in the argument."
    ),
    # NumPy takes no larger seed.
    "seed": Key(0, Annotated[int, Range(least=0, most=2**32 - 1)], "Seed of all random numbers."),
    "size": Key(
        "",
        str,
        "Settings for own images: small, base, large, auto (by the devices) or paper (those of "
        "CIFAR-10); set in the argument. None in other settings means that the size chooses them.",
    ),
    "minutes": Key(
        0.0,
        Annotated[float, Range(least=0)],
        "Minutes that a run may take, from which steps are chosen; 0 keeps steps.",
    ),
    "steps": Key(2**20, Count, "Optimizer steps of the run."),
    "steps_per_call": Key(64, Count, "Steps of one compiled call; divides all periods."),
    "log_every": Key(256, Count, "Steps between two lines of metrics."),
    "eval_every": Key(1024, Count, "Steps between two evaluations."),
    "save_every": Key(8192, Count, "Steps between two checkpoints."),
    "keep": Key(3, Count, "Number of newest checkpoints that are kept."),
    "keep_best": Key(
        "",
        str,
        "Metric whose best checkpoint is kept, too: validation/accuracy or another metric of "
        "evaluate, for the student validation/student/accuracy; empty keeps none.",
    ),
    "select": Key(
        "",
        str,
        "As keep_best, such as validation/balanced_accuracy, and evaluate, predict, export and "
        "jaxmatch.load use that checkpoint by default; empty for the newest.",
    ),
    "devices": Key(0, Whole, "Number of devices; 0 takes all that divide the batches."),
    "memory_placement": Key(
        "auto",
        Placement,
        "Memories with a row for each example: replicated on all devices, sharded over them, or "
        "auto: sharded above 64 MiB.",
    ),
    "workers": Key(0, Whole, "Processes that decode streamed images; 0 takes one a core, to 32."),
    "wandb": Key("", str, "Project of Weights & Biases (extra wandb) for metrics; empty for none."),
    "init_from": Key(
        "", str, "Run folder, run or file of weights whose encoder is the first; empty for none."
    ),
    "init_heads": Key((), tuple[str, ...], "Heads that init_from gives, beside the encoder."),
    "classifier_init": Key(
        "random",
        Literal["random", "means", "logistic"],
        "First classifier of a run that begins from init_from: random, or fitted to the features "
        "of the labeled images: means (of the classes) or logistic (regression).",
    ),
    "classifier_temperature": Key(
        0.0,
        NonNegative,
        "Number that divides the logits of a fitted first classifier; 0 fits it to the labels.",
    ),
    "init_rules": Key(
        "timm",
        Literal["timm", "usb"],
        "How a Vision Transformer starts from init_from. timm: position embeddings are resized "
        "with antialiasing, and a file's classifier is kept if its number of classes is the "
        "run's. usb: bicubic without antialiasing, and classifier and fc_norm are always new.",
    ),
    "dtype": Key("float32", Dtype, "Dtype of activations."),
    "precision": Key(
        "default",
        Precision,
        "Precision of float32 products on TPUs and GPUs: default (one pass), high or highest.",
    ),
    "forward": Key(
        "joint",
        Forward,
        "Which views are one BatchNorm batch: joint (all), split (targets apart) or separate.",
    ),
    "microbatches": Key(1, Count, "Parts that the network sees one after another, to save memory."),
    "remat": Key(False, bool, "Compute activations again in the backward pass, to save memory."),
    "augment": Key("randaugment", Strong, "How strong views are made."),
    "data.name": Key(
        "", str, "Data set: mnist5k, digits, fashion_mnist, tfds:NAME, folder:DIR or npz:FILE."
    ),
    "data.labels": Key("all", str, "Number of labeled images, or all; none if no label is read."),
    "data.split": Key(
        "", str, "File that names the labeled images; empty draws them by data.balance."
    ),
    "data.balance": Key(
        "equal",
        Literal["equal", "proportional", "as_given"],
        "How data.labels images are drawn: equal, the same number of each class; proportional, as "
        "frequent as the classes are, but at least one; as_given, from all images with a label "
        "alike. data.labels=all takes all.",
    ),
    "data.imbalance": Key(
        1.0,
        Annotated[float, Range(least=1, most=1e6)],
        "gamma of a long tail of labeled images, for experiments: class k of C has N_1 "
        "gamma^(-(k-1)/(C-1)), rounded down as in USB. data.labels stays the total, and N_1 "
        "follows from it; 1 for none.",
    ),
    "data.largest": Key(
        0,
        Whole,
        "Labeled images N_1 of the first class of a long tail, USB's num_labels; 0 takes the total "
        "data.labels, which otherwise must be all.",
    ),
    "data.imbalance_unlabeled": Key(
        "",
        str,
        "gamma of a long tail of unlabeled images, whose true classes the draw reads: a number; "
        "with a minus sign, or reversed (with data.imbalance), the last class is the largest; 1 "
        "for equal classes; empty takes all images.",
    ),
    "data.largest_unlabeled": Key(
        0,
        Whole,
        "Unlabeled images M_1 of the largest class of that tail, USB's ulb_num_labels; 0 takes as "
        "many as there are. Labeled ones come on top, if data.include_labeled.",
    ),
    "data.added_labels": Key(
        "",
        str,
        "Tables path,label (of other sources than folders index,label), separated by commas, whose "
        "labels are added to those of the data: what jaxmatch suggest wrote, filled in.",
    ),
    "data.pseudo_labels": Key(
        "",
        str,
        "File of jaxmatch pseudo-label for the unlabeled images: targets of distillation in place "
        "of frozen.teacher, or labels of further labeled images of supervised and finetune.",
    ),
    "data.validation": Key(
        0,
        Whole,
        "Number of labeled training images held out for validation; 0 holds out none, and takes "
        "the validation set of the data, if it has one.",
    ),
    "data.validation_draw": Key(
        "stratified",
        Literal["stratified", "balanced"],
        "How these are drawn: stratified, as frequent as the classes are, or balanced, equally "
        "many of each class.",
    ),
    "data.eval_images": Key(
        0,
        Whole,
        "Held-out images of an evaluation during training, 0 for all; the last one takes all.",
    ),
    "data.include_labeled": Key(True, bool, "Use labeled images as unlabeled ones, too."),
    "data.known_classes": Key(
        (),
        tuple[str, ...],
        "Classes of an experiment with strangers: labels and held-out images are of these alone, "
        "training images of others are unlabeled ones; () takes all classes.",
    ),
    "data.strangers": Key(
        True, bool, "Keep the training images of classes other than data.known_classes."
    ),
    "data.batch_size": Key(64, Count, "Labeled images of a step, B."),
    "data.ratio": Key(7, Whole, "Unlabeled images of a step for each labeled one, mu."),
    "data.mean": Key((0.5,), tuple[float, ...], "Mean of the network's input, in [0, 1]."),
    "data.std": Key((0.5,), tuple[Positive, ...], "Standard deviation of the network's input."),
    "data.image_size": Key(
        None,
        Annotated[int | None, Range(least=1, most=2**14)],
        "Side that images are resized to; None keeps their size.",
    ),
    "data.directory": Key(
        "", str, "Directory of TFDS data sets or of Fashion-MNIST; empty: the usual."
    ),
    "data.extra": Key(False, bool, "Add SVHN's extra images to the training images."),
    "data.strict": Key(False, bool, "Stop at an image that cannot be read."),
    "data.stream": Key(False, bool, "Read images from the host in each step; for large data sets."),
    "data.background": Key(
        (255,),
        tuple[Level] | tuple[Level, Level, Level] | tuple[()],
        "Level, or levels of the channels, behind transparent pixels; () ignores transparency.",
    ),
    "data.white_level": Key(
        None,
        Count | None,
        "Level of gray images of more than 8 bits that becomes white; None is the type's largest.",
    ),
    "data.center_crop": Key(
        1.0,
        Part,
        "Share of an image's sides that evaluations use; of images in memory training, too.",
    ),
    "model.name": Key("wide_resnet", str, f"Network: {', '.join(MODELS)}."),
    "algorithm.name": Key("", str, "Method; the recipe sets it."),
    "views.weak.area": Key(
        (),
        tuple[Share, Share] | tuple[()],
        "Range of the area of a random resized crop; empty pads and crops instead.",
    ),
    "views.crops": Key(
        (),
        Crops,
        "Multi-crop: (side in pixels, least, largest area) of each strong view after the first; "
        "empty is like the first. With augment=contrast.",
    ),
    "views.strong.order": Key(
        "weak_first", Order, "Order of a strong view: weak_first or (TorchSSL's) ops_first."
    ),
}
# The sections whose settings are the fields of a dataclass, which documents them.
SECTIONS: dict[str, type] = {
    "views.weak": Weak,
    "views.strong": RandAugment,
    **dict.fromkeys((f"views.{role}" for role in CONTRASTS), Contrast),
    "views.ctaugment": CTAugment,
    "optim": Optim,
    "ema": Ema,
    "unequal": Unequal,
}


ATTRIBUTES = "Attributes:\n"
ATTRIBUTE = re.compile(r"^    (\w[\w, ]*): (.*\n?(?: {5,}.*\n?)*)", re.MULTILINE)
# Roles and literals of reStructuredText, which a terminal shows without their marks.
MARKUP = re.compile(r"(?::\w+:)?`+~?([^`]+)`+")
WORDS = {
    int: "whole number",
    float: "number",
    bool: "True or False",
    str: "text",
    NoneType: "None",
}


def defaults() -> dict[str, Any]:
    """The configuration before anything is chosen, at CIFAR scale; it has no method yet."""
    sections = {name: field_defaults(kind) for name, kind in SECTIONS.items()}
    sections["model"] = model_settings("wide_resnet")
    values = {key: entry.default for key, entry in KEYS.items() if key != "algorithm.name"}
    values |= {
        f"{name}.{key}": value for name, part in sections.items() for key, value in part.items()
    }
    # The command line reads any literal for these, and so None again after another value.
    typed = {key: placeholder(object) if value is None else value for key, value in values.items()}
    return {**_nested(typed), "frozen": {}}


def kinds_of(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """The type of each key of one run's configuration."""
    found = {key: entry.kind for key, entry in KEYS.items()}
    own = {"model": model_class(config["model"]["name"])}
    if config["algorithm"]["name"] in ALGORITHMS:
        own["algorithm"] = ALGORITHMS[config["algorithm"]["name"]]
    for name, kind in {**SECTIONS, **own}.items():
        for field in fields(kind):
            found.setdefault(f"{name}.{field.name}", field.type)
    return found


def field_defaults(kind: type) -> dict[str, Any]:
    """The default of each field of a dataclass."""
    return {field.name: field.default for field in fields(kind)}


class Documented(NamedTuple):
    """A key as ``jaxmatch describe --keys`` prints it."""

    key: str
    kind: str
    value: Any
    meaning: str


def documented(config: Mapping[str, Any] | ConfigDict | None = None) -> Iterator[Documented]:
    """Every key with its type, its value and its meaning.

    Args:
        config: one run's configuration, whose values are given; by default the defaults, of every
            method and every network.
    """
    # A name that stands for other defaults has the settings of its class, which is listed, too.
    networks = tuple(name for name, entry in MODELS.items() if not entry.usual)
    if config is None:
        values, methods, models = ConfigDict(defaults()), tuple(ALGORITHMS), networks
    else:
        values = dict(config)
        methods, models = (values["algorithm"]["name"],), (values["model"]["name"],)
    flat = flatten(values)
    for key, entry in KEYS.items():
        yield Documented(key, kind_text(entry.kind), flat.get(key, entry.default), entry.meaning)
    for section, kind in SECTIONS.items():
        yield from _documented_fields(section, kind, flat, field_defaults(kind))
    several = config is None
    for name in models:
        usual, kind = model_settings(name), model_class(name)
        given = {} if several else flat
        for row in _documented_fields("model", kind, given, usual):
            yield row._replace(meaning=f"{name}: {row.meaning}") if several else row
    for name in methods:
        usual, kind = field_defaults(ALGORITHMS[name]), ALGORITHMS[name]
        rows = _documented_fields("algorithm", kind, {} if several else flat, usual)
        for row in (*rows, *_documented_frozen(kind, flat)):
            yield row._replace(meaning=f"{name}: {row.meaning}") if several else row


def with_prefix(rows: Iterable[Documented], prefix: str) -> list[Documented]:
    """The rows whose key is ``prefix``, lies in the section ``prefix`` or begins with it.

    The key of a stage may begin with it after its ``stages.NAME.``, too.

    Raises:
        InputError: if there is none; it names the nearest key or section.
    """
    rows = list(rows)
    found = [
        row
        for row in rows
        if row.key.startswith(prefix) or without_stage(row.key).startswith(prefix)
    ]
    if not found:
        known = {row.key for row in rows} | {row.key.rpartition(".")[0] for row in rows} - {""}
        raise InputError(f"no config key begins with {prefix!r}; {suggest(prefix, known, LIST)}")
    return found


def without_stage(key: str) -> str:
    """A key of a stage, ``stages.NAME.KEY``, without the stage; other keys as they are."""
    return key.split(".", 2)[2] if key.startswith("stages.") else key


def _documented_fields(
    section: str, kind: type, given: Mapping[str, Any], usual: Mapping[str, Any]
) -> Iterator[Documented]:
    meanings = attribute_meanings(kind)
    types = {field.name: field.type for field in fields(kind)}
    for name, default in usual.items():
        key = f"{section}.{name}"
        if key not in KEYS:
            value = given.get(key, default)
            yield Documented(key, kind_text(types[name]), value, meanings.get(name, ""))


def _documented_frozen(kind: type[Algorithm], given: Mapping[str, Any]) -> Iterator[Documented]:
    for role in kind.frozen:
        key, meaning = f"frozen.{role}", f"Run folder of the trained network that is the {role}."
        yield Documented(key, kind_text(str), given.get(key, ""), meaning)


def attribute_meanings(kind: type) -> dict[str, str]:
    """The meaning of each attribute that the docstrings of a class and its bases list.

    The text after a name goes on in lines that are indented further.
    """
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(vars(base).get("__doc__") or "").partition(ATTRIBUTES)
        for names, text in ATTRIBUTE.findall(listed):
            meaning = MARKUP.sub(r"\1", " ".join(text.split()))
            found |= dict.fromkeys(re.split(r", ", names), meaning[:1].upper() + meaning[1:])
    return found


def kind_text(kind: Any) -> str:
    """A field's type in words, such as "whole number, 1 or more"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, *bounds = arguments
        ranges = [text for each in bounds if isinstance(each, Range) and (text := each.text())]
        return ", ".join([kind_text(base), *ranges])
    if origin in (Union, UnionType):
        return " or ".join(kind_text(each) for each in arguments)
    if origin is Literal:
        return " or ".join(f'"{each}"' for each in arguments)
    if origin is tuple:
        if not arguments:
            return "()"
        inner = ", ".join("..." if each is Ellipsis else kind_text(each) for each in arguments)
        return f"({inner})"
    return WORDS.get(kind) or str(kind)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as sections within sections."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return nested
