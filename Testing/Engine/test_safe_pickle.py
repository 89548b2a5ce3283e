"""Nothing that a weights file asks for is ever run, with this PyTorch's own guard and with ours for older ones."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import zipfile

import pytest
import torch
from famsam import safe_pickle
from famsam.checkpoints import load_model
from famsam.errors import CheckpointError
from famsam.safe_pickle import load_torch_file
from tiny_models import answer, tiny_model


@pytest.fixture(params=["this PyTorch's guard", "the guard for older PyTorch"])
def guard(request, monkeypatch):
    if request.param == "this PyTorch's guard":
        if not hasattr(torch.serialization, "safe_globals"):
            pytest.skip("this PyTorch is too old to have it")
    else:
        monkeypatch.setattr(safe_pickle, "_load", safe_pickle._load_restricted)


class Trap:
    """Unpickling it calls ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def traps(witness):
    return {
        "os.system": Trap(os.system, f"echo caught > {witness}"),
        "exec": Trap(exec, f"open({str(witness)!r}, 'w').close()"),
        "open": Trap(open, str(witness), "w"),
        "getattr": Trap(getattr, "text", "upper"),
        "nested load": Trap(torch.load, str(witness)),
        "load from bytes": Trap(torch.storage._load_from_bytes, b"x"),
        "Namespace call": Trap(argparse.Namespace._get_kwargs, argparse.Namespace()),
    }


@pytest.mark.parametrize("new_layout", [True, False])
@pytest.mark.parametrize("kind", sorted(traps("")))
def test_nothing_is_executed(kind, new_layout, guard, tmp_path):
    witness, path = tmp_path / "witness", tmp_path / "trap.pth"
    content = {"model_state_dict": tiny_model("fastsam3d").state_dict(), "args": traps(witness)[kind]}
    torch.save(content, path, _use_new_zipfile_serialization=new_layout)
    with pytest.raises(CheckpointError) as caught:
        load_model(path, "cpu")
    assert not witness.exists()
    assert "not plain data" in str(caught.value) and str(path) in str(caught.value)


def test_the_trap_is_real(tmp_path):
    witness, path = tmp_path / "witness", tmp_path / "trap.pth"
    torch.save(traps(witness)["os.system"], path)
    torch.load(path, weights_only=False)
    assert witness.exists()


def test_a_bare_pickle_is_not_executed_either(guard, tmp_path):
    witness, path = tmp_path / "witness", tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps(traps(witness)["os.system"], protocol=2))
    with pytest.raises(CheckpointError):
        load_torch_file(path)
    assert not witness.exists()


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(guard, tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pth"))
    with pytest.raises(CheckpointError, match=r"TorchScript.* ask its author") as refused:
        load_torch_file(tmp_path / "script.pth")
    assert "damaged" not in str(refused.value)


def test_a_checkpoint_that_is_packed_is_not_called_damaged(guard, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "packed.pth", "w") as archive:
        archive.write(tmp_path / "m.pth", "weights/m.pth")
    with pytest.raises(CheckpointError, match=r"zip archive of other files \(weights/m.pth\).* unpack it"):
        load_torch_file(tmp_path / "packed.pth")


@pytest.mark.parametrize("new_layout", [True, False])
def test_what_training_scripts_save_is_read(new_layout, guard, tmp_path):
    model = tiny_model("sam_med3d")
    content = {
        "model_state_dict": collections.OrderedDict(model.state_dict()),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "others": [torch.zeros(2, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "args": argparse.Namespace(lr=1e-3, steps=[1, 2], nested=argparse.Namespace(a=None)),
        "numbers": (1, 2.5, None, True, float("inf"), {"set"}, b"bytes", "text"),
    }
    torch.save(content, tmp_path / "m.pth", _use_new_zipfile_serialization=new_layout)
    read = load_torch_file(tmp_path / "m.pth")
    assert read["args"].lr == 1e-3 and read["args"].nested.a is None
    assert read["numbers"] == content["numbers"] and read["size"] == torch.Size([2, 3])
    assert [t.dtype for t in read["others"]] == [t.dtype for t in content["others"]]
    torch.testing.assert_close(answer(load_model(tmp_path / "m.pth", "cpu")), answer(model), rtol=0, atol=0)


def test_an_unreadable_file(tmp_path):
    with pytest.raises(CheckpointError, match="Cannot read"):
        load_torch_file(tmp_path)


@pytest.mark.parametrize("content", [b"a text", b"\x80\x02garbage", b"PK\x03\x04garbage", b"{}"])
def test_nobody_is_told_to_read_a_foreign_file_without_the_guard(guard, content, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="PyTorch checkpoint") as refused:
        load_torch_file(path)
    assert "weights_only" not in str(refused.value) and "False" not in str(refused.value)
