# What nbdkit gives to a plugin in Python: nbdkit-python-plugin(3).

THREAD_MODEL_PARALLEL: int
EXTENT_HOLE: int
EXTENT_ZERO: int
FLAG_REQ_ONE: int

def set_error(err: int) -> None: ...
