"""Checkpoints of strangers: what is read of them, and that nothing in them runs, reaches outside or eats memory."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tracemalloc
import warnings
import zipfile

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from vdengine.engine.metadata import METADATA, read_state
from vdengine.errors import InputError
from vdengine.outside import MIB

SHARD = "__0_0.distcp"


def state_of() -> dict[str, torch.Tensor]:
    """What our checkpoints hold, and shapes at the edges: scalars, nothing, views, strides."""
    torch.manual_seed(0)
    return {
        "numbers.tokens": torch.tensor(1.5, dtype=torch.float64),
        "model.head": torch.randn(5, 4),
        "model.bf16": torch.randn(3, 2, dtype=torch.bfloat16),
        "model.part": torch.randn(6, 6)[1:3, 2:5],
        "model.turned": torch.randn(4, 3).t(),
        "model.none": torch.zeros(0, 3),
        "counts": torch.tensor([1, 2**40]),
        "flags": torch.tensor([True, False]),
    }


def save(folder, state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("whole") / "checkpoint", state_of())


@pytest.fixture
def folder(tmp_path, whole):
    """A copy to spoil."""
    (tmp_path / SHARD).write_bytes((whole / SHARD).read_bytes())
    (tmp_path / METADATA).write_bytes((whole / METADATA).read_bytes())
    return tmp_path


def read(folder, *names):
    state = {name: torch.full_like(t, 0) for name, t in state_of().items() if not names or name in names}
    read_state(folder, state, no_dist=True)
    return state


def change(folder, edit):
    """Edit the metadata as Python objects, and write it as DCP does."""
    metadata = pickle.loads((folder / METADATA).read_bytes())
    edit(metadata)
    (folder / METADATA).write_bytes(pickle.dumps(metadata))


def test_what_dcp_writes_is_read_bit_for_bit(whole):
    """Guards resuming: every shape and dtype comes back, views and strides included."""
    for name, tensor in read(whole).items():
        assert torch.equal(tensor, state_of()[name]), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(folder, protocol):
    """Guards checkpoints of another Python: 3.14 writes protocol 5."""
    metadata = pickle.loads((folder / METADATA).read_bytes())
    (folder / METADATA).write_bytes(pickle.dumps(metadata, protocol))
    assert torch.equal(read(folder)["model.head"], state_of()["model.head"])


def test_a_piece_of_a_shard_is_read(tmp_path):
    """Guards resuming on another number of ranks: tensors in several pieces, each in a file of its own."""
    state = {"w": torch.arange(12.0).view(4, 3)}
    save(tmp_path, state)
    parts = {}
    for rank, rows in enumerate((state["w"][:1], state["w"][1:])):
        torch.save(rows.clone(), buffer := io.BytesIO())
        parts[rank] = b"x" * 100 * rank + buffer.getvalue()
        (tmp_path / f"__{rank}_0.distcp").write_bytes(parts[rank])

    def split(metadata):
        chunk, info = metadata.state_dict_metadata["w"].chunks[0], next(iter(metadata.storage_data.values()))
        chunks, places = [], {}
        for rank, (start, rows) in enumerate(((0, 1), (1, 3))):
            chunks.append(type(chunk)(torch.Size([start, 0]), torch.Size([rows, 3])))
            place = type(info)(f"__{rank}_0.distcp", 100 * rank, len(parts[rank]) - 100 * rank)
            places[MetadataIndex("w", [start, 0])] = place
        metadata.state_dict_metadata["w"].chunks, metadata.storage_data = chunks, places

    change(tmp_path, split)
    read_state(tmp_path, into := {"w": torch.zeros(4, 3)}, no_dist=True)
    assert torch.equal(into["w"], state["w"])


# -------------------------------------------------------------------------------------------- hostile metadata


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def loaded(folder):
    open(folder / "ran", "w").close()


PICKLES = {
    "os.system": lambda at: pickle.dumps(Calls(os.system, f"touch {at}/ran")),
    "eval": lambda at: pickle.dumps(Calls(eval, f"open({str(at / 'ran')!r}, 'w')")),
    "a function of the tests": lambda at: pickle.dumps(Calls(loaded, at)),
    "getattr on an allowed name": lambda at: pickle.dumps(Calls(getattr, torch.Size, "__subclasses__")),
    "a dotted name": lambda at: b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93.",
    "nested calls": lambda at: pickle.dumps(Calls(torch.Size, Calls(eval, "1"))),
    "torch._utils": lambda at: pickle.dumps(torch.zeros(2)),
    "bytearray(10**10)": lambda at: pickle.dumps(Calls(bytearray, 10**10)),
    "a class": lambda at: pickle.dumps(pickle.PickleBuffer),
    "GLOBAL": lambda at: b"cos\nsystem\n(S'touch ran'\ntR.",
    "INST": lambda at: b"(S'touch ran'\nios\nsystem\n.",
    "OBJ": lambda at: b"(cos\nsystem\nX\x01\x00\x00\x00ao.",
    "EXT1": lambda at: b"\x82\x01.",
    "a method by BUILD": lambda at: b"\x80\x04\x8c\x05torch\x8c\x04Size\x93}\x8c\x01aKb\x73b.",
    "an index of 2^32 in the memo": lambda at: b"\x80\x04Nr\xff\xff\xff\xff.",
    "8 EiB of bytes": lambda at: b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"x.",
    "4 GiB of text": lambda at: b"\x80\x04X\xff\xff\xff\xffabc.",
    "a frame of 8 EiB": lambda at: b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b".",
    "a tuple nested 10^5 deep": lambda at: b"\x80\x04)" + b"\x85" * 10**5 + b".",
    "a deep tuple as a key": lambda at: b"\x80\x04})" + b"\x85" * 10**5 + b"Ns.",
    "marks only": lambda at: b"\x80\x04" + b"(" * 10**5 + b".",
    "nothing on the stack": lambda at: b"\x80\x04R.",
    "cut short": lambda at: b"\x80\x04\x95\x00",
    "nothing": lambda at: b"",
    "no pickle": lambda at: b"hello",
    "an integer": lambda at: pickle.dumps(7),
    "a dictionary": lambda at: pickle.dumps({"state_dict_metadata": {}}),
    "text that is no UTF-8": lambda at: b"\x80\x04\x8c\x01\xff.",
    "a shape with wrong arguments": lambda at: b"\x80\x04\x8c\x05torch\x8c\x04Size\x93KAKB\x86R.",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_hostile_pickle_is_refused_in_one_line(folder, name):
    """Guards `vdengine score STRANGER/checkpoints/step-N`: nothing runs, little memory is used, one line is said."""
    (folder / METADATA).write_bytes(PICKLES[name](folder))
    tracemalloc.start()
    with pytest.raises(InputError, match="not the metadata of a checkpoint") as error:
        read(folder)
    assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    tracemalloc.stop()
    assert "\n" not in str(error.value) and not (folder / "ran").exists()


def test_a_refused_name_is_said(folder):
    """Guards the reader of that line: which class is not allowed."""
    (folder / METADATA).write_bytes(PICKLES["os.system"](folder))
    with pytest.raises(InputError, match=r"\.metadata: .* asks for posix\.system, which no checkpoint needs"):
        read(folder)


def first(metadata):
    return metadata.storage_data[MetadataIndex("model.head", [0, 0])]


def tensor(metadata):
    return metadata.state_dict_metadata["model.head"]


def put(item, **fields):
    for name, value in fields.items():
        setattr(item, name, value)


EDITS = {
    "a file outside": lambda m: put(first(m), relative_path="../../../../etc/passwd"),
    "a file by its path": lambda m: put(first(m), relative_path="/etc/passwd"),
    "another file of the folder": lambda m: put(first(m), relative_path=METADATA),
    "a file that is not there": lambda m: put(first(m), relative_path="__7_0.distcp"),
    "a name that is no text": lambda m: put(first(m), relative_path=7),
    "a negative offset": lambda m: put(first(m), offset=-1),
    "an offset beyond the file": lambda m: put(first(m), offset=2**40),
    "an offset of 100 digits": lambda m: put(first(m), offset=10**100),
    "a length beyond the file": lambda m: put(first(m), length=2**40),
    "a length that is cut": lambda m: put(first(m), length=50),
    "a length that is true": lambda m: put(first(m), length=True),
    "a transformed shard": lambda m: put(first(m), transform_descriptors=["zstd"]),
    "another tensor's place": lambda m: put(first(m), offset=0),
    "a tensor of 10^12": lambda m: put(tensor(m), size=torch.Size([10**6, 10**6])),
    "a piece of 10^12": lambda m: put(tensor(m).chunks[0], sizes=torch.Size([10**6, 10**6])),
    "a piece outside": lambda m: put(tensor(m).chunks[0], offsets=torch.Size([1, 0])),
    "a piece with other dimensions": lambda m: put(tensor(m).chunks[0], sizes=torch.Size([20])),
    "a piece that is missing": lambda m: put(tensor(m), chunks=[]),
    "a piece twice": lambda m: put(tensor(m), chunks=tensor(m).chunks * 2),
    "pieces shared by all": lambda m: [put(t, chunks=tensor(m).chunks) for t in m.state_dict_metadata.values()],
    "pieces that are none": lambda m: put(tensor(m), chunks=[None]),
    "another dtype": lambda m: put(tensor(m).properties, dtype=torch.bfloat16),
    "an unknown dtype": lambda m: put(tensor(m).properties, dtype=torch.complex64),
    "no properties": lambda m: put(tensor(m), properties=None),
    "no storage": lambda m: put(m, storage_data=None),
    "storage of something else": lambda m: m.storage_data.update({MetadataIndex("model.head", [0, 0]): "x"}),
    "an object": lambda m: m.state_dict_metadata.update({"model.head": BytesStorageMetadata()}),
    "no such tensor": lambda m: m.state_dict_metadata.pop("model.head"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_metadata_that_does_not_fit_is_refused(folder, name):
    """Guards what comes after the unpickling: paths, offsets, sizes and types are checked before they are used."""
    change(folder, EDITS[name])
    with pytest.raises(InputError) as error:
        read(folder, "model.head")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------ hostile shards


def shard_with(folder, data):
    """The head's piece is these bytes."""
    (folder / "__9_0.distcp").write_bytes(data)
    change(folder, lambda m: put(first(m), relative_path="__9_0.distcp", offset=0, length=len(data)))


