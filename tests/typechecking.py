"""The runtime type checker of the tests: beartype, with integers accepted where floats are annotated (PEP 484)."""

from beartype import BeartypeConf, beartype

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
