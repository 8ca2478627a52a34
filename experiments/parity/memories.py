"""Recorded banks, queues and histories as the library's memory, and back.

The references let every row take part, written or not; here all recorded rows count as written.
"""

import jax.numpy as jnp
import numpy as np

from experiments.parity.rows import Case, UnknownCaseError
from jaxmatch.algorithms import comatch, simmatch, simmatch_v2
from jaxmatch.functional.alignment import make_history
from jaxmatch.functional.memory import Bank, Queue
from jaxmatch.types import Array

# Batches, fixed in the authors' code.
OFFICIAL_SIMMATCH_HISTORY = 256
OFFICIAL_COMATCH_HISTORY = 32


def full_bank(embeddings: np.ndarray, labels: np.ndarray) -> Bank:
    """A bank of rows [n d] with labels [n]."""
    return Bank(
        jnp.asarray(embeddings),
        jnp.asarray(labels, jnp.int32),
        jnp.ones(len(labels), bool),
    )


def full_queue(pointer: int, **rows: np.ndarray) -> Queue:
    """A ring of rows [n ...] by name."""
    size = len(next(iter(rows.values())))
    return Queue(
        {name: jnp.asarray(value) for name, value in rows.items()},
        jnp.asarray(pointer, jnp.int32),
        jnp.asarray(size, jnp.int32),
    )


def full_history(rows: np.ndarray, pointer: np.ndarray, length: int) -> Queue:
    """A history of ``length`` rows; those beyond the recorded ones are zero."""
    padding = np.zeros((length - len(rows), rows.shape[1]))
    return full_queue(int(pointer.item()), marginal=np.concatenate([rows, padding]))


def usb_history(case: Case) -> Queue:
    """USB's queue of batch averages; that of its targets is constant."""
    rows = case["init_state/da_p_model"]
    case["init_state/da_p_target"]
    return full_history(rows, case["init_state/da_p_model_ptr"], len(rows))


def usb_history_states(history: Queue) -> dict[str, Array]:
    """By USB's names; the library's target is uniform without being stored."""
    rows = history.rows["marginal"]
    return {
        "da_p_model": rows,
        "da_p_model_ptr": history.pointer[None],
        "da_p_target": jnp.full_like(rows, 1 / rows.shape[1]),
    }


def usb_simmatch(case: Case) -> simmatch.Memory:
    """USB's bank, stored (d, n), and history."""
    bank = full_bank(case["init_state/mem_bank"].T, case["init_state/labels_bank"])
    return simmatch.Memory(bank, usb_history(case))


def usb_simmatch_states(case: Case, memory: simmatch.Memory) -> dict[str, Array]:
    """The memory by USB's names."""
    del case
    return {
        "mem_bank": memory.bank.embeddings.T,
        "labels_bank": memory.bank.labels,
        **usb_history_states(memory.history),
    }


def official_simmatch(case: Case) -> simmatch.Memory:
    """The authors' bank, stored (d, n), and, with alignment, the first rows of their queue."""
    bank = full_bank(case["init_state/bank"].T, case["init_state/labels"])
    if not case.meta["hyperparameters"]["DA"]:
        return simmatch.Memory(bank, ())
    rows, pointer = case["init_state/DA_queue"], case["init_state/DA_ptr"]
    return simmatch.Memory(bank, full_history(rows, pointer, OFFICIAL_SIMMATCH_HISTORY))


def official_simmatch_states(case: Case, memory: simmatch.Memory) -> dict[str, Array]:
    """The memory by the authors' names."""
    states = {"bank": memory.bank.embeddings.T, "labels": memory.bank.labels}
    if memory.history == ():
        return states
    recorded = len(case["init_state/DA_queue"])
    rows = memory.history.rows["marginal"][:recorded]
    return {**states, "DA_queue": rows, "DA_ptr": memory.history.pointer[None]}


def official_simmatch_v2(case: Case) -> simmatch_v2.Memory:
    """The authors' bank with one-hot labels, ring of unlabeled images and moving average."""
    labels = case["init_state/l_labels"]
    classes = labels.argmax(1)
    if not np.array_equal(labels, np.eye(labels.shape[1])[classes]):
        raise UnknownCaseError("the library's bank has one label for each image")
    queue = full_queue(
        int(case["init_state/ptr"].item()),
        embeddings=case["init_state/u_bank"],
        probabilities=case["init_state/u_labels"],
    )
    average = jnp.asarray(case["init_state/da"][0])
    return simmatch_v2.Memory(full_bank(case["init_state/l_bank"], classes), queue, average)


def official_simmatch_v2_states(case: Case, memory: simmatch_v2.Memory) -> dict[str, Array]:
    """The memory by the authors' names."""
    classes = len(memory.average)
    rows = memory.queue.rows
    del case
    return {
        "l_bank": memory.bank.embeddings,
        "l_labels": jnp.eye(classes)[memory.bank.labels],
        "u_bank": rows["embeddings"],
        "u_labels": rows["probabilities"],
        "ptr": memory.queue.pointer[None],
        "da": memory.average[None],
    }


def usb_comatch(case: Case) -> comatch.Memory:
    """USB's queue and history."""
    queue = full_queue(
        int(case["init_state/queue_ptr"].item()),
        embedding=case["init_state/queue_feats"],
        probabilities=case["init_state/queue_probs"],
    )
    return comatch.Memory(usb_history(case), queue, None)


def usb_comatch_states(case: Case, memory: comatch.Memory) -> dict[str, Array]:
    """The memory by USB's names."""
    del case
    return {**_queue_states(memory.weak), **usb_history_states(memory.history)}


def official_comatch(case: Case) -> comatch.Memory:
    """The authors' queue of zeros and empty list of batch averages."""
    given = case.meta["hyperparameters"]
    size = given["queue_size"]
    queue = full_queue(
        0,
        embedding=np.zeros((size, given["low_dim"])),
        probabilities=np.zeros((size, given["n_classes"])),
    )
    history = make_history(OFFICIAL_COMATCH_HISTORY, given["n_classes"])
    return comatch.Memory(history, queue, None)


def official_comatch_states(case: Case, memory: comatch.Memory) -> dict[str, Array]:
    """The memory by the authors' names; their list holds the oldest average first."""
    del case
    history = memory.history
    rows, count = history.rows["marginal"], int(history.filled)
    ordered = jnp.roll(rows, -history.pointer, 0) if count == len(rows) else rows[:count]
    return {**_queue_states(memory.weak), "prob_list": ordered}


def _queue_states(queue: Queue) -> dict[str, Array]:
    rows = queue.rows
    size = len(rows["embedding"])
    return {
        "queue_feats": rows["embedding"],
        "queue_probs": rows["probabilities"],
        "queue_ptr": queue.pointer % size,
    }
