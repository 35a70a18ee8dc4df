"""The restricted unpickler: plain data of every protocol comes back, anything else is refused."""

from __future__ import annotations

import os
import pickle
import pickletools

import numpy as np
import pytest

from facesyn_cli.artifacts.plain_pickle import load_plain


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(protocol):
    value = (
        [b"\xff\x00ab", b"", np.arange(5, dtype=np.uint8), np.arange(6, dtype=">i4").reshape(2, 3, order="F")],
        [True, np.bool_(False), np.int64(5), np.float32(0.5)],
        np.array([True, False]),
    )
    images, scalars, answers = load_plain(pickle.dumps(value, protocol))
    assert images[:2] == [b"\xff\x00ab", b""]
    np.testing.assert_array_equal(images[2], value[0][2])
    np.testing.assert_array_equal(images[3], value[0][3])
    assert scalars == [True, False, 5, 0.5] and scalars[1] is False
    np.testing.assert_array_equal(answers, [True, False])


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_module_paths_of_numpy(core):
    data = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    renamed = data.replace(b"numpy._core", core.encode()).replace(b"numpy.core", core.encode())
    np.testing.assert_array_equal(load_plain(renamed), np.arange(4))


def test_python_2_text_is_bytes():
    """What Python 2 with NumPy 1 wrote: ([b"\\xff\\xd8"], [numpy.bool_(True)])."""
    data = (
        b"\x80\x02]U\x02\xff\xd8a]cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02b1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x01\x01\x86Ra\x86."
    )
    assert load_plain(data) == ([b"\xff\xd8"], [True])


class Runs:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("payload", [
    Runs(os.system, "echo pwned > pwned.txt"),
    Runs(eval, "open('pwned.txt', 'w')"),
    Runs(np.load, "x.npy"),
    Runs(getattr, b"", "join"),
    np.array([Runs(os.system, "echo pwned > pwned.txt")], dtype=object),
    {1, 2},
])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_never_run(payload, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(payload, set) and protocol == 4:
        pytest.skip("protocol 4 has an instruction for sets; nothing is called")
    with pytest.raises(ValueError, match="which plain data does not need"):
        load_plain(pickle.dumps(([payload], [True]), protocol))
    assert not (tmp_path / "pwned.txt").exists()


@pytest.mark.parametrize("data", [
    b"cnumpy\nndarray\n(I1\ntR.",                                # an array built by hand
    b"cbuiltins\nbytes\nI1000000000000\n\x85R.",                 # a memory bomb
    b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    b"cnumpy\ndtype\n.",                                         # a function as data
    b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85R.",                 # a type as data
    b"cnumpy\ndtype\n}X\x05\x00\x00\x00_callNsb.",               # a changed function
    b"cnumpy.core.multiarray\n_reconstruct\nNNN\x87R.",          # an array without content
    b"I1\nQ.",                                                   # a persistent id
    b"", b"\x80", b"PK\x03\x04", b"\x80\x04.", b"no pickle at all",
])
def test_damaged_or_odd_files_are_refused(data):
    with pytest.raises(ValueError):
        load_plain(data)


def test_object_arrays_are_refused():
    data = pickle.dumps(np.array([b"a", b"bc"], dtype=object), 2)
    assert "_reconstruct" in "".join(str(arg) for _, arg, _ in pickletools.genops(data))
    with pytest.raises(ValueError, match="not plain numbers"):
        load_plain(data)


@pytest.mark.parametrize("kind", ["U", "S"])
def test_arrays_of_text(kind):
    names = np.array(["0000045/001.jpg", "0000045/002.jpg"], dtype=f"{kind}20")
    np.testing.assert_array_equal(load_plain(pickle.dumps(names, 4)), names)


def test_nested_references_do_not_grow():
    value: list = [b"x"]
    for _ in range(60):
        value = [value, value]  # 2**60 leaves when written out
    found = load_plain(pickle.dumps(value, 4))
    assert found[0] is found[1] and len(found) == 2
