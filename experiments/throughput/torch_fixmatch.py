"""FixMatch in PyTorch, for :mod:`experiments.throughput.compare`: plain as most write it, or tuned.

A worker process of its own that is started by this file's path, since the environment of PyTorch
need not have JAX or this package: it needs torch, NumPy and Pillow alone. Standard input brings a
JSON object a line, ``{"prepare": {...}}``, ``{"run": {...}}`` or ``{"finish": {}}``, and standard
output answers each.

"plain": a loop over the parameters for the average, views normalised one by one by the loaders.
"tuned": channels_last, activations in place, a fused optimizer, one call for the average, uint8
from the loaders, memory that is kept for the next step, and ``torch.compile`` in the mode that is
the fastest on the device, or none.
Nothing is fetched from the device between steps by either.
"""

import copy
import json
import math
import os
import random
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.utils.data import (  # pyright: ignore[reportMissingImports]
    DataLoader,
    Dataset,
    RandomSampler,
)

STEM_CHANNELS = 16
PREFETCH = 2  # batches a loader process holds ready, PyTorch's default
# By device: the modes of torch.compile to choose from, and the steps of each trial.
MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
TRIAL_STEPS = {"cpu": 1, "cuda": 20}
TRIALS = 3
CUTOUT = (125, 123, 114)


class Block(nn.Module):
    """Two convolutions with a shortcut, in the options of ``jaxmatch.models.wide_resnet``."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, first: bool, in_place: bool, model: Any
    ):
        """``first``: of the network's first group; ``in_place``: activations overwrite."""
        super().__init__()
        bias = model["conv_bias"] == "all"
        changes = inputs != outputs or stride != 1
        self.in_place = in_place
        self.activated_shortcut = changes and first
        self.raw_input = changes and not first and model["legacy_transition"]
        self.bn1 = batch_norm(inputs, model["bn_eps"], model)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.bn2 = batch_norm(outputs, model["bn_eps"], model)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        if changes:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)
        else:
            self.convShortcut = nn.Identity()

    def forward(self, x: Any) -> Any:
        """Map ``x`` [b c h w] to [b outputs h/stride w/stride]."""
        activated = F.leaky_relu(self.bn1(x), 0.1, self.in_place)
        inner = self.conv1(x if self.raw_input else activated)
        inner = self.conv2(F.leaky_relu(self.bn2(inner), 0.1, self.in_place))
        return self.convShortcut(activated if self.activated_shortcut else x) + inner


class Group(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, *blocks: Block):
        """From the input's side."""
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Any) -> Any:
        """One block after another."""
        return self.layer(x)


