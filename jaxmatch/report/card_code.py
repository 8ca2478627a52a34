"""The few lines that run an exported file without this library, by the format of the file."""

import json

STABLEHLO = """
import json, zipfile
import numpy as np
from jax import export

with zipfile.ZipFile("FILE") as file:
    program = export.deserialize(bytearray(file.read("program")))
    facts = json.loads(file.read("facts.json"))
images = np.zeros((1, *facts["image_shape"]), np.uint8)  # your images
probabilities = np.asarray(program.call(images))
print([facts["classes"][row.argmax()] for row in probabilities], probabilities.max(-1))
"""

ONNX = """
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("FILE", providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["jaxmatch"])
images = np.zeros((1, *facts["image_shape"]), np.uint8)  # your images
(probabilities,) = session.run(["probabilities"], {"images": images})
print([facts["classes"][row.argmax()] for row in probabilities], probabilities.max(-1))
"""

# By format: the packages to install, and the lines.
CODE = {
    "stablehlo": ("pip install jax flatbuffers", STABLEHLO),
    "onnx": ("pip install onnxruntime", ONNX),
}


# The lines as they are for a file that also tells how strange images look.
WITH_UNKNOWN = {
    "probabilities = np.asarray(program.call(images))": (
        "probabilities, unknown = map(np.asarray, program.call(images))"
    ),
    '(probabilities,) = session.run(["probabilities"], ': (
        'probabilities, unknown = session.run(["probabilities", "unknown"], '
    ),
    "probabilities.max(-1))": "probabilities.max(-1), unknown)",
}


def code_for(code: str, name: str, unknown: bool = False) -> list[str]:
    """The lines of ``code`` for the file ``name``, which may tell how strange images look."""
    for plain, changed in WITH_UNKNOWN.items() if unknown else ():
        code = code.replace(plain, changed)
    return code.strip().replace('"FILE"', json.dumps(name, ensure_ascii=False)).splitlines()
