"""A PyTorch checkpoint as safetensors: ``python -m experiments.weights.from_pth IN.pth OUT``.

Needs torch and safetensors, and nothing of JAX. Only tensors and plain containers are unpickled.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

KEYS = ("state_dict", "model", "ema_model", "model_state_dict", "teacher")


def find_tensors(content: Any, key: str = "") -> tuple[dict[str, Any], str]:
    """The state dict in what ``torch.load`` returned, and the key it was found under.

    Args:
        content: a state dict, or a dict that holds one.
        key: where it is, with dots into dicts of dicts. What is there may again hold it under one
            of :data:`KEYS`.

    Raises:
        ValueError: if there is none.
    """
    if not isinstance(content, Mapping):
        raise ValueError("it holds no dict")
    level = _at(content, key)
    inner = next(_state_dicts(level), None)
    found = {} if inner is None else _tensors(_at(level, inner))
    if not found:
        where = f"key {key!r}" if key else "the usual keys"
        raise ValueError(f"no tensors under {where}; its keys: {_keys(content)}")
    return found, ".".join(filter(None, (key, inner)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="IN.pth")
    parser.add_argument("output", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--key", default="", help=f"of the state dict (default: of {KEYS})")
    given = parser.parse_args(arguments)
    if given.output.suffix != ".safetensors":
        parser.error(f"{given.output} does not end in .safetensors.")
    if given.output.exists():
        parser.error(f"{given.output} exists; remove it or choose another name.")
    if not given.output.parent.is_dir():
        parser.error(f"there is no folder {given.output.parent}; create it first.")

    import torch  # pyright: ignore[reportMissingImports]
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        content = torch.load(given.source, map_location="cpu", weights_only=True)
        tensors, key = find_tensors(content, given.key)
    except UnpicklingError:
        parser.error(
            f"{given.source} holds more than tensors, or is damaged, and reading the rest would "
            "run code; where you trust it, save its state dict alone with torch.save."
        )
    except Exception as error:  # of whatever kind: unreadable is unreadable
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        parser.error(f"{given.source} is not read as plain tensors: {reason}")
    for name, value in tensors.items():
        if value.is_sparse or value.is_complex():
            kind = "sparse" if value.is_sparse else "complex"
            parser.error(f"{given.source}: the tensor {name} is {kind}, and no weight is that.")
    # Copies, since safetensors takes no two names for one memory.
    tensors = {name: value.contiguous().clone() for name, value in tensors.items()}
    temporary = given.output.with_name(f".{given.output.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary)
        temporary.replace(given.output)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        parser.error(f"{given.output} could not be written: {error}")
    others = [other for other in _state_dicts(content) if key and other != key]
    also = f"; --key also finds {', '.join(others)}" if others else ""
    print(f"wrote {given.output}: {len(tensors)} tensors of {key or 'the whole file'}{also}")


def _tensors(content: Any) -> dict[str, Any]:
    """The tensors of a dict by name, but for BatchNorm's counts of batches."""
    if not isinstance(content, Mapping):
        return {}
    return {
        str(name): value
        for name, value in content.items()
        if hasattr(value, "shape") and not str(name).endswith("num_batches_tracked")
    }


def _at(content: Any, key: str) -> Any:
    """What is under a key such as "model.state_dict"; None if nothing is."""
    for part in key.split(".") if key else ():
        content = content.get(part) if isinstance(content, Mapping) else None
    return content


def _state_dicts(content: Any) -> Iterator[str]:
    """Where state dicts are: under :data:`KEYS` and inside of them, or else "", the dict itself.

    Numbers alone, such as the count of epochs, are none.
    """
    if not isinstance(content, Mapping):
        return
    inside = [
        f"{known}.{inner}" if inner else known
        for known in KEYS
        for inner in _state_dicts(content.get(known))
    ]
    if not inside and any(len(value.shape) for value in _tensors(content).values()):
        inside = [""]
    yield from inside


def _keys(content: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, list(content)[:10])) or "none"


if __name__ == "__main__":
    main()
