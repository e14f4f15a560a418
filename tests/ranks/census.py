"""All tensors of a process, found without knowing who holds them."""

import gc

import torch


def find_storages() -> dict[int, torch.UntypedStorage]:
    """Find every storage that a tensor of Python's refers to, by its address.

    Who keeps the answer keeps the storages: no new one can come to lie at the address of an old one.
    """
    found = {}
    for each in gc.get_objects():
        # Not isinstance: it would ask lazy modules and the like what they are.
        if issubclass(type(each), torch.Tensor) and each.device.type != "meta":
            storage = each.untyped_storage()
            if storage.data_ptr():
                found[storage.data_ptr()] = storage
    return found


def count_new_bytes(before: dict[int, torch.UntypedStorage]) -> int:
    """Add up the storages that were not there ``before``."""
    gc.collect()
    old = {storage.data_ptr() for storage in before.values()}
    return sum(storage.nbytes() for place, storage in find_storages().items() if place not in old)
