"""The few lines that run an exported file without this library, by the format of the file."""

import json
from typing import NamedTuple


class Code(NamedTuple):
    """How a format is run.

    Attributes:
        install: the command that installs what the lines import.
        opening: the lines that open FILE and make ``images``.
        probabilities: the line that computes ``probabilities``.
        unknown: the line that computes ``probabilities`` and ``unknown``.
    """

    install: str
    opening: str
    probabilities: str
    unknown: str


CODE = {
    "stablehlo": Code(
        "pip install jax flatbuffers",
        """\
import json, zipfile
import numpy as np
from jax import export

with zipfile.ZipFile("FILE") as file:
    program = export.deserialize(bytearray(file.read("program")))
    facts = json.loads(file.read("facts.json"))
images = np.zeros((1, *facts["image_shape"]), np.uint8)  # your images""",
        "probabilities = np.asarray(program.call(images))",
        "probabilities, unknown = map(np.asarray, program.call(images))",
    ),
    "onnx": Code(
        "pip install onnxruntime",
        """\
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FILE", providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["jaxmatch"])
images = np.zeros((1, *facts["image_shape"]), np.uint8)  # your images""",
        '(probabilities,) = session.run(["probabilities"], {"images": images})',
        'probabilities, unknown = session.run(["probabilities", "unknown"], {"images": images})',
    ),
}
PRINT = 'print([facts["classes"][row.argmax()] for row in probabilities], probabilities.max(-1)'


def code_for(kind: str, name: str, unknown: bool = False) -> list[str]:
    """The lines that run the file ``name``.

    Args:
        kind: the format of the file.
        name: of the file.
        unknown: whether the file also tells how strange images look.
    """
    code = CODE[kind]
    opening = code.opening.replace('"FILE"', json.dumps(name, ensure_ascii=False))
    call = code.unknown if unknown else code.probabilities
    return [*opening.splitlines(), call, PRINT + (", unknown)" if unknown else ")")]
