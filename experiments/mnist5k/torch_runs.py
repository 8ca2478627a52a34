"""MNIST-5k in plain PyTorch, one label set with many random numbers, beside this library's runs.

    python -m experiments.mnist5k.torch_runs --config=supervised:mnist5k,labels=10,seed=1 --seeds=30
    python -m experiments.statistics compare 'runs/label_set_1/supervised-*' \
        experiments/mnist5k/torch_runs.json:supervised,labels=10,seed=1

Network, step, views and loss are those of :mod:`experiments.throughput.torch_fixmatch`, which are
written for the throughput and know nothing of this library's, and SimMatch's loss that of
:mod:`experiments.mnist5k.torch_simmatch`; the initial values are PyTorch's own draws by the rule of
USB's network. Supervised, FixMatch and SimMatch. The library gives the configuration and the
images, in the order of the files. Each run is added to ``torch_runs.json`` beside this file as it
ends; those that are there are passed over.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]

from experiments.mnist5k.torch_simmatch import Objective, WithEmbeddings
from experiments.throughput.torch_fixmatch import Augmented, Normalize, Trainer, WideResNet
from jaxmatch.config.flags import from_flags
from jaxmatch.config.saved import to_json
from jaxmatch.data.resident import resident
from jaxmatch.errors import InputError
from jaxmatch.record import run_data
from jaxmatch.record.data import Data
from jaxmatch.record.settled import settled

RECORDED = Path(__file__).with_name("torch_runs.json")
METHODS = ("supervised", "fixmatch", "simmatch")
EVERY = 300  # steps between two accuracies
EVALUATED = 250  # images at once


def drawn(
    model: Mapping[str, Any], classes: int, build: Callable[..., Any] = WideResNet
) -> dict[str, np.ndarray]:
    """Initial tensors by name, as USB's WideResNet draws them.

    Kernels are normal with the variance of He et al. 2015 for outputs and leaky ReLU, the
    classifier's those of Glorot and Bengio 2010; its bias is 0, others are PyTorch's default.
    """
    network = build(model, classes, in_place=False)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu")
    nn.init.xavier_normal_(network.classifier.weight)
    nn.init.zeros_(network.classifier.bias)
    return {name: value.detach().numpy() for name, value in network.state_dict().items()}


def permuted(dataset: Augmented, batch: int) -> Iterator[tuple[Any, ...]]:
    """Batches of one random permutation of the set after another, without end."""
    rows: list[int] = []
    while True:
        while len(rows) < batch:
            rows += torch.randperm(len(dataset)).tolist()
        taken, rows = rows[:batch], rows[batch:]
        first, second = zip(*(dataset[row] for row in taken), strict=True)
        both = (first, second)
        yield tuple(
            torch.stack(each) if torch.is_tensor(each[0]) else torch.tensor(each) for each in both
        )


def supervised(model: Any, x: Any, label: Any, *_: Any) -> tuple[Any, Any]:
    """The cross-entropy of the labeled images, in the place of FixMatch's loss."""
    return F.cross_entropy(model(x), label), torch.zeros(())


@torch.no_grad()
def accuracy(network: Any, images: Any, labels: np.ndarray) -> float:
    """The share of images [n c h w] whose class is found."""
    found = [network(part).argmax(1) for part in images.split(EVALUATED)]
    return float((torch.cat(found).numpy() == labels).mean())


def run(settings: Mapping[str, Any], data: Data, seed: int, as_usb: bool = False) -> dict[str, Any]:
    """The averaged weights' accuracy at the last step, and every 300 steps before.

    ``as_usb``: SimMatch has three heads, and a bank that is normalised over the batch.
    """
    source, classes = data.source, len(data.source.classes)
    images: Any = resident(source, data.split, settings["data"]["include_labeled"])
    random.seed(seed)
    torch.manual_seed(seed)
    algorithm, labels = settings["algorithm"], images.labeled_labels
    network = WideResNet
    if algorithm["name"] == "simmatch":
        heads = 3 if as_usb else 1
        network = partial(WithEmbeddings, projection=algorithm["projection"], heads=heads)
    weights = drawn(settings["model"], classes, network)
    options = {"device": "cpu", "bfloat16": False, "split": False, "tuned": False}
    trainer: Any = Trainer(settings, weights, classes, **options, network=network)
    size, ratio = settings["data"]["batch_size"], settings["data"]["ratio"]
    if algorithm["name"] == "simmatch":
        known_labels = torch.tensor(np.asarray(labels)).long()
        trainer.objective = Objective(known_labels, classes, algorithm, as_usb)
        labels = np.arange(len(labels))
    known = Augmented(images.labeled_images.images, labels, settings, raw=False)
    labeled = permuted(known, size)
    if algorithm["name"] == "supervised":
        trainer.objective = supervised
        unlabeled: Iterator[tuple[Any, ...]] = iter([])
    else:
        pool = Augmented(images.unlabeled_images.images, None, settings, raw=False)
        unlabeled = permuted(pool, size * ratio)
    test = Normalize(settings, "cpu")(torch.from_numpy(np.asarray(source.test_images)))
    curve = {}
    for step in range(1, settings["steps"] + 1):
        trainer.step(*next(labeled), *next(unlabeled, (None, None)))
        if step % EVERY == 0:
            curve[str(step)] = accuracy(trainer.teacher, test, source.test_labels)
    last = accuracy(trainer.teacher, test, source.test_labels)
    return {"accuracy": last, "curve": curve}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--as-usb", action="store_true", help="SimMatch's three heads and bank as in USB's code"
    )
    parser.add_argument("-o", "--output", type=Path, default=RECORDED)
    chosen, overrides = parser.parse_known_args(arguments)
    config, _ = settled(from_flags(chosen.config, overrides)[0])
    settings = to_json(config)
    name = settings["algorithm"]["name"]
    if name not in METHODS:
        raise InputError(f"this file runs {' and '.join(METHODS)} alone, not {name}.")
    torch.set_num_threads(chosen.threads)
    data = run_data.load_new(config)
    changes = [override.removeprefix("--config.") for override in overrides]
    changes += ["as_usb"] if chosen.as_usb else []
    key = ",".join([name, *chosen.config.split(",")[1:], *changes])
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        recorded = json.loads(chosen.output.read_text()) if chosen.output.exists() else {}
        runs = recorded.setdefault(key, {})
        if str(seed) in runs:
            continue
        runs[str(seed)] = found = run(settings, data, seed, chosen.as_usb)
        chosen.output.write_text(json.dumps(recorded, indent=1) + "\n")
        print(f"{key} seed {seed}: {100 * found['accuracy']:.1f}", flush=True)


if __name__ == "__main__":
    main()
