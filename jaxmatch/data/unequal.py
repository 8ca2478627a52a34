"""How many images of each class are labeled and unlabeled, where the classes are unequal.

The long tail has N_k = N_1 gamma^(-(k-1)/(C-1)) images of class k (Cui et al., "Class-Balanced Loss
Based on Effective Number of Samples", CVPR 2019, section 5.1), rounded down as USB does
(microsoft/Semi-supervised-learning, ``make_imbalance_data``).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from jaxmatch.data.source import Source
from jaxmatch.data.splits import Split, balanced, stratified, take
from jaxmatch.errors import InputError

REVERSED = "reversed"


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The keys of ``config.data`` that say how many images each class has.

    Attributes:
        balance: "equal", "proportional" or "as_given".
        imbalance: gamma of the labeled images; 1 leaves the shares to ``balance``.
        largest: N_1, the labeled images of the first class; 0 follows from their total.
        imbalance_unlabeled: gamma of the unlabeled images as text, "reversed", or empty: all.
        largest_unlabeled: M_1, the unlabeled images of the largest class; 0 is as many as possible.
    """

    balance: str = "equal"
    imbalance: float = 1.0
    largest: int = 0
    imbalance_unlabeled: str = ""
    largest_unlabeled: int = 0

    @classmethod
    def of(cls, data: Any) -> Self:
        """The shares of ``config.data``.

        Raises:
            InputError: if its keys contradict each other, or a value cannot be read.
        """
        shares = cls(**{field.name: getattr(data, field.name) for field in dataclasses.fields(cls)})
        tail = shares.imbalance != 1 or shares.largest > 0
        if tail and shares.balance != "equal":
            raise InputError(
                f"balance={shares.balance} and imbalance={shares.imbalance:g} both say how many "
                "labels each class has; give only one of them."
            )
        if data.split and (tail or shares.balance != "equal"):
            raise InputError(
                f"{data.split} names the labeled images; leave balance, imbalance and largest out."
            )
        if shares.largest and data.labels not in ("all", "none"):
            raise InputError(
                f"labels={data.labels} is the total, and largest={shares.largest} the number of "
                "the largest class; give only one of them (largest needs data.labels=all)."
            )
        if shares.largest_unlabeled and shares.unlabeled is None:
            raise InputError("largest_unlabeled needs imbalance_unlabeled=GAMMA beside it.")
        return shares

    @property
    def unlabeled(self) -> float | None:
        """gamma of the unlabeled images, negative if the last class is the largest; None: all.

        Raises:
            InputError: if ``imbalance_unlabeled`` cannot be read.
        """
        text = self.imbalance_unlabeled
        if not text:
            return None
        if text == REVERSED:
            if self.imbalance == 1:
                raise InputError(
                    "imbalance_unlabeled=reversed reverses the order of imbalance=GAMMA, which is "
                    "missing; give it, or a negative number such as imbalance_unlabeled=-100."
                )
            return -self.imbalance
        try:
            gamma = float(text)
        except ValueError:
            gamma = 0.0
        if not 1 <= abs(gamma) < 2**31:
            raise InputError(
                f"imbalance_unlabeled={text} must be a number of at least 1, such a number with a "
                "minus sign (the last class is the largest), or reversed."
            )
        return gamma


def long_tail(largest: int, classes: int, gamma: float) -> np.ndarray:
    """The number of images of each class, [C] int64.

    >>> print(long_tail(500, 10, 100))
    [500 299 179 107  64  38  23  13   8   5]

    Args:
        largest: N_1, of the first class.
        classes: C, at least 2.
        gamma: N_1 / N_C, at least 1; a negative number reverses the classes.
    """
    shares = np.floor(_tail(largest, classes, gamma)).astype(np.int64)
    return shares[::-1] if gamma < 0 else shares


