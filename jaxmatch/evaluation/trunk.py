"""The trained encoder that a run starts from: ``config.init_from``."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmatch.evaluation.classifier import load
from jaxmatch.models.lora import merged
from jaxmatch.program import Program
from jaxmatch.weights import transfer
from jaxmatch.weights.vit_init import Loaded
from jaxmatch.weights.vit_names import is_vit


def read_trunk(config: ConfigDict, folder: Path, program: Program) -> Loaded:
    """The encoder of the run or file ``config.init_from``, and what there is to say about it.

    Of a file of a Vision Transformer it also has the classifier if the number of classes is that
    of the run. The sentences say what a Vision Transformer took over.

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
    elif is_vit(expected["params"]):
        classifier = {"classifier": student["params"]["classifier"]}
        trunk, report = transfer.read_vit_file(
            name,
            {**expected["params"], **classifier},
            image=image,
            classifier=bool(algorithm.labeled) and not config.model.zero_classifier,
            rules=config.init_rules,
        )
        mean, deviation = (", ".join(f"{x:.4g}" for x in s) for s in (program.mean, program.std))
        report = (*report, f"the input has the mean {mean} and the deviation {deviation}")
    else:
        trunk, report = transfer.read_encoder(name, expected), ()
    return Loaded(trunk, tuple(f"init_from={name}: {sentence}." for sentence in report))
