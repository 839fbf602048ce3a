"""Reads `pytorch_model.bin` without torch and without running its pickle.

A pickle is a program: unpickling one from the network can run anything. Here
the program may only build the few objects that a file of weights needs, and
every other name in it is an error. Both layouts of `torch.save` are read: the
zip archive of torch 1.6 and later, and the plain stream before it. Not built:
the tar layout of torch 0.x, sparse and quantised tensors.
"""

import collections
import dataclasses
import math
import pickle
import zipfile
import zlib

import ml_dtypes
import numpy as np

from bert_pruning.errors import UserError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL_VERSION = 1001

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

# What a broken file makes the readers raise.
_FORMAT_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array that tensors are views of: its dtype, key and length."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it; its data comes later.

    Args:
        storage: _Storage.
        offset: int. Index of the first element in the storage.
        shape: tuple of ints.
        strides: tuple of ints, in elements.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, elements):
        """Returns the tensor as a view of its storage's elements.

        Args:
            elements: array `(number of elements,)`.

        Raises:
            ValueError: if the tensor reaches beyond its storage.
        """
        sizes = (self.offset, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or min(sizes) < 0:
            raise ValueError(f"tensor of shape {self.shape}")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, elements.dtype)
        last = self.offset + sum(
            (size - 1) * stride
            for size, stride in zip(self.shape, self.strides, strict=True)
        )
        if last >= len(elements):
            raise ValueError("tensor reaches beyond its storage")
        return np.lib.stride_tricks.as_strided(
            elements[self.offset :],
            self.shape,
            [stride * elements.itemsize for stride in self.strides],
            writeable=False,
        )


def read_torch_tensors(path):
    """Reads a file written by `torch.save(model.state_dict(), path)`.

    Args:
        path: str.

    Returns:
        A dict from name to array, in the file's own dtype (bfloat16 as
        `ml_dtypes.bfloat16`).

    Raises:
        UserError: if the file is truncated, is no dict of tensors, or its
            pickle asks for anything but tensors.

    Example:

    ```python
    tensors = read_torch_tensors("bert-base-uncased/pytorch_model.bin")
    tensors["bert.pooler.dense.weight"].shape  # (768, 768)
    ```
    """
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(path)
            file.seek(0)
            return _read_stream(file, path)
    except UserError:
        raise
    except (*_FORMAT_ERRORS, OSError) as error:
        raise UserError(
            f"{path} is truncated or is not a file of PyTorch weights "
            f"({type(error).__name__}: {error}). Copy or download it again."
        ) from error


def _read_zip(path):
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        order = "little"
        if "byteorder" in names:
            order = archive.read(names["byteorder"]).decode("ascii")
        with archive.open(names["data.pkl"]) as file:
            tensors = _check_tensors(_Unpickler(file, path).load(), path)
        storages = {
            storage: _elements(
                archive.read(names[f"data/{storage.key}"]), storage, order
            )
            for storage in {t.storage for t in tensors.values()}
        }
    return {
        name: tensor.view(storages[tensor.storage])
        for name, tensor in tensors.items()
    }


def _read_stream(file, path):
    if _Unpickler(file, path).load() != _MAGIC_NUMBER:
        raise ValueError("unknown magic number")
    if _Unpickler(file, path).load() != _PROTOCOL_VERSION:
        raise ValueError("unknown protocol version")
    system = _Unpickler(file, path).load()
    order = "little" if system.get("little_endian", True) else "big"
    tensors = _check_tensors(_Unpickler(file, path).load(), path)
    keys = _Unpickler(file, path).load()
    described = {t.storage.key: t.storage for t in tensors.values()}
    storages = {}
    for key in keys:
        storage = described[key]
        if int.from_bytes(file.read(8), order) != storage.size:
            raise ValueError(f"storage {key!r} has another size")
        data = file.read(storage.size * storage.dtype.itemsize)
        storages[storage] = _elements(data, storage, order)
    return {
        name: tensor.view(storages[tensor.storage])
        for name, tensor in tensors.items()
    }


def _elements(data, storage, order):
    if len(data) != storage.size * storage.dtype.itemsize:
        raise ValueError(
            f"{len(data)} bytes for {storage.size} elements of {storage.dtype}"
        )
    if order == "little":
        return np.frombuffer(data, storage.dtype)
    if order != "big":
        raise ValueError(f"byte order {order!r}")
    words = np.frombuffer(data, f">u{storage.dtype.itemsize}")
    return words.astype(f"<u{storage.dtype.itemsize}").view(storage.dtype)


def _check_tensors(tensors, path):
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, _Tensor)
        for name, tensor in tensors.items()
    ):
        raise UserError(
            f"{path} does not hold the weights of one model (a dict from "
            "name to tensor), as torch.save(model.state_dict(), ...) writes "
            "it. Save the model again that way, or as model.safetensors."
        )
    return tensors


class _Unpickler(pickle.Unpickler):
    """Builds dicts of `_Tensor`s and refuses everything else."""

    def __init__(self, file, path):
        super().__init__(file)
        self._path = path

    def find_class(self, module, name):
        if module == "torch" and name in _DTYPES:
            return _StorageType(name)
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise UserError(
            f"{self._path} asks for {module}.{name} while it is read, which "
            "no file of BERT weights needs. It may be malicious: nothing of "
            "it was run. Use model.safetensors instead."
        )

    def persistent_load(self, pid):
        kind, storage_type, key, _, size, *view = pid
        if (
            kind != "storage"
            or not isinstance(storage_type, _StorageType)
            or any(view)
        ):
            raise pickle.UnpicklingError(f"unknown reference {pid!r}")
        return _Storage(_DTYPES[storage_type.name], key, int(size))


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """Stands for the class torch.<name>."""

    name: str


def _rebuild_tensor(storage, offset, shape, strides, *_):
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor, *_):
    return tensor


_ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
}
