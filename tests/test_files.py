"""Readers of files: tiny true files of every format, and every way to break them."""

import bz2
import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from jaxfl import data
from jaxfl.data import text
from jaxfl.data.parts import FileError

RNG = np.random.default_rng(0)
BYTES = dict(dtype=np.uint8)


def mapped(array):
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None


# Tiny true files -----------------------------------------------------------------------------


def idx_bytes(array, code=8):
    head = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.tobytes()


IMAGES = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
DIGITS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def make_idx(folder, suffix="", prefix=""):
    pack = gzip.compress if suffix else bytes
    for part, size in (("train", 6), ("t10k" if not prefix else "test", 3)):
        for kind, array in (("images-idx3", IMAGES[:size]), ("labels-idx1", DIGITS[:size])):
            raw = pack(idx_bytes(array))
            (folder / f"{prefix}{part}-{kind}-ubyte{suffix}").write_bytes(raw)
    return folder / f"{prefix}train-images-idx3-ubyte{suffix}"


PHOTOS = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)


def make_cifar_binary(folder, hundred=False):
    head = np.array([[3, 17], [0, 99], [19, 0], [1, 2]], np.uint8)
    record = np.hstack([head if hundred else head[:, :1] % 10, PHOTOS]).tobytes()
    names = ("train", "test") if hundred else ("data_batch_1", "data_batch_2", "test_batch")
    for name in names:
        (folder / f"{name}.bin").write_bytes(record)
    return folder


def python2_pickle(batch):
    """As Python 2 and the numpy of its time wrote them, code by code: strings are bytes."""
    out = b"\x80\x02}q\x01("
    for key, value in batch.items():
        out += b"U" + bytes([len(key)]) + key
        if isinstance(value, list):
            out += b"](" + b"".join(b"K" + bytes([v]) for v in value) + b"e"
        elif isinstance(value, bytes):
            out += b"U" + bytes([len(value)]) + value
        else:
            out += b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04"
            out += b"K\x00\x85U\x01b\x87Rq\x05(K\x01" + b"K" + bytes([len(value)])
            out += b"M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
            out += b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            out += b"T" + value.size.to_bytes(4, "little") + value.tobytes() + b"tb"
    return out + b"u."


