"""What a single process does where several could be, and what it says to wrong arguments."""

import numpy as np
import pytest

from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime import hosts as distributed


def test_alone_it_leads_and_agrees_with_itself(tmp_path):
    assert distributed.leader()
    assert distributed.from_leader(lambda: [1, "a"]) == [1, "a"]
    assert distributed.first_problem(None) is None
    assert distributed.first_problem("it is torn") == "it is torn"
    distributed.synchronize("nobody else")
    distributed.check_same("configuration", "{}")
    distributed.check_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    np.testing.assert_array_equal(distributed.gather(np.array([3, 1])), [3, 1])
    labels, names = distributed.leaders_arrays(lambda: [np.arange(3), np.array(["a", "bc"])])
    np.testing.assert_array_equal(labels, [0, 1, 2])
    np.testing.assert_array_equal(names, ["a", "bc"])
    distributed.raise_together(None)
    with pytest.raises(DiskError, match="full"):
        distributed.raise_together(DiskError("full"))


def test_arguments_come_together():
    with pytest.raises(InputError, match="--processes=N and --process=I together"):
        distributed.join("localhost:1234", 2)
    with pytest.raises(InputError, match="--process=2 must be one of 0 to 1"):
        distributed.join("localhost:1234", 2, 2)
