"""``python -m jaxmatch.data.prepare cifar10``: write a TFDS data set as ArrayRecord files.

This needs TensorFlow (``pip install "jaxmatch[prepare]"``) and the network, once. Runs that read
the files need neither. Give the same ``--directory`` here and as ``data.directory``; the default is
TFDS's own folder.
"""

import argparse
import importlib.util


def main() -> None:
    """Download and prepare the data set."""
    parser = argparse.ArgumentParser(prog="python -m jaxmatch.data.prepare", description=__doc__)
    parser.add_argument("name", help="TFDS name, for example cifar10, svhn_cropped or stl10")
    parser.add_argument("--directory", help="root folder of the prepared data sets")
    arguments = parser.parse_args()
    if importlib.util.find_spec("tensorflow") is None:
        parser.error('preparing needs TensorFlow: pip install "jaxmatch[prepare]"')

    import tensorflow_datasets as tfds

    builder = tfds.builder(arguments.name, data_dir=arguments.directory, file_format="array_record")
    builder.download_and_prepare()
    print(f"{arguments.name} is in {builder.data_dir}")


if __name__ == "__main__":
    main()
