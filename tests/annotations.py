"""The run-time check of annotations, as conftest.py installs it for jaxmatch.functional."""

from beartype import BeartypeConf, beartype

# An int is a float, as in annotations.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