def _tail(largest: int, classes: int, gamma: float) -> np.ndarray:
    """:func:`long_tail` before it is rounded and reversed, [C] float64."""
    # USB's order of operations, since a product that should be whole may be rounded below it.
    ratio = np.power(1 / abs(gamma), 1 / (classes - 1))
    found = [largest * np.power(ratio, number) for number in range(classes - 1)]
    return np.array([*found, largest / abs(gamma)])


def long_tail_of(total: int, classes: int, gamma: float) -> np.ndarray:
    """A long tail of ``total`` images, [C] int64.

    It is :func:`long_tail` with the largest N_1 that makes no more than ``total`` images. The rest,
    which is less than one for each class, goes to the classes with the largest remainders.
    """
    fits = _largest(lambda first: long_tail(first, classes, gamma).sum() <= total, total)
    exact = _tail(fits, classes, gamma)
    shares = np.floor(exact).astype(np.int64)
    rest = total - shares.sum()
    shares[np.argsort(-(exact - shares), kind="stable")[:rest]] += 1
    return shares[::-1] if gamma < 0 else shares


def long_tail_within(available: np.ndarray, gamma: float) -> np.ndarray:
    """The largest :func:`long_tail` that needs at most ``available`` [C] images of each class."""
    classes = len(available)
    most = int(available.max(initial=0)) * int(np.ceil(abs(gamma)))
    found = _largest(
        lambda first: bool(np.all(long_tail(first, classes, gamma) <= available)), most
    )
    return long_tail(found, classes, gamma)


