"""The data of the demo: 1,797 real hand-written digits, from the file inside the scikit-learn wheel.

Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository (1998), test
part, as shipped by scikit-learn. The file is read where it lies: importing scikit-learn costs seconds, reading it 10 ms.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlkit._digest import digest_bytes
from mlkit.errors import IntegrityError, MissingDependencyError

if TYPE_CHECKING:
    import numpy as np

    from mlkit.repro import Seeds

__all__ = ["Digits", "load_digits"]

CONTENT = "sha256:6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
N_REQUESTS = 1_000


class Digits(NamedTuple):
    """Images of 8 x 8 pixels as rows of 64 numbers in [0, 1], and the digits they show.

    Attributes:
        train_x: Images to learn from, float32, shape `(797, 64)`.
        train_y: What they show, int64, shape `(797,)`.
        request_x: Images that arrive later as requests, float32, shape `(1000, 64)`.
        request_y: What those show, int64, shape `(1000,)`.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    request_x: np.ndarray
    request_y: np.ndarray


def load_digits(seeds: Seeds) -> Digits:
    """Read the file, check that it is the one we know, and split it.

    Args:
        seeds: Decides which images are for training.

    Raises:
        MissingDependencyError: If scikit-learn, which ships the file, is not installed.
        IntegrityError: If the file is not the known one.
    """
    import numpy as np

    sklearn = find_spec("sklearn")
    if sklearn is None or sklearn.origin is None:
        raise MissingDependencyError(feature="the demo's data", module="sklearn", extra="demo")
    path = Path(sklearn.origin).parent / "datasets" / "data" / "digits.csv.gz"
    content = gzip.decompress(path.read_bytes())
    if (found := digest_bytes(content)) != CONTENT:
        raise IntegrityError(str(path), expected=CONTENT, got=found)
    table = np.loadtxt(content.decode("ascii").splitlines(), delimiter=",", dtype=np.float32)
    order = (seeds / "split").numpy().permutation(len(table))
    images, labels = table[order, :-1] / 16, table[order, -1].astype(np.int64)
    return Digits(
        images[:-N_REQUESTS], labels[:-N_REQUESTS], images[-N_REQUESTS:], labels[-N_REQUESTS:]
    )
