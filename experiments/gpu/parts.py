"""What :mod:`experiments.gpu` measures: a command each, in order of worth."""

from dataclasses import dataclass

CIFAR = "fixmatch:tfds:cifar10"
# Sizes that a CPU computes in seconds, for a test of the whole command.
TINY = ("--config.model.depth=4", "--config.model.width=1", "--config.data.batch_size=4")
TINY_MNIST = ("--config.model.depth=4", "--config.model.width=1", "--config.steps_per_call=1")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement, in a process of its own.

    Attributes:
        module: what ``python -m`` runs.
        words: its arguments; "{folder}" is one that the part may write to.
        small: those of ``--small``.
        seconds: after which it is stopped.
        seeds: of the runs that it trains.
        tells: what its results are good for.
    """

    module: str
    words: tuple[str, ...]
    small: tuple[str, ...]
    seconds: int
    seeds: tuple[int, ...] = (0,)
    tells: str


def _beside_pytorch(precision: str) -> Part:
    # The loaders fill their queues in the warm-up: two batches each. --small is float32 always, as
    # a CPU has no TF32, and without the minutes of torch.compile.
    return Part(
        module="experiments.throughput.compare",
        words=(
            f"--precision={precision}",
            "--rounds=3",
            "--steps=64",
            "--warm-up=64",
            "--workers=16",
            "--config.data.batch_size=64",
            *("--contestants", "ours", "plain", "tuned"),
        ),
        small=(
            "--network=mnist5k",
            "--device=cpu",
            "--rounds=1",
            "--steps=1",
            "--workers=1",
            "--config.model.width=0.25",
            "--config.data.batch_size=4",
            *("--contestants", "ours", "plain"),
        ),
        seconds=360,
        tells=f"our step and loop beside PyTorch's at 64 + 448 images, {precision}",
    )


def _full_run(method: str) -> Part:
    tiny = ("--config.steps=4", "--config.log_every=2", "--config.eval_every=2")
    return Part(
        module="experiments.gpu.runs",
        words=(f"--config={method}:mnist5k,labels=40", "--seeds", "0", "1", "2"),
        small=(f"--config={method}:mnist5k,labels=40", "--seeds", "0", *tiny, *TINY_MNIST),
        seconds=90,
        seeds=(0, 1, 2),
        tells=f"accuracy and seconds of whole {method} runs on MNIST-5k, 40 labels",
    )


PARTS = {
    "compare-bfloat16": _beside_pytorch("bfloat16"),
    "compare-tf32": _beside_pytorch("tf32"),
    "compare-float32": _beside_pytorch("float32"),
    "augmentation": Part(
        module="experiments.gpu.augmentation",
        words=(f"--config={CIFAR}", "--config.dtype=bfloat16"),
        small=(f"--config={CIFAR}", "--calls=1", "--config.steps_per_call=1", *TINY),
        seconds=150,
        tells="the share of the views in a step, by gathers and by one-hot products",
    ),
    "seeds": Part(
        module="experiments.throughput.seeds",
        words=("--config=fixmatch:mnist5k,labels=40", "--calls=5", "--seeds-list", "1", "4", "16"),
        small=(
            "--config=fixmatch:mnist5k,labels=40",
            "--calls=1",
            *("--seeds-list", "2"),
            *TINY_MNIST,
        ),
        seconds=180,
        seeds=tuple(range(16)),
        tells="what training several seeds in one program saves (--vmap-seeds)",
    ),
    "memory": Part(
        module="experiments.gpu.memory",
        words=("--config.dtype=bfloat16",),
        small=("--settings", "2", *TINY),
        seconds=210,
        tells="bytes that a step takes, beside the compiler's figure",
    ),
    "fixmatch": _full_run("fixmatch"),
    "simmatch": _full_run("simmatch"),
    "profile": Part(
        module="experiments.gpu.profile",
        words=("--folder={folder}", f"--config={CIFAR}", "--config.dtype=bfloat16"),
        small=("--folder={folder}", f"--config={CIFAR}", "--calls=1", *TINY),
        seconds=90,
        tells="the kernels that take most of a step",
    ),
}
