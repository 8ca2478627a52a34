"""The published figures that our runs stand beside, with their sources and protocols.

All are error rates in percent as their source prints them, or 100 less the accuracy it prints;
"5.07±0.33" is a mean and a standard deviation.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "published"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of ``published/`` with a column for each number of labels.

    Attributes:
        name: heads its column.
        statistic: "median_20", "mean_20" or "best", which is selected on the test set.
        origin: where the figures are printed, and their protocol.
        networks: by table.
        notes: of a table.
        doubts: of a row, or of a row of one table (method, table).
    """

    name: str
    file: str
    statistic: str
    origin: str
    networks: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    doubts: Mapping[str | tuple[str, str], str] = field(default_factory=dict)

    def cells(self, table: str) -> dict[tuple[str, str], str]:
        """The figures of a table by (row, labels); the row is our name, or the source's own."""
        found = {}
        for row in _rows(self.file):
            for column, text in row.items():
                name, _, labels = column.partition(" ")
                if name == table and text != "-":
                    found[row["method"] or row["printed"], labels] = text
        return found

    def doubt(self, row: str, table: str) -> str:
        """What is wrong with a row's figures; "" if nothing is known to be."""
        return self.doubts.get((row, table), "") or self.doubts.get(row, "")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published figure of a source that prints few."""

    row: str
    labels: str
    error: str
    top5: str
    printed: str  # the row's name there
    source: str  # a key of AUTHORS or of IMAGENET


SIZES = {"cifar10": "WRN-28-2", "svhn": "WRN-28-2", "stl10": "WRN-37-2"}
LARGE = {**SIZES, "cifar100": "WRN-28-8", "usb_cv": "ViT"}
CHANCE = (
    "Figures at 90.0 (of 10 classes) or 99.0 (of 100) are of runs that had collapsed to chance."
)
EXTRA = "Train and extra images (604,388), with horizontal flips."
USB_DASH = "In USB's code (of 2023) the first threshold is a loss on the test set."
LOST_SHARPENING = "Possibly without UDA's sharpening, which that code has lost."
DIVERGED = (
    "The runs diverged to chance (of STL-10 with 1,000 labels some of them), most likely by a "
    "logarithm of a softmax; their best is from before that."
)
NO_ALL_LABELS = (
    "No run with all labels: USB's loader has none for STL-10, so these are the labeled images."
)
ENTMIN = 'The row that is printed as "VAT" is VAT+EntMin.'

SOURCES = (
    Source(
        name="FixMatch paper",
        file="fixmatch_paper.csv",
        statistic="median_20",
        origin=(
            "Table 2 of https://arxiv.org/abs/2001.07685: median of the last 20 evaluations, every "
            "1,024 steps; mean and deviation over 5 folds (seeds 1 to 5). Written down from "
            "memory, then held against other papers' listings: CIFAR-10 from MixMatch to FixMatch, "
            "CIFAR-100 of ReMixMatch, FixMatch and UDA (400, 2500), SVHN of ReMixMatch and "
            "FixMatch, the means of STL-10; the other cells are unchecked."
        ),
        networks=LARGE,
        notes={
            "svhn": "Without the extra images, no flips, labels by class frequency.",
            "stl10": "First stride 1; the data set's own folds of 1,000 labels.",
        },
        doubts={
            "pseudo_label": (
                "Probably by the released code, which multiplies the means of mask and loss in "
                "place of masking each image."
            )
        },
    ),
    Source(
        name="USB 2022, last 20",
        file="usb_2022_last20.csv",
        statistic="mean_20",
        origin=(
            "results/Classic_CV.xls, sheet Top1_20, of github.com/microsoft/Semi-supervised-"
            "learning at 3538533 (2022-06): mean, not median, of the last 20 evaluations, every "
            f"5,120 steps; seeds 0, 1, 2, population deviation. {CHANCE} {ENTMIN}"
        ),
        networks=LARGE,
        notes={"svhn": EXTRA, "stl10": "The labeled images are twice in the unlabeled pool."},
        doubts={
            "dash": USB_DASH,
            ("fully_supervised", "stl10"): NO_ALL_LABELS,
            ("uda", "cifar100"): DIVERGED,
            ("uda", "stl10"): DIVERGED,
        },
    ),
    Source(
        name="TorchSSL",
        file="torchssl.csv",
        statistic="best",
        origin=(
            "README of github.com/TorchSSL/TorchSSL at f26e1d4 (2022): best test accuracy of the "
            "run, evaluated every 5,000 steps, then every 1,000 after 80%; seeds 0, 1, 2. What it "
            "calls standard errors are population deviations in its script. FullySupervised "
            f"reads all labels; Flex rows add FlexMatch's thresholds. {ENTMIN}"
        ),
        networks=LARGE,
        notes={"svhn": EXTRA},
    ),
    Source(
        name="USB 2022, best",
        file="usb_2022_best.csv",
        statistic="best",
        origin=(
            "the same file as USB 2022, last 20, sheet BestAcc: best test accuracy of the run, "
            f"every 5,120 steps; seeds 0, 1, 2, population deviation. {ENTMIN}"
        ),
        networks=LARGE,
        notes={"svhn": EXTRA, "stl10": "The labeled images are twice in the unlabeled pool."},
        doubts={
            "dash": USB_DASH,
            ("fully_supervised", "stl10"): NO_ALL_LABELS,
            ("uda", "cifar100"): DIVERGED,
            ("uda", "stl10"): DIVERGED,
        },
    ),
    Source(
        name="USB 2023, best",
        file="usb_2023_best.csv",
        statistic="best",
        origin=(
            "results/classic_cv.csv of the same repository (semilearn 0.3.0, 2023): best test "
            "accuracy of the run, every 5,120 steps; seeds 0, 1, 2, population deviation. Its "
            "usb_cv.csv (pre-trained vision transformers) is the table usb_cv. "
            f"{ENTMIN}"
        ),
        networks={**LARGE, "cifar100": "WRN-28-2"},
        notes={
            "svhn": EXTRA,
            "cifar100": (
                "A network 16 times smaller than the others': its figures do not compare with "
                "theirs, nor with ours but for preset usb."
            ),
        },
        doubts={
            "mean_teacher": (
                "Invalid: in that code the consistency loss is zero, so that these are supervised "
                "runs."
            ),
            "uda": LOST_SHARPENING,
            "dash": USB_DASH,
        },
    ),
    Source(
        name="USB 2023",
        file="usb_cv.csv",
        statistic="best",
        origin=(
            "results/usb_cv.csv of the same repository at 1ef4cbe: mean and population deviation "
            "of seeds 0, 1, 2. The file does not tell the statistic; that of its other tables is "
            f"the best test accuracy of the run. {ENTMIN}"
        ),
        networks={"usb_cv": "ViT"},
        notes={
            "usb_cv": (
                "CoMatch and SimMatch with three averaged projections (use_epass), which ours have "
                "not. fully_supervised has supervised's figures on Semi-Aves and on STL-10 with "
                "100 labels, as these sets have no further labels."
            )
        },
        doubts={"uda": LOST_SHARPENING, "dash": USB_DASH},
    ),
)

AUTHORS = {
    "dash": (
        "Dash's authors, with RandAugment, as the README of github.com/JiwonCocoder/ConMatch "
        "lists them."
    ),
    "uda scripts": "image/scripts of github.com/google-research/uda.",
    "uda README": "README of github.com/google-research/uda.",
    "simmatch": (
        "accuracies of https://arxiv.org/abs/2203.06915 as the seminar's slides print them."
    ),
    "comatch README": (
        "README of github.com/salesforce/CoMatch: mean of seeds 1 to 5 (93.71, 94.10, 92.93, "
        "90.73, 93.97); another list has it as started from SimCLR, which is unresolved."
    ),
    "comatch paper": (
        "accuracies of https://arxiv.org/abs/2011.11183 from memory, not checked; on STL-10 "
        "others report 80 to 88 depending on the seed."
    ),
    "selfmatch": (
        "accuracies of https://arxiv.org/abs/2101.06480 as the seminar's slides print them; "
        "network, length and whether SVHN has its extra images are not published."
    ),
}
IMAGENET = {
    "uda": "README of github.com/google-research/uda.",
    "uda paper": "accuracies of https://arxiv.org/abs/1904.12848 from memory, not checked.",
    "s4l": (
        "github.com/google-research/s4l at 8f1cf05: ResNet-50 v2, 13 or 128 images a class, epochs "
        "counted in labeled images."
    ),
    "s4l paper": (
        "accuracies of https://arxiv.org/abs/1905.03670; those at 1% from memory or from the "
        "slides, not checked."
    ),
    "fixmatch": "https://arxiv.org/abs/2001.07685, checked against another listing.",
    "torchssl": "README of github.com/TorchSSL/TorchSSL at f26e1d4: 100 labels a class.",
    "eman": "README of github.com/amazon-research/exponential-moving-average-normalization.",
    "eman paper": (
        "https://arxiv.org/abs/2101.08482 as the seminar's slides print it; pre-trained by "
        "MoCo-EMAN, not plain MoCo v2."
    ),
    "comatch": "README of github.com/salesforce/CoMatch.",
    "comatch paper": (
        "https://arxiv.org/abs/2011.11183 as the seminar's slides print it; the fine-tuning of "
        "MoCo v2 is the authors' own run by an unknown recipe."
    ),
    "simmatch": "released weights of github.com/mingkai-zheng/SimMatch.",
    "shrinkmatch": "README of github.com/LiheYoung/ShrinkMatch.",
    "simmatch v2": "script/train.sh of github.com/mingkai-zheng/SimMatchV2.",
    "simclr": "README of github.com/google-research/simclr (ResNet-50, width 1).",
    "wcl": "abstract of WCL (ICCV 2021), as the seminar's slides print it.",
    "slides": "the method's own paper as the seminar's slides print it.",
}
IMAGENET_NOTES = (
    "Top-1 and top-5 errors; ours is the median of the last 20 evaluations. Which evaluation the "
    "published ones are of is mostly not told.",
    "The lists of labeled images differ, so rows of different sources compare loosely: SimCLR's "
    "lists (12,811 and 128,116 images; SimCLR, SimCLR v2, BYOL, SwAV, SimMatchV2), 13 and 128 "
    "images a class (SimMatch, CoMatch, S4L, each its own), or a share of each class (EMAN).",
    "All are ResNet-50, S4L's of version 2; a network fine-tuned by SimCLR v2 keeps a layer of its "
    "head and has 29.8 million parameters in place of 25.6.",
    "Two cells of the seminar's Table 2 are wrong and not used here: 53.4 as S4L-Rotation's top-1 "
    "accuracy at 10% (its authors have 61.37; 53.37 is most likely their top-5 at 1%), and 68.8 / "
    "88.5 as VAT+EntMin's at 10%, which is UDA's row (VAT+EntMin has 60.87 / 83.28).",
)


def authors(table: str) -> list[Figure]:
    """What the authors of single methods print of a table."""
    return [
        Figure(
            row=row["method"],
            labels=row["labels"],
            error=row["error"],
            top5="",
            printed=row["method"],
            source=row["source"],
        )
        for row in _rows("authors.csv")
        if row["table"] == table
    ]


def imagenet() -> list[Figure]:
    """What is published of ImageNet, top-1 and top-5 error; labels are "1%", "10%" or "100k"."""
    return [
        Figure(
            row=row["method"],
            labels=row["labels"],
            error=row["top1"],
            top5=row["top5"],
            printed=row["printed"],
            source=row["source"],
        )
        for row in _rows("imagenet.csv")
    ]


def _rows(file: str) -> Iterator[dict[str, str]]:
    with (FOLDER / file).open(newline="") as opened:
        yield from csv.DictReader(opened)
