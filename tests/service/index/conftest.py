"""Fixtures that the tests of the index share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.index.gpu import Gpu
from service.index.native import swig


@pytest.fixture(scope="module")
def card() -> Iterator[Gpu]:
    """The machine's GPU, or a stand-in that copies to main memory if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        if not swig.get_num_gpus():
            patch.setattr(swig, "StandardGpuResources", object, raising=False)
            patch.setattr(swig, "index_cpu_to_gpu", lambda _r, _device, index: swig.clone_index(index), raising=False)
        yield Gpu()
