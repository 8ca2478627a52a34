"""The trained encoder that a run starts from: ``config.init_from``."""

from pathlib import Path

from ml_collections import ConfigDict

from jaxmatch.evaluation.classifier import load
from jaxmatch.program import Program
from jaxmatch.types import PyTree
from jaxmatch.weights import transfer


def read_trunk(config: ConfigDict, folder: Path, program: Program) -> PyTree:
    """The encoder of the run or file ``config.init_from``, for :func:`transfer.transfer`.

    Args:
        config: of the run that starts from it.
        folder: of that run; an earlier stage lies beside it.
        program: of that run.

    Raises:
        InputError: if the encoder is missing or does not fit the network.
    """
    name = config.init_from
    expected = transfer.target_encoder(program.state.student(), program.algorithm, config)
    if transfer.names_weights(name):
        return transfer.read_encoder(name, expected)
    source = load(transfer.source_folder(name, folder))
    trunk = transfer.source_encoder(source.variables(), source.program.algorithm, config)
    transfer.check_encoder(trunk, expected, name)
    return trunk
