"""What a single process does where several could be, and what it says to wrong arguments."""

import numpy as np
import pytest

from jaxmatch.errors import DiskError, InputError
from jaxmatch.runtime import hosts


def test_alone_it_leads_and_agrees_with_itself(tmp_path):
    assert hosts.leader()
    assert hosts.from_leader(lambda: [1, "a"]) == [1, "a"]
    assert hosts.first_problem(None) is None
    assert hosts.first_problem("it is torn") == "it is torn"
    hosts.synchronize("nobody else")
    hosts.check_same("configuration", "{}")
    hosts.check_shared(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    np.testing.assert_array_equal(hosts.gather(np.array([3, 1])), [3, 1])
    labels, names = hosts.leaders_arrays(lambda: [np.arange(3), np.array(["a", "bc"])])
    np.testing.assert_array_equal(labels, [0, 1, 2])
    np.testing.assert_array_equal(names, ["a", "bc"])
    hosts.raise_together(None)
    with pytest.raises(DiskError, match="full"):
        hosts.raise_together(DiskError("full"))


def test_arguments_come_together():
    with pytest.raises(InputError, match="--processes=N and --process=I belong together"):
        hosts.join("localhost:1234", 2)
    with pytest.raises(InputError, match="--process=2 must be one of 0 to 1"):
        hosts.join("localhost:1234", 2, 2)
