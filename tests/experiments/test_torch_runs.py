"""Plain PyTorch runs of MNIST-5k, which other programs are compared with."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def runs():
    pytest.importorskip("torch")
    from experiments.mnist5k import torch_runs

    return torch_runs


@pytest.mark.parametrize(
    ("method", "more"), [("fixmatch", ""), ("simmatch", ""), ("simmatch", "as_usb")]
)
def test_each_run_is_recorded_once(method, more, runs, tmp_path, capsys):
    file = tmp_path / "runs.json"
    words = [f"--config={method}:mnist5k,labels=10,seed=1", "--config.steps=2", f"-o{file}"]
    words += ["--as-usb"] if more else []
    runs.main([*words, "--seeds=1"])
    runs.main([*words, "--seeds=2"])
    assert len(capsys.readouterr().out.splitlines()) == 2
    ((key, found),) = json.loads(file.read_text()).items()
    assert key == f"{method},labels=10,seed=1,steps=2" + (f",{more}" if more else "")
    assert found.keys() == {"0", "1"}
    assert all(0 <= run["accuracy"] <= 1 for run in found.values())


def test_initial_kernels_have_the_variance_of_he(runs):
    from jaxmatch.config.flags import from_flags
    from jaxmatch.config.saved import to_json

    model = to_json(from_flags("supervised:mnist5k,labels=10", [])[0])["model"]
    kernel = runs.drawn(model, 10)["block3.layer.0.conv1.weight"]
    outputs, _, height, width = kernel.shape
    expected = np.sqrt(2 / (1 + 0.01**2) / (outputs * height * width))
    assert abs(kernel.std() / expected - 1) < 0.02


@pytest.mark.parametrize("over_batch", [False, True])
def test_the_loss_of_simmatch_is_the_library_s(over_batch, runs, monkeypatch):
    """The same outputs in three steps: loss, bank and gradients of the strong views' outputs."""
    import jax
    import jax.numpy as jnp
    import torch  # pyright: ignore[reportMissingImports]

    from experiments.mnist5k.torch_simmatch import Objective
    from jaxmatch.algorithms.simmatch import SimMatch
    from jaxmatch.functional import alignment, memory, similarity

    classes, labels, sizes = 3, np.array([0, 1, 2, 1]), (5, 6, 6)
    options = {"projection": 4, "alignment_length": 2, "instance_start_step": 1, "threshold": 0.5}
    method = SimMatch(**options)
    settings = {key: getattr(method, key) for key in type(method).__dataclass_fields__}
    random = np.random.default_rng(0)
    objective = Objective(torch.from_numpy(labels), classes, settings, over_batch)
    if over_batch:  # as in usb_simmatch.py
        normalize = memory.normalize
        monkeypatch.setattr(memory, "normalize", lambda x: normalize(x.T).T)
    objective.bank = objective.bank.double()
    bank, history = memory.make_bank(labels.tolist(), 4), alignment.make_history(2, classes)
    used = []
    for step in range(3):
        logits = 2 * random.normal(size=(sum(sizes), classes))
        z = random.normal(size=(sum(sizes), 4))
        index = random.integers(0, len(labels), sizes[0])
        given = [torch.from_numpy(each).requires_grad_() for each in (logits, z)]

        def model(_, given=given):
            return given[0], torch.nn.functional.normalize(given[1])

        views = (torch.zeros(size, 1) for size in sizes)
        x, weak, strong = views
        found, share = objective(
            model, x, torch.from_numpy(index), weak, strong, settings, split=False
        )
        found.backward()
        used.append(float(share))

        def expected(logits, z, bank=bank, history=history, index=index, step=step):
            ends = np.cumsum(sizes)[:-1]
            on_x, on_weak, on_strong = jnp.split(jax.nn.log_softmax(logits), ends)
            z_x, z_weak, z_strong = jnp.split(similarity.normalize(z), ends)
            log_p, new_history = alignment.align_by_history(history, jax.lax.stop_gradient(on_weak))
            log_q = similarity.log_similarity(
                jax.lax.stop_gradient(z_weak), bank.embeddings, method.temperature, bank.filled
            )
            log_unfolded = similarity.unfold(log_q, log_p, bank.labels)
            votes = similarity.aggregate(jnp.exp(log_q), bank.labels, classes)
            ready = step >= 1
            share = method.smoothing if ready else 1.0
            target = share * jnp.exp(log_p) + (1 - share) * votes
            confident = target.max(1) >= method.threshold
            errors = -(target * on_strong).sum(1)
            on_bank = similarity.log_similarity(
                z_strong, bank.embeddings, method.temperature, bank.filled
            )
            instance = -(jnp.exp(log_unfolded) * on_bank).sum(1).mean() * ready
            loss = -on_x[jnp.arange(len(index)), labels[index]].mean()
            loss += jnp.where(confident, errors, 0.0).mean() + instance
            new = memory.write(bank, index, z_x, labels[index], method.bank_momentum)
            return loss, (new, new_history)

        with jax.enable_x64(True):
            (loss, (bank, history)), gradients = jax.value_and_grad(
                expected, argnums=(0, 1), has_aux=True
            )(jnp.asarray(logits), jnp.asarray(z))
        np.testing.assert_allclose(found.item(), loss, rtol=1e-6)
        for mine, theirs in zip(given, gradients, strict=True):
            # Without instance loss the embeddings have no gradient.
            own = torch.zeros_like(mine) if mine.grad is None else mine.grad
            np.testing.assert_allclose(own, theirs, atol=1e-6)
        np.testing.assert_allclose(objective.bank, bank.embeddings, atol=1e-6)
    assert 0 < sum(used) < 3
