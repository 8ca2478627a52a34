"""The runs behind one published table.

jaxmatch sweep --config=experiments/tables/sweep.py:cifar10 --workdir=runs/tables/cifar10

The argument is TABLE and any of ``methods=NAME+NAME``, ``labels=N+N``, ``seeds=S+S``, ``preset=P``,
with commas between. Seed 0 of everything comes first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxmatch.config.flags import load_module
from jaxmatch.config.presets import PRESETS
from jaxmatch.errors import InputError, suggest

SEEDS = ("0", "1", "2")
ALL = "all"  # of a run that reads every label, which is beside every number of labels


@dataclass(frozen=True, kw_only=True)
class Method:
    """A row of the tables: a config and what it overrides."""

    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    labels: str = ""  # if not the column's


@dataclass(frozen=True, kw_only=True)
class Table:
    """A published table: its columns, and the rows that we can fill."""

    title: str
    data: str  # of the config argument
    labels: tuple[str, ...]
    methods: tuple[str, ...]
    percent: tuple[str, ...] = ()  # the numbers of labels as the literature calls them
    recipes: tuple[str, ...] = ()  # the methods with settings for it, if not all
    splits: tuple[str, ...] = ()  # a file of labeled images for each number of labels
    protocol: str = ""  # of our runs, where the preset differs from a source
    preset: str = "jaxmatch"  # of our runs, unless one is chosen
    # Of a table over several data sets, by its column: data, number of labels, pretrained weights.
    columns: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)


def _plain(*names: str) -> dict[str, Method]:
    return {name: Method(config=name) for name in names}


PRETRAINED = _plain("simclr", "simclr_v2", "moco_v2", "byol", "swav", "pcl", "wcl")
METHODS = {
    "fully_supervised": Method(config="supervised", labels=ALL),
    **_plain("supervised", "pseudo_label", "pi_model", "temporal_ensembling", "mean_teacher"),
    "vat": Method(config="vat", settings={"algorithm.entropy_weight": 0.0}),
    "vat_entmin": Method(config="vat", settings={"algorithm.entropy_weight": 0.06}),
    **_plain("mixmatch", "remixmatch", "uda", "s4l_rotation"),
    "fixmatch": Method(config="fixmatch", settings={"augment": "randaugment"}),
    "fixmatch_ctaugment": Method(config="fixmatch", settings={"augment": "ctaugment"}),
    **_plain("fixmatch_eman", "dash", "flexmatch", "freematch", "softmatch", "adamatch"),
    **_plain("comatch", "simmatch", "simmatch_v2", "selfmatch"),
    **PRETRAINED,
}
SMALL = tuple(name for name in METHODS if name not in PRETRAINED)
USB_CV = {
    f"{name}-{labels}": (data, "all" if data.startswith("folder:") else labels, weights)
    for name, data, numbers, weights in (
        ("cifar100", "tfds:cifar100", ("200", "400"), "vit_small_patch2_32_mlp_im_1k_32"),
        ("stl10", "tfds:stl10", ("40", "100"), "mae_pretrain_vit_base"),
        ("eurosat", "tfds:eurosat", ("20", "40"), "vit_small_patch2_32_mlp_im_1k_32"),
        ("tissuemnist", "npz:tissuemnist.npz", ("80", "400"), "vit_tiny_patch2_32_mlp_im_1k_32"),
        ("semi_aves", "folder:semi_aves", ("3959",), "vit_small_patch16_224_mlp_im_1k_224"),
    )
    for labels in numbers
}
BEST = "An evaluation every 1,024 steps, so the best of ours is chosen among more than theirs."
TABLES = {
    "cifar10": Table(
        title="CIFAR-10",
        data="tfds:cifar10",
        labels=("40", "250", "4000"),
        methods=SMALL,
        protocol=BEST,
    ),
    "cifar100": Table(
        title="CIFAR-100",
        data="tfds:cifar100",
        labels=("400", "2500", "10000"),
        methods=SMALL,
        protocol=f"WRN-28-8, with preset usb WRN-28-2. {BEST}",
    ),
    "svhn": Table(
        title="SVHN",
        data="tfds:svhn_cropped",
        labels=("40", "250", "1000"),
        methods=SMALL,
        protocol=(
            "As many labels of each class, 73,257 train images, no flips; presets torchssl and usb "
            f"have the extra images and flips too. {BEST}"
        ),
    ),
    "stl10": Table(
        title="STL-10",
        data="tfds:stl10",
        labels=("40", "250", "1000"),
        methods=SMALL[1:],  # most of whose images have no label
        protocol=f"Labels drawn by seed, not the data set's folds; first stride 2. {BEST}",
    ),
    "imagenet": Table(
        title="ImageNet",
        data="tfds:imagenet2012",
        labels=("12811", "128116"),
        percent=("1%", "10%"),
        recipes=(
            *("s4l_rotation", "fixmatch", "fixmatch_eman", "comatch", "simmatch", "simmatch_v2"),
        ),
        splits=("1percent.txt", "10percent.txt"),
        protocol="SimCLR's lists of labeled images, in the folder where a run starts.",
        methods=(
            *("supervised", "pseudo_label", "vat", "vat_entmin", "s4l_rotation", "uda"),
            *("fixmatch", "flexmatch", "fixmatch_eman", "comatch", "simmatch", "simmatch_v2"),
            *PRETRAINED,
        ),
    ),
    "usb_cv": Table(
        title="USB's benchmark of pretrained transformers",
        data="",
        labels=tuple(USB_CV),
        columns=USB_CV,
        preset="usb_cv",
        methods=(
            *("supervised", "pseudo_label", "pi_model", "mean_teacher", "vat_entmin", "mixmatch"),
            *("remixmatch", "uda", "fixmatch", "dash", "flexmatch", "freematch", "softmatch"),
            *("adamatch", "comatch", "simmatch"),
        ),
        protocol=(
            "ViT-S/2, ViT-B/16, ViT-T/2 or ViT-S/16 from USB's pretrained weights, in the folder "
            "pretrained beside tissuemnist.npz and semi_aves. An evaluation every 2,048 steps."
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an argument chooses of a table; a tuple is empty where it does not say."""

    name: str
    methods: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()
    preset: str = "jaxmatch"

    @property
    def table(self) -> Table:
        """The table itself."""
        return TABLES[self.name]


