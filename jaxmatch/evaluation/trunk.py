"""The trained encoder that a run starts from: ``config.init_from``."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from jaxmatch.evaluation.classifier import load
from jaxmatch.models.lora import merged
from jaxmatch.program import Program
from jaxmatch.weights import transfer
from jaxmatch.weights.vit_init import Loaded
from jaxmatch.weights.vit_names import is_vit

# LoRA is in the weights: a trained one is merged, and a new one starts without effect.
LORA = ("lora_rank", "lora_alpha", "lora_rank_stabilized")
OF_TRAINING = ("head_layers", "zero_classifier", "drop_path", "bn_decay", "bn_groups", *LORA)
FIRST_VALUES = ("zero_gamma", "layer_scale")  # of weights, which a trained network has otherwise
CLOSE = 0.01  # in units of the whole range of levels


def read_trunk(config: ConfigDict, folder: Path, program: Program) -> Loaded:
    """The encoder of the run or file ``config.init_from``, and what there is to say about it.

    Of a file of a Vision Transformer it also has the classifier if the number of classes is that
    of the run. The sentences say what a Vision Transformer took over, and whether the input of a
    run had another scale.

    Args:
        config: of the run that starts from it.
        folder: of that run; an earlier stage lies beside it.
        program: of that run.

    Raises:
        InputError: if the encoder is missing or does not fit the network.
    """
    name, algorithm = config.init_from, program.algorithm
    student, image = program.state.student(), program.image_shape[:2]
    expected = transfer.target_encoder(student, algorithm, config)
    if not transfer.names_weights(name):
        source = load(transfer.source_folder(name, folder))
        variables = merged(source.program.model, source.variables())
        trunk = transfer.source_encoder(variables, source.program.algorithm, config)
        images = (source.image_shape[:2], image)
        trunk, report = transfer.with_fitting_positions(
            trunk, expected, images=images, rule=config.init_rules
        )
        transfer.check_encoder(trunk, expected, name)
        if others := _other_settings(source.config, config):
            report = (*report, f"its network computes otherwise: {'; '.join(others)}")
        if not _same_scale(source.program, program):
            report = (
                *report,
                f"its images had {_scale(source.program)}, those of this run have "
                f"{_scale(program)}: unless the images themselves differ so, give this run its "
                "data.mean and data.std",
            )
    elif is_vit(expected["params"]):
        classifier = {"classifier": student["params"]["classifier"]}
        trunk, report = transfer.read_vit_file(
            name,
            {**expected["params"], **classifier},
            image=image,
            classifier=bool(algorithm.labeled) and not config.model.zero_classifier,
            rules=config.init_rules,
        )
        report = (*report, f"the input has {_scale(program)}")
    else:
        trunk, report = transfer.read_encoder(name, expected), ()
    return Loaded(trunk, tuple(f"init_from={name}: {sentence}." for sentence in report))


def _other_settings(theirs: ConfigDict, ours: ConfigDict) -> list[str]:
    """The settings in which two networks of equal shapes differ, as ``key=value`` of both."""
    there, here = theirs.model.to_dict(), ours.model.to_dict()
    same = {"name", *OF_TRAINING, *FIRST_VALUES}
    return [
        f"model.{key}={there[key]} there and {here[key]} here"
        for key in sorted((there.keys() & here.keys()) - same)
        if there[key] != here[key]
    ]


def _same_scale(one: Program, other: Program) -> bool:
    """Whether mean and deviation of the inputs agree; a single number stands for all channels."""
    pairs = ((one.mean, other.mean), (one.std, other.std))
    return all(np.allclose(ours, theirs, rtol=0, atol=CLOSE) for ours, theirs in pairs)


def _scale(program: Program) -> str:
    mean, deviation = (", ".join(f"{x:.4g}" for x in s) for s in (program.mean, program.std))
    return f"the mean {mean} and the deviation {deviation}"