def archive(pkl, numbers=b"\x00" * 80, compression=zipfile.ZIP_STORED, order=b"little"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as out:
        for name, content in (("data.pkl", pkl), ("byteorder", order), ("data/0", numbers)):
            out.writestr(f"archive/{name}", content)
    return file.getvalue()


def head(size=(5, 4), stride=(4, 1), offset=0, count=20, storage="FloatStorage", call="_rebuild_tensor_v2"):
    """The pickle that torch.save writes for a tensor."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", getattr(torch, storage), "0", "cpu", count) if obj == "STORAGE" else None

    Pickler(file := io.BytesIO(), 2).dump(
        Calls(getattr(torch._utils, call), "STORAGE", offset, size, stride, False, None)
    )
    return file.getvalue()


def test_the_archives_of_these_tests_are_read(folder):
    """Guards the tests below: what they spoil is good before."""
    shard_with(folder, archive(head(), struct.pack("<20f", *range(20))))
    assert torch.equal(read(folder, "model.head")["model.head"], torch.arange(20.0).view(5, 4))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda at: archive(pickle.dumps(Calls(loaded, at))), id="a call"),
        pytest.param(lambda at: archive(pickle.dumps(Calls(os.system, f"touch {at}/ran"), 2)), id="os.system"),
        pytest.param(lambda at: archive(pickle.dumps(Calls(bytearray, 10**10))), id="bytearray"),
        pytest.param(lambda at: archive(head(call="_rebuild_sparse_tensor")), id="another rebuild"),
        pytest.param(lambda at: archive(head(size=(10**6, 10**6))), id="a huge shape"),
        pytest.param(lambda at: archive(head(size=(4, 5), stride=(5, 1))), id="another shape"),
        pytest.param(lambda at: archive(head(stride=(10**9, 1))), id="strides beyond the storage"),
        pytest.param(lambda at: archive(head(stride=(4,))), id="too few strides"),
        pytest.param(lambda at: archive(head(offset=10**9)), id="an offset beyond the storage"),
        pytest.param(lambda at: archive(head(count=10**12)), id="a huge storage"),
        pytest.param(lambda at: archive(head(count=-1)), id="a negative storage"),
        pytest.param(lambda at: archive(head(storage="DoubleStorage")), id="another dtype"),
        pytest.param(lambda at: archive(head(), bytes(20 * MIB), zipfile.ZIP_DEFLATED), id="a zip bomb"),
        pytest.param(lambda at: archive(bytes(20 * MIB), compression=zipfile.ZIP_DEFLATED), id="a zip bomb of a head"),
        pytest.param(lambda at: archive(head(), b"\x00" * 4), id="too few numbers"),
        pytest.param(lambda at: archive(head(), order=b"big"), id="another byte order"),
        pytest.param(lambda at: archive(pickle.dumps(7)) + bytes(100), id="an integer"),
        pytest.param(lambda at: pickle.dumps(torch.zeros(5, 4)) + bytes(100), id="no archive"),
        pytest.param(lambda at: bytes(200), id="zeros"),
    ],
)
def test_a_hostile_shard_is_refused(folder, data):
    """Guards tensors: no code runs, no size is taken from the file before it is checked, one line is said."""
    shard_with(folder, data(folder))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"__9_0\.distcp: damaged: ") as error:
        read(folder, "model.head")
    assert tracemalloc.get_traced_memory()[1] < 4 * MIB and "\n" not in str(error.value)
    tracemalloc.stop()
    assert not (folder / "ran").exists()


def test_files_that_are_none_are_refused(folder):
    """Guards against waiting for ever: a FIFO as a shard or as the metadata, a link to a device."""
    for name in (SHARD, METADATA):
        for make in (lambda p: os.mkfifo(p), lambda p: p.symlink_to("/dev/zero"), lambda p: p.mkdir()):
            (folder / name).rename(kept := folder / "kept")
            make(folder / name)
            with pytest.raises(InputError, match="not a regular file"):
                read(folder)
            (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
            kept.rename(folder / name)
    read(folder)


def test_damaged_bytes_end_in_an_input_error_only(folder):
    """Guards every other spoilt byte: 300 mutations of metadata and shard are read or refused, and nothing else."""
    rng = random.Random(0)
    good = {name: (folder / name).read_bytes() for name in (METADATA, SHARD)}
    refused = 0
    for round in range(300):
        name = METADATA if round % 3 else SHARD
        data = bytearray(good[name])
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data))
            match rng.randrange(3):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 40)]
                case _:
                    data[at:at] = data[(other := rng.randrange(len(data))) : other + rng.randrange(1, 40)]
        (folder / name).write_bytes(data)
        try:
            read(folder)
        except InputError as error:
            refused += "\n" not in str(error)
        (folder / name).write_bytes(good[name])
    assert refused > 150


def test_ctrl_c_is_no_damage(whole, monkeypatch):
    """Guards stopping while weights load: DCP wraps a KeyboardInterrupt like any error."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("vdengine.engine.metadata._tensor", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read(whole)
