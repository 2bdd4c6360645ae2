import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dtrain.vision.data import open_dataset
from dtrain.vision.data.archive import Archive
from dtrain.vision.data.cifar10 import FILES, OFFICIAL, RECORD_BYTES

NAMES = (*FILES["train"], *FILES["test"])
PER_FILE = 3


def content_of(number: int, label: int = 9) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (PER_FILE, RECORD_BYTES), dtype=np.uint8)
    pixels[:, 0] = [number, 0, label]
    return pixels.tobytes()


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    return {f"{OFFICIAL.folder}/{name}": content_of(i) for i, name in enumerate(NAMES)}


def archive_of(packed: bytes, url: str = "http://127.0.0.1:9/cifar-10-binary.tar.gz") -> Archive:
    """The description of a small archive, as OFFICIAL describes the real one."""
    return replace(
        OFFICIAL,
        url=url,
        num_bytes=len(packed),
        sha256=hashlib.sha256(packed).hexdigest(),
        member_bytes=dict.fromkeys(NAMES, PER_FILE * RECORD_BYTES),
    )


def opened(root: Path, archive: Archive, split="train", **options):
    return open_dataset("cifar10", split=split, image_size=32, root=root, archive=archive, **options)


@pytest.fixture
def packed() -> bytes:
    return tar_bytes({**files(), f"{OFFICIAL.folder}/readme.html": b"ignored", "../evil": b"x", "/tmp/evil": b"x"})


@pytest.fixture
def served(packed: bytes, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of `packed` on a loopback server, and the list of requests that it has answered."""
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            requests.append(self.path)

    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "cifar-10-binary.tar.gz").write_bytes(packed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www")))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_archive_in_root_is_unpacked_and_read_channel_by_channel(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed)
    train, test = opened(tmp_path, archive_of(packed)), opened(tmp_path, archive_of(packed), "test")
    assert (len(train), len(test), train.num_classes) == (15, 3, 10)
    images, labels = test.read([0, 2])
    record = np.frombuffer(content_of(5), np.uint8).reshape(PER_FILE, -1)
    assert labels.tolist() == [5, 9]
    assert (images[0, 0] == record[0, 1:1025].reshape(32, 32)).all()  # red comes first
    assert (images[1, 2] == record[2, 2049:].reshape(32, 32)).all()


def test_nothing_but_the_expected_files_is_unpacked(tmp_path: Path, packed: bytes) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-binary.tar.gz").write_bytes(packed)
    opened(root, archive_of(packed))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        *NAMES,
        "cifar-10-binary.tar.gz",
        ".cifar-10-batches-bin.lock",
    }


@pytest.mark.parametrize("inner", ["cifar-10-batches-bin", ""])
def test_an_unpacked_folder_is_used_as_it_is(tmp_path: Path, inner: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(content_of(i))
    assert len(opened(tmp_path if inner else folder, archive_of(b""))) == 15
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(NAMES)


def test_root_may_be_the_archive_itself(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(packed)
    assert len(opened(path, archive_of(packed))) == 15


def test_download_fetches_once_for_all_ranks_and_leaves_no_partial_file(tmp_path: Path, packed: bytes, served) -> None:
    url, requests = served
    root = tmp_path / "new" / "root"
    with ThreadPoolExecutor(4) as ranks:
        lengths = list(ranks.map(lambda _: len(opened(root, archive_of(packed, url), download=True)), range(4)))
    assert lengths == [15] * 4
    assert len(requests) == 1
    assert not list(root.glob("*.part"))


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"num_bytes": 10}, {"num_bytes": 10**9}])
def test_a_download_that_is_not_the_expected_archive_is_refused_and_deleted(
    tmp_path: Path, packed: bytes, served, wrong: dict[str, object]
) -> None:
    root = tmp_path / "root"
    archive = replace(archive_of(packed, served[0]), **wrong)
    with pytest.raises(ValueError, match=r"is not the archive .* instead of"):
        opened(root, archive, download=True)
    assert [path.name for path in root.iterdir()] == [".cifar-10-batches-bin.lock"]


def test_a_download_stops_once_it_is_longer_than_expected(
    tmp_path: Path, packed: bytes, served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dtrain.vision.data.archive._CHUNK_BYTES", 1000)
    assert len(packed) > 10_000
    with pytest.raises(ValueError, match="3000 bytes long instead of 2500"):
        opened(tmp_path / "root", replace(archive_of(packed, served[0]), num_bytes=2500), download=True)


def test_a_failed_download_says_what_to_do(tmp_path: Path, packed: bytes, served) -> None:
    with pytest.raises(ConnectionError, match=r"cannot fetch .*404.*put it at"):
        opened(tmp_path, archive_of(packed, served[0].replace("cifar", "nothing")), download=True)


def test_without_download_nothing_is_fetched_and_the_cure_is_named(tmp_path: Path, packed: bytes) -> None:
    with pytest.raises(FileNotFoundError, match=r"set download=true, or fetch http"):
        opened(tmp_path, archive_of(packed))
    assert not list(tmp_path.iterdir())


def test_a_corrupt_archive_in_root_is_refused_before_it_is_unpacked(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed[:-1] + b"?")
    with pytest.raises(ValueError, match="SHA-256"):
        opened(tmp_path, archive_of(packed))
    assert not (tmp_path / "cifar-10-batches-bin").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cifar-10-batches-bin/data_batch_2.bin": b"short"}, r"data_batch_2\.bin has 5 bytes instead of 9219"),
        ({"cifar-10-batches-bin/test_batch.bin": None}, r"lacks cifar-10-batches-bin/test_batch\.bin"),
    ],
)
def test_an_archive_with_wrong_members_leaves_no_unpacked_folder(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    packed = tar_bytes({name: content for name, content in {**files(), **change}.items() if content is not None})
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, archive_of(packed))
    assert not (tmp_path / "cifar-10-batches-bin").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "5 bytes instead of 9219; delete"), (content_of(2, label=10), "label 10, above 9")],
)
def test_an_unpacked_file_of_wrong_size_or_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes(content_of(i))
    (folder / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_3\.bin .*{message}"):
        opened(tmp_path, archive_of(b""))


def test_images_are_resized_on_request(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed)
    dataset = open_dataset("cifar10", split="test", image_size=48, root=tmp_path, archive=archive_of(packed))
    images, _ = dataset.read([0, 1])
    assert images.shape == (2, 3, 48, 48)
    assert images.dtype == np.uint8


def test_the_official_archive_is_described_as_published() -> None:
    # https://www.cs.toronto.edu/~kriz/cifar.html gives 10000 records of 3073 bytes in each of six files.
    assert OFFICIAL.url.startswith("https://")
    assert set(OFFICIAL.member_bytes.values()) == {30_730_000}
    assert len(OFFICIAL.member_bytes) == 6
    assert len(OFFICIAL.sha256) == 64
