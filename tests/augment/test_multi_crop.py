"""Strong views of several sizes, as SimMatchV2 has on ImageNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmatch.algorithms import build_algorithm
from jaxmatch.augment.build import build_augment
from jaxmatch.augment.contrast import Contrast
from jaxmatch.augment.views import Views
from jaxmatch.config.flags import from_flags
from jaxmatch.config.views import notes
from jaxmatch.data.facts import Facts
from jaxmatch.errors import InputError
from jaxmatch.program import Program
from jaxmatch.types import Batch, Examples

CROPS = ((20, 0.1, 0.8), (12, 0.05, 0.4))
THREE = ("augment=contrast", "algorithm.strong_views=3")
FACTS = Facts(classes=("x",) * 10, image_shape=(28, 32, 3), labels=(0,), unlabeled=90)


def flags(*settings):
    return [f"--config.{setting}" for setting in settings]


def configuration(*settings, argument="simmatch_v2:mnist5k"):
    return from_flags(argument, flags(*settings))[0]


def augmentation(config, streamed_size=None):
    views, crops = build_augment(
        config.augment,
        config.views,
        build_algorithm(config.algorithm),
        mean=(0.0,),
        std=(1.0,),
        streamed_size=streamed_size,
    )
    assert isinstance(views, Views)
    return views, crops


def trace(config):
    """The shapes of a step's metrics."""
    config.model.update({"depth": 10, "width": 1})
    program = Program.build(config, FACTS).with_stand_ins()
    return jax.eval_shape(
        lambda state, data: program.step(state, program.examples(data, state)),
        program.state,
        program.data,
    )[1]


def test_each_strong_view_has_its_crop():
    found, _ = augmentation(configuration(*THREE, f"views.crops={CROPS}"))
    assert found.unlabeled == ("weak", "strong", "strong_2", "strong_3")
    strong = found.transforms["strong"]
    assert isinstance(strong, Contrast)
    for number, (side, *area) in enumerate(CROPS, start=2):
        further = found.transforms[f"strong_{number}"]
        assert (further.size, further.area) == (side, tuple(area))
        assert further.colors() == strong.colors()
    levels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    batch, _ = jax.eval_shape(
        lambda key: found.apply((), key, Batch(None, Examples((jnp.asarray(levels),)))),
        jax.random.key(0),
    )
    assert [view.shape[1] for view in batch.views] == [32, 32, 20, 12]


def test_views_beyond_the_crops_are_like_the_first():
    found, _ = augmentation(configuration(*THREE, f"views.crops={CROPS[:1]}"))
    assert found.unlabeled == ("weak", "strong", "strong_2", "strong")
    found, _ = augmentation(configuration(*THREE))
    assert found.unlabeled == ("weak", "strong", "strong", "strong")


def test_a_host_crops_streamed_images_to_each_size():
    config = from_flags("simmatch_v2:tfds:imagenet2012,labels=12811,split=1.txt", [])[0]
    _, crops = augmentation(config, streamed_size=(224, 224))
    found = [(crop.size[0], crop.area) for crop in crops["unlabeled"]]
    assert found == [
        (224, (0.2, 1.0)),
        (224, (0.14, 1.0)),
        (192, (0.117, 0.86)),
        (160, (0.095, 0.715)),
        (120, (0.073, 0.571)),
        (96, (0.05, 0.429)),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((*THREE, f"views.crops={(*CROPS, *CROPS)}"),
         "entries for 4, but the method draws 2 of them; .* algorithm.strong_views=5"),
        ((*THREE, "views.crops=((29, 0.1, 0.8),)"), "the side 29 in views.crops is larger .* 28;"),
        ((*THREE, "views.crops=((0, 0.1, 0.8),)"), "must be at least 1 in entry 1 in each entry"),
        ((*THREE, "views.crops=((9, 0.1, 8.0),)"), "between 0 and 1 in entry 3 in each entry"),
        ((*THREE, "views.crops=((9, 0.8, 0.1),)"), "a least and a largest area"),
        ((*THREE, "views.crops=((9, 0.8),)"), "must have 3 entries in each entry"),
        ((*THREE, "views.crops=(9, 0.1, 0.8)"), r"such as \(96, 0.5, 0.5\) in each entry"),
        ((THREE[1], f"views.crops={CROPS}"), "no effect on augment=randaugment"),
    ],
)  # fmt: skip
def test_what_cannot_be_cropped_is_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        Program.build(configuration(*settings), FACTS)


def test_a_method_that_joins_its_views_takes_one_size():
    config = configuration(*THREE, f"views.crops={CROPS}", argument="remixmatch:mnist5k")
    with pytest.raises(InputError, match="this method joins its views"):
        trace(config)


def test_crops_without_strong_views_are_noted():
    config = configuration(f"views.crops={CROPS}", argument="simclr:mnist5k")
    (note,) = notes(config, {"views.crops": CROPS})
    assert "draws no strong views" in note
    assert not list(notes(configuration(*THREE), {"views.crops": CROPS}))


def test_a_step_can_be_traced():
    metrics = trace(configuration(*THREE, f"views.crops={CROPS}"))
    assert metrics["loss/total"].shape == ()