def make_cifar_python(folder, hundred=False):
    if hundred:
        labels = {b"fine_labels": [17, 99, 0, 2], b"coarse_labels": [3, 0, 19, 1]}
        names = ("train", "test")
    else:
        labels, names = {b"labels": [3, 0, 9, 1]}, ("data_batch_1", "test_batch")
    path = folder / "cifar-python.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            raw = python2_pickle({b"data": PHOTOS, b"batch_label": b"one", **labels})
            info = tarfile.TarInfo(f"cifar/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def make_leaf(path, kind="femnist"):
    x, y = {
        "femnist": (lambda i: [i / 8] * 784, lambda i: i % 62),
        "shakespeare": (lambda i: "To be, or not to b~ "[: 20 - i] + "x" * i, lambda i: "e"),
        "sent140": (
            lambda i: [str(i), "date", "q", "user", "good day! so good" + " it's" * i, "t"],
            lambda i: str(i % 2),
        ),
    }[kind]
    users = {"anna": 3, "bob": 2}
    record = {
        "users": [*users],
        "num_samples": [*users.values()],
        "user_data": {
            u: {"x": [x(i) for i in range(n)], "y": [y(i) for i in range(n)]}
            for u, n in users.items()
        },
    }
    path.write_text(json.dumps(record))
    return path


def make_tff(path, kind="emnist"):
    import h5py

    with h5py.File(path, "w") as file:
        for i, (client, n) in enumerate({"f0001_41": 3, "f0002_12": 2}.items()):
            group = file.create_group(f"examples/{client}")
            if kind == "emnist":
                group["pixels"] = np.full((n, 28, 28), i / 2, np.float32)
                group["label"] = np.arange(n, dtype=np.int32)
            elif kind == "cifar100":
                group["image"] = np.full((n, 32, 32, 3), 51 * i, np.uint8)
                group["label"] = np.arange(n) + 97
                group["coarse_label"] = np.arange(n) + 17
            elif kind == "shakespeare":
                group["snippets"] = [b"To be, or not"] * (n - 1) + [b"yes~"]
            else:
                group["tokens"] = [b"how do i sort"] * (n - 1) + [b"i do"]
                group["title"] = [b"sort it"] * n
                group["tags"] = [b"python|list"] * (n - 1) + [b"c"]
    return path


SVM = b"+1 1:0.5 4:2\n-1 2:1 3:-1.5e-1 # seen\n\n-1 \n+1 5:1\n"
CSV = b'age,income,country,label\n1,2.5,fr,no\n3,4,de,yes\n5,-6e-1,"fr",no\n7,8,de,no\n1,1,it,yes\n'


def make(kind, folder):
    """A file of a kind, and what reads it."""
    path = folder / kind
    if kind in ("idx", "idx.gz"):
        return make_idx(folder, ".gz" if kind == "idx.gz" else ""), data.idx
    if kind == "cifar.bin":
        return make_cifar_binary(folder, True) / "train.bin", lambda p: data.cifar(p.parent)
    if kind == "cifar.tar.gz":
        return make_cifar_python(folder), data.cifar
    if kind == "batch":
        batch = {b"data": PHOTOS[:1], b"labels": [3]}
        (folder / "data_batch_1").write_bytes(python2_pickle(batch))
        return folder / "data_batch_1", lambda p: data.cifar(p, valid=0, test=0)
    if kind.startswith("leaf"):
        return make_leaf(folder / "all.json", kind[5:]), data.leaf
    if kind.startswith("tff"):
        return make_tff(folder / "some_train.h5", kind[4:]), data.tff
    if kind == "libsvm":
        path.write_bytes(SVM)
        return path, data.libsvm
    if kind == "csv":
        path.write_bytes(CSV)
        return path, lambda p: data.table(p, target="label", client="country")
    if kind in ("npz", "npz.deflated"):
        save = np.savez if kind == "npz" else np.savez_compressed
        path = folder / "a.npz"
        client = np.array(["a", "b", "b", "a", "c", "c"])
        save(path, x=np.arange(18.0).reshape(6, 3), y=DIGITS.astype(int), client=client)
        return path, data.npz
    pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    table = arrow_table()
    if kind == "parquet":
        from pyarrow import parquet

        path = folder / "train.parquet"
        parquet.write_table(table, path)
    else:
        path = folder / "train.arrow"
        write_stream(path, table)
    return path, lambda p: data.table(p, target="label", client="user", features=["a"])


def arrow_table():
    import pyarrow as pa

    columns = {"a": [0.5, 1.0, 2.0, 3.0], "label": [0, 1, 1, 0], "user": ["u", "v", "v", "u"]}
    return pa.table(columns)


def write_stream(path, table):
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


KINDS = (
    *("idx", "idx.gz", "cifar.bin", "cifar.tar.gz", "batch", "libsvm", "csv", "npz"),
    *("npz.deflated", "leaf femnist", "leaf shakespeare", "leaf sent140", "tff emnist"),
    *("tff cifar100", "tff shakespeare", "tff stackoverflow", "parquet", "arrow"),
)


# Right files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path, suffix):
    path = make_idx(tmp_path, suffix)
    d = data.read(tmp_path, valid=0, dtype=np.uint8)
    np.testing.assert_array_equal(d.train["x"][..., 0], IMAGES)
    np.testing.assert_array_equal(d.train["y"], DIGITS)
    np.testing.assert_array_equal(d.test["x"][..., 0], IMAGES[:3])
    assert d.classes == 3 and not len(d.valid["y"]) and d.train["y"].dtype == np.int32
    assert mapped(d.train["x"]) is (suffix == "")
    d = data.read(path)
    assert d.train["x"].dtype == np.float32 and len(d.train["y"]) == 6 - 2 + 2 - 0 - 0
    assert d.train["x"].max() <= 1 and len(d.valid["y"]) + len(d.train["y"]) == 6


def test_idx_of_emnist(tmp_path):
    make_idx(tmp_path, ".gz", "emnist-letters-")
    for path in tmp_path.glob("*labels*"):
        size = 6 if "train" in path.name else 3
        path.write_bytes(gzip.compress(idx_bytes(np.arange(1, size + 1, dtype=np.uint8))))
    d = data.idx(tmp_path, valid=0, **BYTES)
    np.testing.assert_array_equal(d.train["x"][..., 0], IMAGES.swapaxes(1, 2))
    assert d.train["y"].tolist() == [0, 1, 2, 3, 4, 5] and d.classes == 6


@pytest.mark.parametrize("code, dtype", [(11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
def test_idx_of_other_types(tmp_path, code, dtype):
    values = np.arange(-3, 3).reshape(3, 2)
    (tmp_path / "train-images-idx2").write_bytes(idx_bytes(values.astype(dtype), code))
    (tmp_path / "train-labels-idx1").write_bytes(idx_bytes(DIGITS[:3]))
    d = data.idx(tmp_path, valid=0, test=0)
    np.testing.assert_array_equal(d.train["x"], values)


def photos(array):
    return array.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def test_cifar_binary(tmp_path):
    d = data.read(make_cifar_binary(tmp_path), valid=0, **BYTES)
    np.testing.assert_array_equal(d.train["x"], np.concatenate([photos(PHOTOS)] * 2))
    assert d.classes == 10 and d.test["y"].tolist() == [3, 0, 9, 1]
    one = data.read(tmp_path / "data_batch_2.bin", valid=0, test=0, **BYTES)
    np.testing.assert_array_equal(one.train["x"], photos(PHOTOS))
    assert mapped(one.train["x"])


@pytest.mark.parametrize("labels, y", [("fine", [17, 99, 0, 2]), ("coarse", [3, 0, 19, 1])])
def test_cifar_hundred(tmp_path, labels, y):
    d = data.read(make_cifar_binary(tmp_path, True), valid=0, labels=labels, **BYTES)
    assert d.train["y"].tolist() == y and d.classes == {"fine": 100, "coarse": 20}[labels]
    assert mapped(d.train["x"])
    (tmp_path / "python").mkdir()
    e = data.read(make_cifar_python(tmp_path / "python", True), valid=0, labels=labels, **BYTES)
    np.testing.assert_array_equal(e.train["x"], d.train["x"])
    assert e.train["y"].tolist() == y and e.classes == d.classes


def test_cifar_python(tmp_path):
    theirs = pickle.loads(python2_pickle({b"data": PHOTOS, b"labels": [1]}), encoding="bytes")
    np.testing.assert_array_equal(theirs[b"data"], PHOTOS)  # numpy itself can read our true file
    d = data.read(make_cifar_python(tmp_path), valid=0)
    np.testing.assert_allclose(d.train["x"], photos(PHOTOS) / 255, rtol=1e-6)
    assert d.test["y"].tolist() == [3, 0, 9, 1] and d.classes == 10
    batch = tmp_path / "data_batch_1"
    for protocol in (2, 3, 4):
        batch.write_bytes(pickle.dumps({"data": PHOTOS, "labels": [1, 2, 3, 4]}, protocol))
        d = data.read(batch, valid=0, test=0, **BYTES)
        np.testing.assert_array_equal(d.train["x"], photos(PHOTOS))


class Shell:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_run_nothing(tmp_path):
    batch, mark = tmp_path / "data_batch_1", tmp_path / "mark"
    for evil in (Shell(mark), np.dtype, np.array([Shell(mark)], object), {1, 2}.__class__):
        batch.write_bytes(pickle.dumps({"data": evil, "labels": [1]}, 2))
        with pytest.raises(FileError, match="data_batch_1"):
            data.cifar(batch)
        assert not mark.exists()
    batch.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # would grow the memo to 2^31 entries
    with pytest.raises(FileError, match="memoised"):
        data.cifar(batch)


def test_leaf(tmp_path):
    d = data.read(make_leaf(tmp_path / "all.json"), valid=0, test=0, classes=62)
    assert d.train["x"].shape == (5, 28, 28, 1) and d.classes == 62
    assert list(d.names) == ["anna", "bob"] and d.partition.count.tolist() == [3, 2]
    assert d.train["y"].tolist() == [0, 1, 2, 0, 1]
    assert d.train["x"][:, 0, 0, 0].tolist() == [0, 1 / 8, 2 / 8, 0, 1 / 8]
    d = data.leaf(tmp_path / "all.json", clients=["bob"], valid=0, test=0)
    assert list(d.names) == ["bob"] and len(d.train["y"]) == 2 and d.train["y"].max() == 1
    assert d.classes == 3  # the head does not depend on who is chosen
    with pytest.raises(FileError, match="the clients asked for; found anna, bob"):
        data.leaf(tmp_path / "all.json", clients=["eve"])


def test_leaf_parts(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        make_leaf(tmp_path / "data" / part / "a.json")
    d = data.read(tmp_path, valid=0.4)
    assert [len(p["y"]) for p in (d.train, d.valid, d.test)] == [3, 2, 5]
    assert d.partitions["test"].count.tolist() == [3, 2]
    with pytest.raises(FileError, match="leave test= out"):
        data.leaf(tmp_path, test=0.1)


def test_leaf_texts(tmp_path):
    d = data.read(make_leaf(tmp_path / "s.json", "shakespeare"), valid=0, test=0)
    tokens = data.Tokens(text.LEAF_LETTERS)
    assert d.train["x"].shape == (5, 20) and d.classes == tokens.size == 84
    assert "".join(tokens.text(d.train["x"][0])) == "To be, or not to b\ufffd "
    assert set(d.train["y"]) == {text.LEAF_LETTERS.index("e") + 1}
    d = data.read(make_leaf(tmp_path / "t.json", "sent140"), valid=0, test=0, vocabulary=3)
    assert d.vocabulary == ("good", "it's", "!")[:1] + ("!", "day")
    assert d.train["x"].shape == (5, 25) and d.train["y"].tolist() == [0, 1, 0, 0, 1]
    assert d.train["x"][1, :7].tolist() == [1, 3, 2, 4, 1, 4, 0]


def test_tff_images(tmp_path):
    make_tff(tmp_path / "fed_emnist_train.h5")
    make_tff(tmp_path / "fed_emnist_test.h5")
    d = data.read(tmp_path, valid=0)
    assert d.classes == 62 and list(d.names) == ["f0001_41", "f0002_12"]
    assert d.train["x"][:, 0, 0, 0].tolist() == [0, 0, 0, 0.5, 0.5]
    assert d.partitions["test"].count.tolist() == [3, 2]
    assert data.tff(tmp_path, clients=1, valid=0).partition.n == 1
    for part in ("train", "test"):
        make_tff(tmp_path / f"cifar_{part}.h5", "cifar100")
    d = data.read(tmp_path / "cifar_train.h5", valid=0, labels="coarse", **BYTES)
    assert d.classes == 20 and d.train["y"].tolist() == [17, 18, 19, 17, 18]
    assert d.partition.n == 2 and d.partitions["test"].count.tolist() == [0, 0, 3, 2]
    assert d.names[2] == "test f0001_41"


def test_tff_texts(tmp_path):
    path = make_tff(tmp_path / "s_train.h5", "shakespeare")
    d = data.read(path, valid=0, test=0, length=7)
    tokens = data.Tokens(text.SHAKESPEARE)
    assert d.classes == tokens.size == 90 and (tokens.oov, tokens.bos, tokens.eos) == (87, 88, 89)
    assert d.train["x"].shape == d.train["y"].shape == (2 * 2 + 1 + 2 + 1, 7)
    assert "".join(tokens.text(d.train["y"][0])) == "To be, "
    assert d.train["x"][0, 0] == 88 and d.train["y"][1].tolist()[-2:] == [89, 0]
    assert d.partition.count.tolist() == [5, 3]
    path = make_tff(tmp_path / "o_train.h5", "stackoverflow")
    d = data.read(path, valid=0, test=0, vocabulary=3, length=4)
    assert d.vocabulary == ("do", "i", "how") and d.classes == 3 + 4
    assert d.train["x"][0].tolist() == [5, 3, 1, 2] and d.train["y"][0].tolist() == [3, 1, 2, 4]
    assert d.train["x"][2].tolist() == [5, 2, 1, 6] and d.train["y"][2].tolist() == [2, 1, 6, 0]
    d = data.read(path, valid=0, test=0, task="tags", vocabulary=["do", "sort"], tags=2)
    assert d.classes is None and d.train["y"].tolist()[:3] == [[1, 1], [1, 1], [0, 0]]
    np.testing.assert_allclose(d.train["x"][0], [1 / 6, 2 / 6], rtol=1e-6)
    (tmp_path / "count").write_text("i 9\ndo 3\n")
    assert data.tff(path, valid=0, vocabulary=tmp_path / "count").vocabulary == ("i", "do")


def test_libsvm(tmp_path):
    path, test = tmp_path / "a", tmp_path / "a.t"
    path.write_bytes(bz2.compress(SVM))
    test.write_bytes(b"-1 7:1\n")
    d = data.read(path, valid=0, test=test)
    assert d.train["y"].tolist() == [1, 0, 0, 1] and d.classes == 2 and d.test["y"].tolist() == [0]
    right = np.zeros((4, 7), np.float32)
    right[0, [0, 3]], right[1, [1, 2]], right[3, 4] = (0.5, 2), (1, -0.15), 1
    np.testing.assert_array_equal(d.train["x"], right)
    assert data.libsvm(path, features=9).train["x"].shape[1] == 9
    test.write_bytes(b"0.5 1:1\n2 1:2\n")
    d = data.libsvm(test, regression=True, valid=0, test=0)
    assert d.classes is None and d.train["y"].tolist() == [0.5, 2]


def test_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(CSV)
    d = data.read(path, target="label", client="country", valid=0, test=0)
    assert list(d.names) == ["de", "fr", "it"] and d.train["y"].tolist() == [0, 1, 0, 0, 1]
    np.testing.assert_allclose(d.train["x"][2], [5, -0.6], rtol=1e-6)
    d = data.read(path, target="income", features=["age"], regression=True)
    assert d.classes is None and d.train["x"].shape[1] == 1
    (tmp_path / "t.tsv").write_bytes(CSV.replace(b",", b"\t"))
    d = data.read(tmp_path / "t.tsv", target="label", client="country", by="clients", test=0.4)
    assert d.partition.n == 2 and d.partition.count.min() > 0 and len(d.names) == 3
    held = d.partitions["test"]
    assert held.count[:2].tolist() == [0, 0] and held.count[2] == len(d.test["y"]) > 0


def test_npz(tmp_path):
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", x=np.asfortranarray(x), y=DIGITS)
        d = data.read(tmp_path / "a.npz", valid=0, test=0)
        np.testing.assert_array_equal(d.train["x"], x)
        assert mapped(d.train["x"]) is (save is np.savez)
    np.savez(tmp_path / "k.npz", x_train=x, y_train=DIGITS, x_test=x[:2], y_test=DIGITS[:2])
    d = data.read(tmp_path / "k.npz", valid=0.5)
    assert [len(p["y"]) for p in (d.train, d.valid, d.test)] == [3, 3, 2]
    np.savez(tmp_path / "o.npz", x=np.array([{}]), y=DIGITS[:1])
    with pytest.raises(FileError, match="'x' of object"):
        data.npz(tmp_path / "o.npz")


def test_parquet_and_arrow(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    for kind in ("parquet", "arrow"):
        path, _ = make(kind, tmp_path)
        options = dict(target="label", client="user", features=["a"], valid=0, test=0)
        d = data.read(path, **options)
        assert d.train["x"][:, 0].tolist() == [0.5, 1, 2, 3] and list(d.names) == ["u", "v"]
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as sink:
        with pa.ipc.new_file(sink, arrow_table().schema) as writer:
            writer.write_table(arrow_table())
    assert len(data.read(tmp_path / "f.arrow", **options).train["y"]) == 4


def test_huggingface(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    from PIL import Image
    from pyarrow import parquet

    cells = []
    for image in IMAGES:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "png")
        cells.append({"bytes": out.getvalue(), "path": None})
    table = pa.table({"image": cells, "label": DIGITS, "writer": [1, 1, 2, 2, 3, 3]})
    parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
    parquet.write_table(table.slice(0, 2), tmp_path / "test-00000-of-00001.parquet")
    d = data.read(tmp_path, client="writer", valid=0, dtype=np.uint8)
    np.testing.assert_array_equal(d.train["x"][..., 0], IMAGES)
    assert len(d.test["y"]) == 2 and d.partitions["test"].count.tolist() == [2, 0, 0]
    texts = pa.table({"text": ["a b a", "c a"], "label": ["ham", "spam"]})
    (tmp_path / "saved" / "train").mkdir(parents=True)
    write_stream(tmp_path / "saved" / "train" / "data-00000-of-00001.arrow", texts)
    d = data.read(tmp_path / "saved", valid=0, test=0, length=4)
    assert d.vocabulary == ("a", "b", "c") and d.train["y"].tolist() == [0, 1]
    assert d.train["x"].tolist() == [[1, 2, 1, 0], [3, 1, 0, 0]]
    lists = pa.table({"x": [[1.0, 2.0], [3.0, 4.0]], "y": [0, 1]})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    d = data.read(tmp_path / "lists.parquet", valid=0, test=0)
    assert d.train["x"].tolist() == [[1, 2], [3, 4]]


def test_huggingface_by_name(tmp_path, monkeypatch):
    """The library's own saved files, and what it loads by name, here without a network."""
    hub = pytest.importorskip("datasets", reason="the extra jaxfl[data] is not installed")
    rows = hub.Dataset.from_dict({"image": IMAGES.tolist(), "label": DIGITS.tolist()})
    both = hub.DatasetDict({"train": rows, "validation": rows.select([1, 0])})
    both.save_to_disk(tmp_path / "saved")
    names = []
    monkeypatch.setattr(hub, "load_dataset", lambda *name: names.append(name) or both)
    monkeypatch.chdir(tmp_path)
    found = data.read(tmp_path / "saved", test=0)
    named = data.read("some/name", "huggingface", config="small", test=0)
    for d in (found, named):
        np.testing.assert_array_equal(d.train["x"], IMAGES)
        assert d.train["y"].tolist() == DIGITS.tolist() and d.classes == 3
        np.testing.assert_array_equal(d.valid["x"], IMAGES[[1, 0]])
    assert names == [("some/name", "small")]


def test_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxfl\[data\]'"):
        data.read(tmp_path / "a.parquet")


# Wrong files ---------------------------------------------------------------------------------


def spoil(name, raw, load, match):
    return pytest.param(name, raw, load, match, id=match[:40])


WRONG = [
    spoil("train-images-idx3", b"\0\1\2\3", data.idx, "expected an IDX header.*found 00 01 02 03"),
    spoil("train-images-idx3", idx_bytes(IMAGES), data.idx, "expected labels beside"),
    spoil("data_batch_1.bin", b"a" * 3073, data.cifar, "expected labels 0 to 9; found 97 to 97"),
    spoil("train.bin", b"a" * 3073, data.cifar, "expected records of 3074 bytes.*found 3073 bytes"),
    spoil("a", b"+1 1:nan", data.libsvm, r"finite numbers in line 1; found '\+1 1:nan'"),
    spoil("a", b"1 1:2\n1 a:2", data.libsvm, "in line 2; found '1 a:2'"),
    spoil("a", b"1 2:1 1:1", data.libsvm, r"ascending in line 1; found \[2, 1\]"),
    spoil("a", b"1 0:1", data.libsvm, r"expected indices 1, 2, .*; found \[0\]"),
    spoil("a", b"0.5 1:1", data.libsvm, "regression=True takes targets"),
    spoil("a", b"1 999999999:1", data.libsvm, "a dense matrix of 3.7 GiB; features=999999999"),
    spoil("a", b"1 3:1", lambda p: data.libsvm(p, features=2), "indices 1 to 2; found 3"),
    spoil("t", b"a,b\n1\n", lambda p: data.table(p, target="b"), "2 cells.*found 1 in line 2"),
    spoil("t", b"a,b\n1,2\n", lambda p: data.table(p, target="c"), "expected a column 'c'"),
    spoil("t", b"a,b\nx,2\n", lambda p: data.table(p, target="b"), "numbers in column 'a'.*'x'"),
    spoil("t", b"a,b\nnan,2\n", lambda p: data.table(p, target="b"), "'nan' in line 2, column 'a'"),
    spoil("t", b"a,b\n1,x\n2,\n", lambda p: data.table(p, target="b"), "label.*'' in line 3"),
    spoil("t", b"a,b\n1,\n2,3\n", lambda p: data.table(p, target="b"), "label.*'' in line 2"),
    spoil("t", b"a,b\n1,2\n", data.read, "expected the column of labels, target="),
    spoil("a.json", b'{"users": []}', data.leaf, "expected an object with users, num_samples"),
    spoil("b.npz", b"PK\3\4", data.read, "expected whole, readable .npz; found BadZipFile"),
    spoil("x", bytes(99), data.read, "expected an IDX header"),
    spoil("x", b"\x01\0", data.read, "expected one of the formats idx, cifar, .*; found none"),
    spoil("x.h5", b"\x89HDF\r\n\x1a\n", data.read, "expected whole, readable HDF5; found OSError"),
]


@pytest.mark.parametrize("name, raw, load, match", WRONG)
def test_wrong(name, raw, load, match, tmp_path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(FileError, match=match) as error:
        load(tmp_path / name)
    assert str(tmp_path) in str(error.value)


def test_lengths_and_clients_that_disagree(tmp_path):
    import h5py

    make_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(DIGITS[:5]))
    with pytest.raises(FileError, match="expected 6 labels, as many as .*; found 5"):
        data.idx(tmp_path)
    path = make_leaf(tmp_path / "a.json")
    good = json.loads(path.read_text())
    for change, match in (
        (lambda r: r["num_samples"].pop(), "expected 2 numbers in num_samples"),
        (lambda r: r["user_data"]["bob"]["y"].pop(), "'bob'; found 2 x, 1 y, num_samples 2"),
        (lambda r: r["user_data"].pop("bob"), "the users of `users`"),
        (lambda r: r["user_data"]["bob"].update(x=[], y=[]), "user 'bob', not empty"),
        (lambda r: r["user_data"]["bob"].update(y=[0, 62]), "0 to 61; got 0 to 62"),
        (lambda r: r["user_data"]["bob"].update(y=[0, 0.5]), "must be integers 0 to 61; got 0.5"),
        (lambda r: r["user_data"]["bob"]["x"].__setitem__(0, [1]), "expected whole, readable LEAF"),
    ):
        record = json.loads(json.dumps(good))
        change(record)
        path.write_text(json.dumps(record))
        with pytest.raises(FileError, match=match):
            data.leaf(path, classes=62)
    for field, value, match in (
        ("label", np.arange(2, dtype=np.int32), "3 pixels, 2 label"),
        ("label", np.zeros(0, np.int32), "expected 'label' of client 'f0001_41', stored"),
        ("label", np.array([0, 62, 1]), "0 to 61; got 0 to 62"),
        ("pixels", np.zeros((3, 28, 27), np.float32), "'pixels' of one shape"),
        ("pixels", np.full((3, 28, 28), np.nan, np.float32), "must be finite"),
    ):
        path = make_tff(tmp_path / "a_train.h5")
        with h5py.File(path, "a") as file:
            del file[f"examples/f0001_41/{field}"]
            file[f"examples/f0001_41/{field}"] = value
        with pytest.raises(FileError, match=match):
            data.tff(path)
    for ids, match in (
        ([1.0] * 5 + [np.nan], "none for example 5"),
        (list("abcd") + [""] * 2, "4"),
    ):
        np.savez(tmp_path / "a.npz", x=IMAGES, y=DIGITS, client=ids)
        with pytest.raises(FileError, match=f"id for every example; found.*{match}"):
            data.npz(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=IMAGES, y=DIGITS[:5])
    with pytest.raises(FileError, match="as many x as y and clients in train; found 6, 5"):
        data.npz(tmp_path / "a.npz")


# Parts follow train --------------------------------------------------------------------------

ROWS = [
    ("0.5", "1", "no", "7"),
    ("-2", "3", "yes", "8"),
    ("4", "5", "no", "7"),
    ("1", "0", "yes", "9"),
]


def columns(names, rows=ROWS):
    """A CSV with columns a, b, y and who of the rows, in the order of the names."""
    place = {"a": 0, "b": 1, "y": 2, "who": 3}
    lines = [",".join(names), *(",".join(row[place[n[:3]]] for n in names) for row in rows)]
    return "\n".join(lines)


def in_rows(**new):
    """The rows with one cell of the last one changed."""
    place = {"a": 0, "b": 1, "y": 2, "who": 3}
    last = list(ROWS[-1])
    for name, cell in new.items():
        last[place[name]] = cell
    return [*ROWS[:3], tuple(last)]


def tables(folder, kind, train, test):
    """Two tables, in CSV or in Parquet, whose columns are as typed as their cells."""
    paths = []
    for part, raw in (("train", train), ("test", test)):
        paths.append(folder / f"{part}.{kind}")
        paths[-1].write_text(raw)
        if kind == "parquet":
            pa = pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
            from pyarrow import csv, parquet

            no = csv.ConvertOptions(strings_can_be_null=False, null_values=[])
            parquet.write_table(
                csv.read_csv(pa.py_buffer(raw.encode()), convert_options=no), paths[-1]
            )
    return lambda **more: data.table(
        paths[0], target="y", client="who", valid=0, test=paths[1], **more
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_columns_are_those_of_train_by_name(kind, tmp_path):
    straight = tables(tmp_path, kind, columns("a b y who".split()), columns("a b y who".split()))()
    for names in ("b a y who", "who y b a", "y a who b"):
        d = tables(tmp_path, kind, columns("a b y who".split()), columns(names.split()))()
        np.testing.assert_array_equal(d.test["x"], straight.test["x"])
        assert d.test["y"].tolist() == [0, 1, 0, 1] and d.partitions["test"].count.tolist() == [
            2,
            1,
            1,
        ]
    text = columns("a b y who".split()).replace("b,y", "z,y", 1)
    with pytest.raises(FileError, match=rf"test.{kind}: expected a column 'b'.*none of that name"):
        tables(tmp_path, kind, columns("a b y who".split()), text)()


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(
    "column, cells",
    [
        ("a", ["1_000", "\u0663", "0x10", "inf", "1e999", "x", "", "NA", "?", "nan"]),
        ("who", ["", "NA", "?", "nan", "None", "null"]),
        ("y", ["", "NA", "?", "nan", "None", "null"]),
    ],
)
def test_bad_cells_are_named(part, column, cells, tmp_path):
    for cell in cells:
        text = {"train": ROWS, "test": ROWS} | {part: in_rows(**{column: cell})}
        load = tables(tmp_path, "csv", *(columns("a b y who".split(), r) for r in text.values()))
        with pytest.raises(FileError) as error:
            load()
        assert f"{part}.csv" in str(error.value)
        assert f"{cell!r} in line 5, column {column!r}" in str(error.value)


def test_what_is_missing_is_an_option(tmp_path):
    rows = in_rows(who="NA")
    load = tables(tmp_path, "csv", *[columns("a b y who".split(), rows)] * 2)
    assert list(load(missing=("",)).names) == ["7", "8", "NA"]
    with pytest.raises(FileError, match="'8' in line 3, column 'who', which means: missing"):
        load(missing=("8",))
    with pytest.raises(ValueError, match=r"missing=\('NA',\)"):
        load(missing="NA")


@pytest.mark.parametrize(
    "ids, names",
    [
        (["1_0", "10"], ["10", "1_0"]),
        (["007", "7"], ["007", "7"]),
        (["20251130123456789012", "20251130123456789013"],) * 2,
        (["+7", "7"], ["+7", "7"]),
        (["10", "9"], [9, 10]),
        (["-1", "0"], [-1, 0]),
    ],
)
def test_ids_are_names(ids, names, tmp_path):
    rows = [(*row[:3], ids[i % 2]) for i, row in enumerate(ROWS)]
    d = tables(tmp_path, "csv", *[columns("a b y who".split(), rows)] * 2)()
    assert d.names.tolist() == names and d.partition.count.tolist() == [2, 2]
    labels = [(*row[:2], ids[i % 2], "u") for i, row in enumerate(ROWS)]
    if isinstance(names[0], str) and "+7" not in ids and len(ids[0]) < 19:
        d = tables(tmp_path, "csv", *[columns("a b y who".split(), labels)] * 2)()
        assert d.classes == 2 and d.train["y"].tolist() == [names.index(v[2]) for v in labels]


def test_ids_agree_before_they_meet(tmp_path):
    test = columns("a b y who".split(), in_rows(who="b"))
    d = tables(tmp_path, "csv", columns("a b y who".split()), test)()
    assert list(d.names) == ["7", "8", "9", "b"] and d.partitions["test"].count.tolist() == [
        2,
        1,
        0,
        1,
    ]
    with pytest.raises(FileError, match="written alike in all parts; found '7' and '7.0'"):
        tables(tmp_path, "csv", columns("a b y who".split(), in_rows(who="7.0")), test)()
    x = np.ones((4, 2))
    for here in (["1", "2"], [1.0, 2.0], [True, False]):
        np.savez(
            tmp_path / "a.npz",
            **dict(x_train=x, y_train=[0, 1, 0, 1], client_train=[1, 1, 2, 2]),
            **dict(x_test=x[:2], y_test=[0, 1], client_test=here),
        )
        with pytest.raises(FileError, match="ids that are integers in test, as in train"):
            data.npz(tmp_path / "a.npz")
    if pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed"):
        with pytest.raises(
            FileError, match="ids that are integers in test, as in train; found texts"
        ):
            tables(tmp_path, "parquet", columns("a b y who".split()), test)()


def pair(kind, folder, train, test):
    """Two parts with these labels, in a format."""
    x = lambda labels: np.ones((len(labels), 2))
    if kind == "table":
        for part, labels in (("train", train), ("test", test)):
            (folder / part).write_text("x,y\n" + "\n".join(f"1,{v}" for v in labels))
        return lambda **o: data.table(
            folder / "train", target="y", valid=0, test=folder / "test", **o
        )
    if kind == "npz":
        parts = dict(x_train=x(train), y_train=train, x_test=x(test), y_test=test)
        np.savez(folder / "a.npz", **parts)
        return lambda **o: data.npz(folder / "a.npz", valid=0, **o)
    if kind == "libsvm":
        for part, labels in (("train", train), ("test", test)):
            (folder / part).write_text("\n".join(f"{v} 1:1" for v in labels))
        return lambda **o: data.libsvm(folder / "train", valid=0, test=folder / "test", **o)
    if kind == "leaf":
        for part, labels in (("train", train), ("test", test)):
            (folder / part).mkdir(exist_ok=True)
            user = {"x": x(labels).tolist(), "y": labels}
            record = {"users": ["u"], "num_samples": [len(labels)], "user_data": {"u": user}}
            (folder / part / "a.json").write_text(json.dumps(record))
        return lambda **o: data.leaf(folder, valid=0, **o)
    pa = pytest.importorskip("pyarrow", reason="the extra jaxfl[data] is not installed")
    from pyarrow import parquet

    for part, labels in (("train", train), ("test", test)):
        table = pa.table({"x": x(labels).tolist(), "y": labels})
        parquet.write_table(table, folder / f"{part}.parquet")
    return lambda **o: data.huggingface(folder, valid=0, **o)


READERS = ("table", "npz", "libsvm", "leaf", "huggingface")


@pytest.mark.parametrize("kind", READERS)
def test_labels_are_those_of_train(kind, tmp_path):
    """Whole numbers are labels, however they are written; a test has those of train."""
    for train, test in (([1, 0, 1], [1.0, 0.0]), ([1.0, 0.0], [1, 0]), ([1.0, 0.0], [0.0, 1.0])):
        d = pair(kind, tmp_path, train, test)()
        assert d.classes == 2 and d.train["y"].dtype == d.test["y"].dtype == np.int32
        assert d.train["y"].tolist() == train and d.test["y"].tolist() == test
        d = pair(kind, tmp_path, train, test)(regression=True)
        assert d.classes is None and d.train["y"].dtype == d.test["y"].dtype == np.float32
    for test, where in (([1, 2], "2"), ([0, 0.5], "0.5"), ([-1, 0], "-1")):
        with pytest.raises(FileError, match="test") as error:
            pair(kind, tmp_path, [0, 1], test)()
        assert where in str(error.value)
    if kind not in ("libsvm", "leaf"):
        words = pair(kind, tmp_path, ["b", "a"], ["b", "b"])
        assert words().test["y"].tolist() == [1, 1] and words().classes == 2
        with pytest.raises(FileError, match="labels as in train, one of a, b; found 'c' in"):
            pair(kind, tmp_path, ["b", "a"], ["b", "c"])()
    if kind != "libsvm":
        d = pair(kind, tmp_path, [0.5, 1.0], [1, 2])()
        assert d.classes is None and d.test["y"].dtype == np.float32


@pytest.mark.parametrize("kind", ["table", "npz", "leaf", "huggingface"])
def test_a_head_is_not_the_largest_label(kind, tmp_path):
    load = pair(kind, tmp_path, [0, 1, 10**9, 3], [0])
    with pytest.raises(FileError, match="4 different ones up to 1000000000.*np.unique"):
        load()
    assert load(classes=10**9 + 1).classes == 10**9 + 1
    assert load(regression=True).classes is None


def test_x_is_of_the_type_of_train(tmp_path):
    for train, test in (("f4", "i8"), ("f4", "u1"), ("i8", "f4"), ("u1", "i8"), ("f4", "?")):
        x = np.ones((2, 3))
        parts = {"x_train": x.astype(train), "x_test": x.astype(test), "y_train": [0, 1]}
        np.savez(tmp_path / "a.npz", **parts, y_test=[0, 1])
        with pytest.raises(FileError, match="in test as in train; found .*; save both alike"):
            data.npz(tmp_path / "a.npz")
        make_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES[:3].astype(">f4"), 13))
    with pytest.raises(FileError, match="expected images of uint8"):
        data.idx(tmp_path)
    with pytest.raises(FileError, match="whole numbers that int8 has; got 0.5"):
        np.savez(tmp_path / "a.npz", x=np.full((2, 3), 0.5), y=[0, 1])
        data.npz(tmp_path / "a.npz", dtype=np.int8)


def test_arrays_of_a_part_come_together(tmp_path):
    right = dict(x_train=np.ones((2, 3)), y_train=[0, 1])
    empty = dict(x_test=np.ones((0, 3)), y_test=np.zeros(0, int), client_test=np.zeros(0, int))
    np.savez(tmp_path / "a.npz", **right, client_train=[1, 2], **empty)
    assert data.npz(tmp_path / "a.npz", valid=0).partitions["test"].count.tolist() == [0, 0]
    for more, match in (
        ({"y_test": [0, 1]}, "arrays x and y"),
        ({"x_tset": np.ones((2, 3))}, "found 'x_tset'"),
        ({"x": np.ones((2, 3))}, "found 'x'"),
        ({"x_test": np.ones((2, 3)), "y_test": [0, 1], "client_test": [1, 2]}, "clients in train"),
        ({"x_test": np.ones((2, 3)), "y_test": np.ones((2, 1), int)}, "y of shape"),
    ):
        np.savez(tmp_path / "a.npz", **right, **more)
        with pytest.raises(FileError, match=match):
            data.npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "raw, match",
    [
        (b"x;y\n1;0\n", "delimiter=';'"),
        (b"x y\n1 0\n", "delimiter=' '"),
        ("x,y\n1,\u00e9\n".encode("latin-1"), "encoding='latin-1'"),
        ("x,y\n1,0\n".encode("utf-16-le"), "encoding='utf-16'"),
        (b"x,y,x\n1,0,2\n", "different column names"),
        (b"x,y\n1,' 0'\n2,0 \n", "without blanks around it; found '0 ' in line 3"),
    ],
)
def test_how_a_csv_is_written_is_named(raw, match, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(FileError, match=match):
        data.table(tmp_path / "a.csv", target="y")


def test_how_a_csv_may_be_written(tmp_path):
    text = "x, y, who\n1, 0, \u00e9\n2, 1, b\n"
    for codec, more in (
        ("utf-8-sig", {}),
        ("utf-16", {}),
        ("latin-1", {"encoding": "latin-1"}),
        ("utf-16-le", {"encoding": "utf-16-le"}),
    ):
        (tmp_path / "a.csv").write_bytes(text.encode(codec))
        d = data.read(
            tmp_path / "a.csv", "table", target="y", client="who", valid=0, test=0, **more
        )
        assert list(d.names) == ["b", "\u00e9"] and d.classes == 2
    (tmp_path / "a.csv").write_text(text.replace(", ", ";"))
    d = data.table(tmp_path / "a.csv", target="y", client="who", valid=0, test=0, delimiter=";")
    assert d.train["x"].tolist() == [[1], [2]]
    for more, match in (({"delimiter": "::"}, "one character"), ({"encoding": "utf-9"}, "utf-9")):
        with pytest.raises(ValueError, match=match):
            data.table(tmp_path / "a.csv", target="y", **more)


def test_a_csv_is_read_in_blocks(tmp_path, monkeypatch):
    import tracemalloc

    n = 40_000
    cells = RNG.normal(size=(n, 3)).round(6)
    lines = (f"{a},{b},{c},{i % 3},u{i % 50}" for i, (a, b, c) in enumerate(cells.tolist()))
    (tmp_path / "a.csv").write_text("a,b,c,y,who\n" + "\n".join(lines))
    load = lambda: data.table(tmp_path / "a.csv", target="y", client="who", valid=0, test=0)
    tracemalloc.start()
    d = load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(d.train["x"], cells.astype(np.float32))
    assert peak < 12e6, f"{peak / 1e6:.0f} MB for a file of {n} lines"  # all cells as texts: 13 MB
    monkeypatch.setattr("jaxfl.data.tables.LARGEST", 10**5)
    with pytest.raises(FileError, match="at most .* GiB; found more; as Parquet"):
        load()


@pytest.mark.parametrize(
    "line", ["1 1_2:3", "1_0 1:3", "1 1:1_0", "1 0x1:3", "1 1:nan", "1 1:1e999"]
)
def test_digits_of_libsvm(line, tmp_path):
    (tmp_path / "a").write_text(f"1 1:1\n{line}\n")
    with pytest.raises(FileError, match="in line 2"):
        data.libsvm(tmp_path / "a")


def test_labels_of_json_are_numbers(tmp_path):
    for wrong in ("1_0", "01", "\u0663", True, None, [1], "nan"):
        with pytest.raises(FileError, match="numbers as labels"):
            pair("leaf", tmp_path, [0, wrong], [0])()
    with pytest.raises(FileError, match="an entry twice"):
        record = '{"users": ["u"], "num_samples": [1], "user_data": {"u": %s, "u": %s}}'
        user = '{"x": [[1.0]], "y": [0]}'
        (tmp_path / "a.json").write_text(record % (user, user))
        data.leaf(tmp_path / "a.json")


def leads_out(file, name, how, secret):
    """A member that is not in the file itself."""
    import h5py

    if how == "external":
        file[name] = h5py.ExternalLink(secret.with_suffix(".h5").name, "pixels")
    elif how == "soft":
        file[name] = h5py.SoftLink("/examples/f0001_41/pixels")
    elif how == "storage":
        raw = [(str(secret), 0, 3 * 28 * 28 * 4)]
        file.create_dataset(name, (3, 28, 28), "f4", external=raw)
    else:
        view = h5py.VirtualLayout((3, 28, 28), "f4")
        view[:] = h5py.VirtualSource(secret.with_suffix(".h5").name, "pixels", (3, 28, 28))
        file.create_virtual_dataset(name, view)


@pytest.mark.parametrize("how", ["external", "soft", "storage", "virtual"])
def test_hdf5_stays_in_its_file(how, tmp_path):
    import h5py

    from jaxfl.runs import folder

    secret = tmp_path / "secret.raw"
    secret.write_bytes(np.full((3, 28, 28), 42.0, "f4").tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["pixels"] = np.full((3, 28, 28), 42.0, "f4")
    path = make_tff(tmp_path / "a_train.h5")
    with h5py.File(path, "a") as file:
        del file["examples/f0001_41/pixels"]
        leads_out(file, "examples/f0001_41/pixels", how, secret)
    with pytest.raises(FileError, match="f0001_41/pixels' (is an? |are stored)"):
        data.tff(path)
    if how in ("external", "soft"):
        with h5py.File(path, "a") as file:
            file.move("examples", "elsewhere")
            link = h5py.SoftLink("/elsewhere") if how == "soft" else h5py.ExternalLink("b.h5", "/a")
            file["examples"] = link
        with pytest.raises(FileError, match="'/examples' is an? "):
            data.tff(path)
    with h5py.File(tmp_path / "r.nc", "w") as file:
        leads_out(file, "loss", how, secret)
    with pytest.raises(ValueError, match="'/loss' (is an? |are stored)"):
        folder.read_netcdf(tmp_path / "r.nc")


def test_read_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match='for a name on the hub, format="huggingface"'):
        data.read(tmp_path / "nothing")
    with pytest.raises(FileError, match="one of the formats"):
        data.read(tmp_path)
    with pytest.raises(ValueError, match="no format 'libsvn'; did you mean 'libsvm'"):
        data.read(tmp_path, format="libsvn")
    for options, match in (({"labels": "best"}, "fine"), ({"task": "x"}, "task must be")):
        with pytest.raises(ValueError, match=match):
            data.tff(tmp_path, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_recognised(kind, tmp_path):
    """`read` finds the same as the function of the format, and the same twice."""
    path, load = make(kind, tmp_path)
    table = {"csv": ("label", "country"), "parquet": ("label", "user"), "arrow": ("label", "user")}
    options = dict(zip(("target", "client"), table.get(kind, ())))
    options |= {"features": ["a"]} if kind in ("parquet", "arrow") else {}
    place = path.parent if kind == "cifar.bin" else path
    options |= {"valid": 0, "test": 0} if kind == "batch" else {}
    a, b, c = load(path), data.read(place, **options), data.read(place, **options)
    for d in (b, c):
        for part in ("train", "valid", "test"):
            for name in "xy":
                np.testing.assert_array_equal(getattr(a, part)[name], getattr(d, part)[name])


# Splits, tokens, descriptions ----------------------------------------------------------------


def test_clients_held_out():
    owner = np.repeat(np.arange(10), 7)
    x = np.arange(70.0)[:, None]
    d = data.from_arrays(x, owner % 3, owner, by="clients", valid=0.2, test=0.3)
    seen = {}
    for part, n in (("train", 5), ("valid", 2), ("test", 3)):
        p = d.partitions[part]
        rows = getattr(d, part)["x"][:, 0].astype(int)
        for i in np.flatnonzero(p.count):
            assert set(rows[p.of(i)]) == set(np.flatnonzero(owner == d.names[i]))
        seen[part] = set(d.names[np.flatnonzero(p.count)])
        assert len(seen[part]) == n and p.count.sum() == 7 * n
    assert not seen["train"] & (seen["valid"] | seen["test"]) and d.partition.n == 5
    assert len(d.names) == 10 and d.partition.count.min() == 7
    with pytest.raises(ValueError, match='by="clients" needs clients'):
        data.from_arrays(x, owner, by="clients")
    with pytest.raises(ValueError, match='"examples" or "clients"; got \'users\''):
        data.from_arrays(x, owner, by="users")


def test_tokens():
    assert len(text.SHAKESPEARE) == len(set(text.SHAKESPEARE)) == 86
    assert len(text.LEAF_LETTERS) == len(set(text.LEAF_LETTERS)) == 80
    sentences = [s.split() for s in ("b a a", "a c b", "d")]
    known = data.vocabulary(sentences, 3)
    assert known == ("a", "b", "c")
    tokens = data.Tokens(known, buckets=2)
    assert (tokens.oov, tokens.bos, tokens.eos, tokens.size) == (4, 6, 7, 8)
    x, y = data.words([["a", "c"], ["b"] * 5, [], ["zzz", "d", "e"]], tokens, 3)
    assert x[0].tolist() == [6, 1, 3] and y[0].tolist() == [1, 3, 7]
    assert x[1].tolist() == [6, 2, 2] and y[1].tolist() == [2, 2, 2]
    assert x[2].tolist() == [6, 7, 0] and y[2].tolist() == [7, 0, 0]
    assert set(y[3]) <= {4, 5} and x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    x, y, origin = data.characters(["ab", "abcd", ""], 3, data.Tokens("abcd"))
    assert x.tolist() == [[6, 1, 2], [6, 1, 2], [4, 7, 0], [6, 7, 0]]
    assert y.tolist() == [[1, 2, 7], [1, 2, 3], [7, 0, 0], [7, 0, 0]]
    assert origin.tolist() == [0, 1, 1, 2]
    assert data.characters([], 3)[0].shape == (0, 3)
    for call, match in (
        (lambda: data.Tokens(["a", "a"]), "different words; got 2, of which 1 differ"),
        (lambda: data.Tokens([]), "different words"),
        (lambda: data.Tokens("a", 0), "buckets"),
        (lambda: data.characters(["a"], 0), "length"),
        (lambda: data.vocabulary([], 0), "size"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_describe(tmp_path):
    d = data.from_arrays(np.ones((8, 2)), [0, 0, 1, 1, 0, 0, 0, 3], list("aaabbbbb"), test=0)
    about = data.describe(d)
    assert about.parts == {"train": 7, "valid": 1, "test": 0} and about.clients == 2
    y, p = d.train["y"], d.partition
    right = [np.bincount(y[p.of(i)], minlength=4).tolist() for i in range(2)]
    assert about.histogram.tolist() == right and about.sizes.tolist() == p.count.tolist()
    shown = str(about)
    assert "examples     7 train, 1 valid, 0 test\n" in shown and "classes      4\n" in shown
    assert "per client   3 to 4, median 3.5" in shown and len(shown.splitlines()) == 7
    ax = about.plot()
    assert len(ax.collections[0].get_offsets()) == np.count_nonzero(right)
    bare = data.describe(data.load("iris"))
    assert bare.clients == 0 and "clients" not in str(bare)
    with pytest.raises(ValueError, match="no clients with labels to draw"):
        bare.plot()
    iris = data.load("iris")
    assert data.describe(iris, data.iid(iris.train["y"], 3)).histogram.shape == (3, 3)
    numbers = data.from_arrays(np.ones((4, 1)), np.ones(4), [1, 1, 2, 2], valid=0, test=0)
    assert data.describe(numbers).histogram is None and "median 2" in str(data.describe(numbers))


def test_describe_clients():
    from jaxfl import Clients

    d = data.from_arrays(np.ones((8, 2)), [0, 0, 1, 1, 0, 0, 0, 3], list("aaabbbbb"), valid=0)
    clients = Clients.make(d.train, d.partition, lambda p, e, k: e["x"][:, 0], host=True)
    a, b = data.describe(clients), data.describe(d)
    np.testing.assert_array_equal(a.histogram, b.histogram[:, : a.classes])
    assert a.sizes.tolist() == b.sizes.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(kind, tmp_path):
    """Whatever is cut, wherever: an error that names the file (texts may end after any line)."""
    path, load = make(kind, tmp_path)
    assert len(load(path).train["y"])
    raw = path.read_bytes()
    for end in (0, 1, 3, len(raw) // 3, len(raw) // 2 + 1, len(raw) - 1):
        path.write_bytes(raw[:end])
        if kind in ("libsvm", "csv") and end > 1:
            continue
        with pytest.raises(FileError) as error:
            load(path)
        assert str(tmp_path) in str(error.value) and "; found " in str(error.value)
