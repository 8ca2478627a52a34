"""What a new user gets with the defaults of own images, supervised and by three methods.

jaxmatch sweep --config=experiments/own_data/sweep.py --workdir=runs/own_data --run
jaxmatch sweep --config=experiments/own_data/sweep.py:fashion_mnist --workdir=runs/own_data --run
jaxmatch sweep --config=experiments/own_data/sweep.py:elpv200 --workdir=runs/own_data --run
jaxmatch sweep --config=experiments/own_data/sweep.py:elpv_weak --workdir=runs/own_data --run
jaxmatch sweep --config=experiments/own_data/sweep.py:elpv200_weak --workdir=runs/own_data --run
"""

from collections.abc import Iterator

from jaxmatch.errors import InputError, suggest

# Where `make` was told to write them; each seed of ELPV has its own folder.
DATA = {
    "elpv": "folder:elpv{seed},labels=all",
    "elpv200": "folder:elpv200-{seed},labels=all",
    "elpv_weak": "folder:elpv{seed},labels=all",
    "elpv200_weak": "folder:elpv200-{seed},labels=all",
    "fashion_mnist": "npz:fashion.npz,labels=100,seed={seed}",
}
METHODS = ("supervised", "fixmatch", "flexmatch", "simmatch")
# Without strong views. Seeds 3 to 8 of "elpv_weak" chose the method, 0 to 2 are reported.
WEAK = ("supervised", "mean_teacher", "vat")
SEEDS = {"elpv_weak": range(9)}


def sweep(data: str = "elpv") -> Iterator[dict[str, object]]:
    """Three seeds of each method; on ELPV also FixMatch with views that suit the photographs.

    With 200 labels these two and supervised on larger images stand for all. "elpv_weak" and
    "elpv200_weak" are the methods without strong views, whose weak views suit the photographs.
    """
    if data not in DATA:
        raise InputError(f"no data {data!r} here; {suggest(data, DATA)}")
    for seed in SEEDS.get(data, range(3)):
        place = DATA[data].format(seed=seed)
        if data.endswith("_weak"):
            for method in WEAK:
                config = f"{method}:{place},views=industrial"
                yield {"config": config, "workdir": f"{data}-{method}-s{seed}"}
            continue
        for method in METHODS if data != "elpv200" else ("supervised",):
            yield {"config": f"{method}:{place}", "workdir": f"{data}-{method}-s{seed}"}
        if data != "fashion_mnist":
            yield {
                "config": f"fixmatch:{place},views=industrial",
                "workdir": f"{data}-contrast-s{seed}",
                "augment": "contrast",
            }
        if data == "elpv200":
            yield {
                "config": f"supervised:{place}",
                "workdir": f"{data}-wide-s{seed}",
                "data.image_size": 128,
            }