def sweep(argument: str) -> Iterator[dict[str, Any]]:
    """The points of ``TABLE[,methods=..][,labels=..][,seeds=..][,preset=..]``.

    A preset leaves out the methods for which it does not exist, unless they are named.

    Raises:
        InputError: on an unknown name, or a method without a recipe for the table.
    """
    chosen = choose(argument)
    table = chosen.table
    recipes = table.recipes or table.methods
    for name in chosen.methods:
        if name not in recipes:
            raise InputError(
                f"{name} has no {table.title} recipe; {', '.join(recipes)} have. python -m "
                f"experiments.tables {chosen.name} shows what is published."
            )
    methods = chosen.methods or tuple(
        name for name in recipes if _has_preset(name, table, chosen.preset)
    )
    for seed in chosen.seeds or SEEDS:
        whole = [] if table.splits or table.columns else [ALL]
        for labels in chosen.labels or (*table.labels, *whole):
            for name in methods:
                if (METHODS[name].labels == ALL) == (labels == ALL):
                    yield point(table, name, labels, seed, chosen.preset)


def choose(argument: str) -> Choice:
    """Read ``TABLE[,methods=..][,labels=..][,seeds=..][,preset=..]``, checked."""
    name, *pairs = argument.split(",")
    if name not in TABLES:
        raise InputError(f"unknown table {name!r}; {suggest(name, TABLES)}")
    known: dict[str, Sequence[str]] = {
        "methods": TABLES[name].methods,
        "labels": (*TABLES[name].labels, ALL),
        "seeds": (),
        "preset": (*PRESETS, *({TABLES[name].preset} - set(PRESETS))),
    }
    values: dict[str, Any] = {"preset": (TABLES[name].preset,)}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if key not in known or not equals:
            raise InputError(f"cannot read {pair!r} after the table; {suggest(key, known)}")
        words = tuple(text.split("+"))
        for word in words:
            if key == "seeds" and not word.isdecimal():
                raise InputError(f"{pair}: {word!r} is no seed, which is a whole number.")
            if key != "seeds" and word not in known[key]:
                raise InputError(f"{pair}: {word!r} is none of {name}; {suggest(word, known[key])}")
        values[key] = words
    if len(values["preset"]) > 1:
        raise InputError("choose one preset at a time.")
    (values["preset"],) = values["preset"]
    return Choice(name=name, **values)


def point(table: Table, method: str, labels: str, seed: str, preset: str) -> dict[str, Any]:
    """One run: its config, its overrides and its folder inside the table's."""
    row = METHODS[method]
    chosen = f",preset={preset}" if preset != "jaxmatch" else ""
    if table.splits:
        chosen += f",split={dict(zip(table.labels, table.splits, strict=True))[labels]}"
    data, number, weights = table.columns.get(labels, (table.data, labels, ""))
    return {
        "config": f"{row.config}:{data},labels={row.labels or number},seed={seed}{chosen}",
        **row.settings,
        **({"init_from": f"pretrained/{weights}.safetensors"} if weights else {}),
        "workdir": f"{folder(method, labels, preset)}{seed}",
    }


def folder(method: str, labels: str, preset: str) -> str:
    """What the run folders of a cell are called, up to the seed."""
    chosen = f"-{preset}" if preset != "jaxmatch" else ""
    return f"{method}{chosen}-{METHODS[method].labels or labels}-s"


def _has_preset(method: str, table: Table, preset: str) -> bool:
    if preset == "jaxmatch":
        return True
    data = next((data for data, *_ in table.columns.values()), table.data)
    get_config = load_module(METHODS[method].config).get_config
    get_config(data)  # whatever else is wrong with it is an error
    try:
        get_config(f"{data},preset={preset}")
    except InputError:
        return False
    return True
