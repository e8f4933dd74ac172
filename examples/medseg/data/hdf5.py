"""Look at how an HDF5 file stores an array before it is read.

Over a damaged file HDF5 fills what it does not find with zeros, without a word, or crashes the process.
"""

import itertools
import math

import h5py

CHECKSUM = 4  # bytes that the fletcher32 filter appends to a chunk


def missing_from(dataset: h5py.Dataset) -> str:
    """What the file lacks of the values of an array, in words; empty if it holds all of them."""
    if dataset.is_virtual or dataset.external:
        return "the values, which are in other files,"
    if dataset.chunks is None:
        return "" if dataset.id.get_storage_size() == dataset.nbytes else "values"
    chunks: list[h5py.h5d.StoreInfo] = []
    dataset.id.chunk_iter(chunks.append)
    starts = itertools.product(*(range(0, n, step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)))
    if sorted(chunk.chunk_offset for chunk in chunks) != list(starts):
        return "chunks"
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    every_filter = (1 << dataset.id.get_create_plist().get_nfilters()) - 1
    for chunk in chunks:
        unfiltered = chunk.filter_mask & every_filter == every_filter
        if chunk.size != size if unfiltered else chunk.size <= CHECKSUM:
            return "part of a chunk"
    return ""