def _largest(fits: Callable[[int], Any], most: int) -> int:
    """The largest number up to ``most`` that fits, where each smaller one fits, too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def draw(source: Source, labels: int | Literal["all"], seed: int, shares: Shares) -> Split:
    """Draw the labeled images.

    "equal" is :func:`jaxmatch.data.splits.balanced`. "proportional" draws as many of each class as
    it has (:func:`jaxmatch.data.splits.stratified`), but at least one. "as_given" draws from all
    images with a label alike, whatever their class. An imbalance draws a long tail; where it is
    given and ``labels`` is "all", as many images as the classes have. Whatever the shares, for one
    seed a class gives its images in the same order.

    Raises:
        InputError: if the number cannot be drawn.
    """
    tail = shares.imbalance != 1 or shares.largest > 0
    if not tail and (labels == "all" or shares.balance == "equal"):
        return balanced(source, labels, seed)
    classes = len(source.classes)
    if labels != "all" and (classes == 0 or labels < classes):
        raise InputError(
            f"labels={labels} is less than one for each of the {classes} classes of {source.name}."
        )
    known = np.flatnonzero(source.labels >= 0)
    sizes = np.bincount(source.labels[known], minlength=classes)
    if shares.balance == "as_given":
        assert labels != "all"
        return _as_given(source, known, labels, seed)
    if not tail:
        assert labels != "all"
        wanted = _proportional(source, sizes, labels)
    else:
        _check_classes(source)
        if shares.largest:
            wanted = long_tail(shares.largest, classes, shares.imbalance)
        elif labels == "all":
            wanted = long_tail_within(sizes, shares.imbalance)
        else:
            wanted = long_tail_of(labels, classes, shares.imbalance)
        _check_counts(source, sizes, wanted, f"imbalance={shares.imbalance:g}")
    rows = _of_each_class(source, known, wanted, np.random.RandomState(seed))
    return Split(indices=source.rows[rows], source=source.name, seed=seed)


def _proportional(source: Source, sizes: np.ndarray, labels: int) -> np.ndarray:
    if np.any(none := sizes == 0):
        raise InputError(
            f"class {source.classes[int(np.argmax(none))]!r} of {source.name} has no labeled "
            "training image."
        )
    if labels > sizes.sum():
        raise InputError(
            f"labels={labels} is more than the {sizes.sum()} labeled training images of "
            f"{source.name}."
        )
    wanted = stratified(sizes, sizes, labels)
    # One for each class, from those that have the most for their size.
    for number in np.flatnonzero(wanted == 0):
        wanted[number] = 1
        wanted[np.argmax(np.where(wanted > 1, wanted / sizes, -1))] -= 1
    return wanted


def _as_given(source: Source, known: np.ndarray, labels: int, seed: int) -> Split:
    if labels > len(known):
        raise InputError(
            f"labels={labels} is more than the {len(known)} labeled training images of "
            f"{source.name}."
        )
    drawn = np.random.RandomState(seed).permutation(known)[:labels]
    found = np.bincount(source.labels[drawn], minlength=len(source.classes))
    if not np.all(found):
        raise InputError(
            f"balance=as_given draws no image of class {source.classes[int(np.argmin(found))]!r} "
            f"with labels={labels} and seed={seed}; use balance=proportional, more labels or "
            "another seed."
        )
    return Split(indices=source.rows[drawn], source=source.name, seed=seed)


def _check_classes(source: Source) -> None:
    if len(source.classes) < 2:
        raise InputError(f"an imbalance needs at least two classes, which {source.name} lacks.")


def _check_counts(source: Source, sizes: np.ndarray, wanted: np.ndarray, key: str) -> None:
    """Refuse a long tail of labels that has no image of a class, or more than there are."""
    for number, name in enumerate(source.classes):
        if wanted[number] == 0:
            raise InputError(
                f"{key} leaves class {name!r} without a label among {wanted.sum()}; give more "
                "labels or a smaller imbalance."
            )
        if wanted[number] > sizes[number]:
            raise InputError(
                f"{key} asks for {wanted[number]} labels of class {name!r}, which has "
                f"{sizes[number]} labeled training images in {source.name}."
            )


def _of_each_class(
    source: Source, members: np.ndarray, wanted: np.ndarray, random: np.random.RandomState
) -> np.ndarray:
    """Positions of ``wanted`` [C] images of each class, drawn from the positions ``members``."""
    labels = source.labels[members]
    drawn = [
        random.permutation(members[labels == number])[:count] for number, count in enumerate(wanted)
    ]
    return np.concatenate(drawn)


def draw_unlabeled(source: Source, split: Split, seed: int, shares: Shares) -> Split:
    """The split with the unlabeled images of a long tail, none of which is a labeled one.

    As in USB the long tail counts images beside the labeled ones.

    Args:
        source: training images, of which each must have a known class.
        split: the labeled images.
        seed: of the draw.
        shares: with an imbalance of the unlabeled images.

    Raises:
        InputError: if the images cannot be drawn.
    """
    gamma = shares.unlabeled
    assert gamma is not None
    _check_classes(source)
    if unknown := int((source.labels < 0).sum()):
        raise InputError(
            f"imbalance_unlabeled needs the class of each training image, which {unknown} of "
            f"{source.name} lack; leave it out, or these images."
        )
    free = np.flatnonzero(~np.isin(source.rows, split.indices))
    sizes = np.bincount(source.labels[free], minlength=len(source.classes))
    if shares.largest_unlabeled:
        wanted = long_tail(shares.largest_unlabeled, len(sizes), gamma)
        if np.any(short := wanted > sizes):
            number = int(np.argmax(short))
            raise InputError(
                f"largest_unlabeled={shares.largest_unlabeled} with imbalance_unlabeled={gamma:g} "
                f"asks for {wanted[number]} images of class {source.classes[number]!r}, of which "
                f"{sizes[number]} are free; give a smaller number."
            )
    else:
        wanted = long_tail_within(sizes, gamma)
    if not wanted.sum():
        raise InputError(f"imbalance_unlabeled={gamma:g} leaves no image of {source.name}.")
    random = np.random.RandomState([seed, 2])  # a stream of its own, as the validation set has
    rows = _of_each_class(source, free, wanted, random)
    return dataclasses.replace(split, unlabeled=np.sort(source.rows[rows]))


def restricted(source: Source, split: Split) -> Source:
    """The source with only those training images that the split names, if it names the pool."""
    if split.unlabeled is None:
        return source
    return take(source, ~np.isin(source.rows, [*split.indices, *split.unlabeled]))[0]
