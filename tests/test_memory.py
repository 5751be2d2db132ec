import resource

import torch

from rest_pg.memory import release_memory, reuse_freed_memory


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_kept_memory_is_given_back_at_the_end() -> None:
    release_memory()
    before = resident_bytes()
    with reuse_freed_memory():
        parts = [torch.ones(1_000_000) for _ in range(64)]
        del parts
        kept = resident_bytes() - before
    given_back = resident_bytes() - before
    assert kept > 200e6
    assert given_back < 50e6