class WideResNet(nn.Module):
    """The network of a jaxmatch configuration; tensors are named as ``to_torch`` names them."""

    def __init__(self, model: Mapping[str, Any], classes: int, in_place: bool):
        """``model`` as ``config.model``."""
        super().__init__()
        self.in_place = in_place
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 3, 1, 1, bias=model["conv_bias"] != "none")
        channels = STEM_CHANNELS
        groups = []
        for group in range(model["groups"]):
            width = int(STEM_CHANNELS * model["width"]) * 2**group
            strides = [model["first_stride"] if group == 0 else 2]
            strides += [1] * ((model["depth"] - 4) // 6 - 1)
            blocks = []
            for stride in strides:
                blocks.append(Block(channels, width, stride, group == 0, in_place, model))
                channels = width
            groups.append(f"block{group + 1}")
            self.add_module(groups[-1], Group(*blocks))
        self.groups = groups
        self.bn1 = batch_norm(channels, model["bn_eps_final"], model)
        self.classifier = nn.Linear(channels, classes)

    def features(self, x: Any) -> Any:
        """Pooled features [b d] of images [b 3 h w]."""
        x = self.conv1(x)
        for group in self.groups:
            x = getattr(self, group)(x)
        return F.leaky_relu(self.bn1(x), 0.1, self.in_place).mean((2, 3))

    def forward(self, x: Any) -> Any:
        """Logits [b C] of images [b 3 h w]."""
        return self.classifier(self.features(x))


def batch_norm(channels: int, epsilon: float, model: Mapping[str, Any]) -> Any:
    return nn.BatchNorm2d(channels, eps=epsilon, momentum=1 - model["bn_decay"])


def objective(
    model: Any,
    x: Any,
    label: Any,
    weak: Any,
    strong: Any,
    algorithm: Mapping[str, Any],
    split: bool,
) -> tuple[Any, Any]:
    """FixMatch's loss, and the share of confident weak views.

    ``split``: the weak views have a pass of their own, without gradient, after the others'.
    """
    if split:
        on_x, on_strong = model(torch.cat([x, strong])).split([len(x), len(strong)])
        with torch.no_grad():
            on_weak = model(weak)
    else:
        logits = model(torch.cat([x, weak, strong]))
        on_x, on_weak, on_strong = logits.split([len(x), len(weak), len(strong)])
    supervised = F.cross_entropy(on_x, label)
    confidence, target = torch.softmax(on_weak.detach().float(), 1).max(1)
    mask = confidence.ge(algorithm["threshold"]).float()
    unsupervised = (F.cross_entropy(on_strong, target, reduction="none") * mask).mean()
    return supervised + algorithm["unlabeled_weight"] * unsupervised, mask.mean()


class Trainer:
    """A network with its teacher and optimizer, and the step that trains them.

    Attributes:
        settings: a jaxmatch configuration as plain values.
        weights: tensors of the network by name.
        mode: of ``torch.compile`` for the forward pass and the loss; "" leaves them as they are.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        classes: int,
        *,
        device: str,
        bfloat16: bool,
        split: bool,
        tuned: bool,
        mode: str = "",
        network: Callable[..., Any] = WideResNet,
    ):
        """Start from ``weights``; ``split`` and ``tuned`` as in :func:`objective` and above."""
        self.device, self.bfloat16, self.split, self.tuned = device, bfloat16, split, tuned
        self.algorithm = settings["algorithm"]
        self.decay = settings["ema"]["decay"]
        self.model = network(settings["model"], classes, in_place=tuned)
        given = {name: torch.from_numpy(value.copy()) for name, value in weights.items()}
        missing, unexpected = self.model.load_state_dict(given, strict=False)
        strangers = [name for name in missing if not name.endswith("num_batches_tracked")]
        if strangers or unexpected:
            raise ValueError(f"the networks differ in {[*strangers, *unexpected]}")
        self.model.to(device).train()
        if tuned:
            self.model.to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)

        optim, steps = settings["optim"], settings["steps"]
        kernels = [value for value in self.model.parameters() if value.ndim > 1]
        others = [value for value in self.model.parameters() if value.ndim <= 1]
        self.optimizer = torch.optim.SGD(
            [
                {"params": kernels, "weight_decay": optim["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=optim["learning_rate"],
            momentum=optim["momentum"],
            nesterov=optim["nesterov"],
            # The default is a loop on a CPU, and "foreach" on a GPU.
            **({"fused": True} if tuned else {}),
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: math.cos(7 * math.pi * step / (16 * steps))
        )
        self.objective = torch.compile(objective, mode=mode) if mode else objective

    def step(self, x: Any, label: Any, weak: Any, strong: Any) -> tuple[Any, Any]:
        """One optimizer step: the loss and the share of confident weak views, on the device."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss, confident = self.objective(
                self.model, x, label, weak, strong, self.algorithm, self.split
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average()
        return loss.detach(), confident

    @torch.no_grad()
    def average(self) -> None:
        """Let the teacher follow: parameters averaged, BatchNorm's statistics copied."""
        if self.tuned:
            mean, new = list(self.teacher.parameters()), list(self.model.parameters())
            torch._foreach_lerp_(mean, new, 1 - self.decay)
            torch._foreach_copy_(list(self.teacher.buffers()), list(self.model.buffers()))
            return
        for mean, new in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            mean.mul_(self.decay).add_(new, alpha=1 - self.decay)
        for copied, new in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
            copied.copy_(new)

    def tensors(self) -> dict[str, Any]:
        """Copies of all floating-point tensors, by kind and name."""
        return {
            f"{kind}/{name}": value.detach().cpu().double().clone()
            for kind, values in {
                "parameters": self.model.named_parameters(),
                "statistics": self.model.named_buffers(),
                "teacher": self.teacher.named_parameters(),
            }.items()
            for name, value in values
            if value.is_floating_point()
        }


def affine(image: Any, *matrix: float) -> Any:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# RandAugment by the table "torchssl": the range of each op's value, and the op.
OPERATIONS: dict[str, tuple[float, float, Callable[[Any, float], Any]]] = {
    "autocontrast": (0, 0, lambda image, _: ImageOps.autocontrast(image)),
    "brightness": (0.05, 0.95, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    "color": (0.05, 0.95, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    "contrast": (0.05, 0.95, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    "equalize": (0, 0, lambda image, _: ImageOps.equalize(image)),
    "identity": (0, 0, lambda image, _: image),
    "posterize": (4, 8, lambda image, v: ImageOps.posterize(image, int(v))),
    "rotate": (-30, 30, lambda image, v: image.rotate(v)),
    "sharpness": (0.05, 0.95, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    "shear_x": (-0.3, 0.3, lambda image, v: affine(image, 1, v, 0, 0, 1, 0)),
    "shear_y": (-0.3, 0.3, lambda image, v: affine(image, 1, 0, 0, v, 1, 0)),
    "solarize": (0, 256, lambda image, v: ImageOps.solarize(image, math.ceil(v))),
    "translate_x": (-0.3, 0.3, lambda image, v: affine(image, 1, 0, v * image.width, 0, 1, 0)),
    "translate_y": (-0.3, 0.3, lambda image, v: affine(image, 1, 0, 0, 0, 1, v * image.height)),
}


def rand_augment(levels: np.ndarray) -> np.ndarray:
    """Three random ops, then a square of up to half the side painted over: uint8 [h w 3]."""
    image = Image.fromarray(levels)
    for low, high, operation in random.choices(list(OPERATIONS.values()), k=3):
        image = operation(image, random.uniform(low, high))
    side = random.uniform(0, 0.5) * image.width
    left = max(0, int(random.uniform(0, image.width) - side / 2))
    top = max(0, int(random.uniform(0, image.height) - side / 2))
    ImageDraw.Draw(image).rectangle((left, top, left + side, top + side), CUTOUT)
    return np.array(image)


class Augmented(Dataset):
    """A set in memory: label and weak view of an image, or its weak and its strong view.

    Attributes:
        images: uint8 [n h w 3].
        labels: [n], or None for an unlabeled set.
        settings: a jaxmatch configuration as plain values.
        raw: give levels [h w 3] uint8, which the training process normalises.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, settings: Mapping[str, Any], raw: bool
    ):
        """See the attributes."""
        self.images, self.labels, self.raw = images, labels, raw
        self.flip = settings["views"]["weak"]["flip"]
        self.side = images.shape[1]
        pad = settings["views"]["weak"]["pad"]
        self.pad = self.side // 8 if pad is None else pad
        self.reflected = np.pad(np.arange(self.side), self.pad, mode="reflect")
        self.normalize = Normalize(settings, "cpu")

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """The views of one image."""
        image = self.images[index]
        if self.labels is not None:
            return self.ready(self.weak(image)), int(self.labels[index])
        return self.ready(self.weak(image)), self.ready(rand_augment(self.weak(image)))

    def weak(self, image: np.ndarray) -> np.ndarray:
        """A random flip, then a random crop of the image continued by reflection."""
        if self.flip and random.random() < 0.5:
            image = image[:, ::-1]
        top, left = random.randint(0, 2 * self.pad), random.randint(0, 2 * self.pad)
        rows = self.reflected[top : top + self.side]
        return image[rows][:, self.reflected[left : left + self.side]]

    def ready(self, image: np.ndarray) -> Any:
        """What the loader gives of a view."""
        levels = torch.from_numpy(image)
        return levels if self.raw else self.normalize(levels).contiguous()


class Normalize:
    """Network input [... c h w] from levels [... h w c] uint8."""

    def __init__(self, settings: Mapping[str, Any], device: str):
        """For levels on ``device``."""
        self.mean, self.std = (
            torch.tensor(settings["data"][key], device=device).reshape(-1, 1, 1)
            for key in ("mean", "std")
        )

    def __call__(self, levels: Any) -> Any:
        """The memory stays in the order of ``levels``, which PyTorch calls channels_last."""
        return levels.movedim(-1, -3).float().div_(255).sub_(self.mean).div_(self.std)


class Worker:
    """Answers the requests of :mod:`experiments.throughput.compare`."""

    def prepare(
        self,
        path: str,
        settings: dict[str, Any],
        facts: dict[str, Any],
        forward: str,
        precision: str,
        device: str,
        tuned: bool,
        workers: int,
        warm_up: int,
        **_: Any,
    ) -> dict[str, Any]:
        """Build everything, take the first step and say what came of it."""
        gpu = torch.cuda.is_available() if device == "auto" else device == "gpu"
        if precision == "tf32" and not gpu:
            raise ValueError("TF32 is a format of GPUs; choose --precision=float32.")
        self.device = "cuda" if gpu else "cpu"
        self.settings, self.tuned, self.workers, self.warm_up = settings, tuned, workers, warm_up
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        with np.load(path) as saved:
            arrays = dict(saved)
        weights = {
            name.removeprefix("weights/"): value
            for name, value in arrays.items()
            if name.startswith("weights/")
        }
        self.images = {key: arrays[key] for key in ("labeled", "unlabeled")}
        self.labels = arrays["labels"]
        self.normalize = Normalize(settings, self.device)
        order = torch.channels_last if tuned else torch.contiguous_format
        x, weak, strong = (
            torch.from_numpy(arrays[f"views/{role}"])
            .movedim(-1, 1)
            .to(self.device)
            .contiguous(memory_format=order)
            for role in ("x", "weak", "strong")
        )
        label = torch.from_numpy(arrays["views/label"]).long().to(self.device)
        self.views = (x, label, weak, strong)

        def build(mode: str = "") -> Trainer:
            return Trainer(
                settings,
                weights,
                len(facts["classes"]),
                device=self.device,
                bfloat16=precision == "bfloat16",
                split=forward == "split",
                tuned=tuned,
                mode=mode,
            )

        mode, notes = self.choose(build) if tuned else ("", [])
        self.trainer = build(mode)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        before = self.trainer.tensors()
        loss, confident = self.trainer.step(*self.views)
        squares: dict[str, float] = {}
        for name, value in self.trainer.tensors().items():
            kind = name.partition("/")[0]
            squares[kind] = squares.get(kind, 0.0) + float((value - before[name]).square().sum())
        name = torch.cuda.get_device_name() if gpu else f"{torch.get_num_threads()} threads"
        return {
            "first": {
                "loss": float(loss),
                **{kind: math.sqrt(square) for kind, square in squares.items()},
            },
            "confident": float(confident),
            "platform": "gpu" if gpu else "cpu",
            "device": name,
            "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
            "notes": notes,
        }

    def choose(self, build: Callable[[str], Trainer]) -> tuple[str, list[str]]:
        """How to compile, if at all, as who tunes would find out, and what to say about it."""
        trainers, notes = {"": build("")}, []
        for mode in MODES[self.device]:
            try:
                trainers[mode] = build(mode)
                start = time.perf_counter()
                trainers[mode].step(*self.views)
                notes.append(f"torch.compile {mode} in {time.perf_counter() - start:.0f} s")
            except Exception as error:  # of whatever kind: the contestant then runs without
                trainers.pop(mode, None)
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                notes.append(f"torch.compile {mode} failed: {reason}")
        count = TRIAL_STEPS[self.device]
        seconds = dict.fromkeys(trainers, math.inf)
        for _ in range(TRIALS):
            for mode, trainer in trainers.items():
                taken = self.timed(trainer, iter([self.views] * (count + 1)), 1, count)
                seconds[mode] = min(seconds[mode], taken)
        chosen = min(seconds, key=lambda mode: seconds[mode])
        listed = ", ".join(f"{mode or 'eager'} {taken:.3g} s" for mode, taken in seconds.items())
        return chosen, [*notes, f"runs {chosen or 'eager'}, the fastest of {listed}"]

    def run(self, measure: str, steps: int) -> dict[str, float]:
        """Seconds a step, after ``warm_up`` steps that do not count."""
        if measure == "step":
            batches = iter([self.views] * (self.warm_up + steps))
        else:
            batches = self.loaded(self.warm_up + steps)
        return {"seconds": self.timed(self.trainer, batches, self.warm_up, steps)}

    def timed(self, trainer: Trainer, batches: Iterator[Any], warm_up: int, steps: int) -> float:
        """Seconds a step of ``steps`` batches, after ``warm_up`` others."""
        loss = None
        start = 0.0
        for number in range(warm_up + steps):
            if number == warm_up:
                self.wait()
                start = time.perf_counter()
            loss, _ = trainer.step(*next(batches))
        self.wait()
        seconds = (time.perf_counter() - start) / steps
        if loss is None or not math.isfinite(float(loss)):
            raise FloatingPointError("the loss is not finite, so its speed means nothing")
        return seconds

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def loaded(self, count: int) -> Iterator[Any]:
        """Batches from loaders that live as long as this iterator.

        They always have more to do than is asked for, so that each step pays for a batch, and end
        with the turn, so that they do not work during others'.
        """
        batch, ratio = self.settings["data"]["batch_size"], self.settings["data"]["ratio"]
        labeled = self.loader("labeled", batch, min(1, self.workers), count)
        unlabeled = self.loader("unlabeled", batch * ratio, self.workers, count)
        for (x, label), (weak, strong) in zip(labeled, unlabeled, strict=False):
            x, label, weak, strong = (
                value.to(self.device, non_blocking=True) for value in (x, label, weak, strong)
            )
            if self.tuned:
                x, weak, strong = map(self.normalize, (x, weak, strong))
            yield x, label, weak, strong

    def loader(self, kind: str, batch: int, workers: int, count: int) -> Any:
        """A loader of at least ``count`` batches."""
        labels = self.labels if kind == "labeled" else None
        dataset = Augmented(self.images[kind], labels, self.settings, raw=self.tuned)
        total = batch * (count + PREFETCH * workers)
        return DataLoader(
            dataset,
            batch,
            sampler=RandomSampler(dataset, replacement=True, num_samples=total),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            pin_memory=self.device == "cuda",
            drop_last=True,
        )

    def finish(self) -> dict[str, Any]:
        """Peak memory, of the loader processes without."""
        return {
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_device_bytes": torch.cuda.max_memory_allocated()
            if self.device == "cuda"
            else None,
        }


def main() -> None:
    # Whatever libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        ((request, options),) = json.loads(line).items()
        print(json.dumps(getattr(worker, request)(**options)), file=answers, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
