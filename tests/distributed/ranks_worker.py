"""A rank of two, for test_ranks.py: what one rank raises, the other must raise alike."""

from __future__ import annotations

import pytest
import torch

from lape_ds.distributed.ranks import end, rank, start, together
from lape_ds.errors import Diverged, UserError
from lape_ds.training.main import is_out_of_memory


def main() -> None:
    start()

    def raise_on(number: int, error: Exception) -> None:
        if rank() == number:
            raise error

    with pytest.raises(Diverged, match="loss is nan"):
        together(lambda: raise_on(1, Diverged("loss is nan")))
    with pytest.raises(UserError, match=r"^rank 0 on .*: disk full$") as caught:
        together(lambda: raise_on(0, UserError("disk full")))
    assert not isinstance(caught.value, Diverged)
    with pytest.raises(UserError, match=r"^alike$"):
        together(lambda: raise_on(rank(), UserError("alike")))
    with pytest.raises(RuntimeError, match=r"^rank 1 on .*: KeyError: 'a bug'$") as bug:
        together(lambda: raise_on(1, KeyError("a bug")))
    assert isinstance(bug.value.__cause__, KeyError) == (rank() == 1), "its traceback is not lost"
    assert not is_out_of_memory(bug.value)
    for shortage in (torch.OutOfMemoryError("CUDA out of memory. Tried …"), MemoryError()):
        with pytest.raises(RuntimeError) as lost:
            together(lambda error=shortage: raise_on(1, error))
        assert is_out_of_memory(lost.value), "also where it is not this rank's"
    assert together(rank) == rank()
    end()


if __name__ == "__main__":
    main()
