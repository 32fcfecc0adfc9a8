"""A file that is damaged or not complete is refused in one sentence, which names the file and what is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from monai_chunked import ChunkedSlidingWindowInferer, open_image
from tests.inputs.ome_zarr_cases import image, into_zip, space, voxels, write_group
from tests.refusals import shown

DAMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {}


def damage(message: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    def register(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        DAMAGES[make.__name__] = make, message
        return make

    return register


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npy(folder: Path) -> bytes:
    np.save(folder / "whole.npy", voxels(8, 8, 8))
    return (folder / "whole.npy").read_bytes()


def nii(folder: Path) -> bytes:
    nibabel.save(nibabel.Nifti1Image(voxels(32, 32, 32), np.eye(4)), folder / "whole.nii")
    return (folder / "whole.nii").read_bytes()


def store(folder: Path, zarr_format: int = 3) -> Path:
    version = "0.5" if zarr_format == 3 else "0.4"
    path = folder / "image.zarr"
    write_group(path, image(version, [space(axis) for axis in "zyx"]), {"0": voxels(8, 8, 8)}, zarr_format)
    return path


# ---------------------------------------------------------------- .npy


@damage("no .npy file that can be mapped to memory, or cut off .*greater than file size")
def npy_cut_off(folder: Path) -> Path:
    return put(folder / "image.npy", npy(folder)[:-10])


@damage("cut off .*EOF: reading array header")
def npy_cut_off_in_its_header(folder: Path) -> Path:
    return put(folder / "image.npy", npy(folder)[:40])


@damage("cut off .*EOF: reading magic string")
def npy_without_a_byte(folder: Path) -> Path:
    return put(folder / "image.npy", b"")


@damage("no .npy file .*the magic string is not correct")
def npy_that_is_a_text(folder: Path) -> Path:
    return put(folder / "image.npy", b"some text that is long enough")


@damage("no .npy file .*the magic string is not correct")
def npy_that_is_a_npz(folder: Path) -> Path:
    np.savez(folder / "arrays.npz", voxels(8, 8, 8))
    return (folder / "arrays.npz").rename(folder / "image.npy")


@damage("no .npy file that can be mapped to memory.*Python objects")
def npy_of_objects(folder: Path) -> Path:
    np.save(folder / "image.npy", np.array([{}], object), allow_pickle=True)
    return folder / "image.npy"


# ---------------------------------------------------------------- NIfTI


@damage("cut off or damaged .Expected 65536 bytes, got 65436 bytes")
def nii_whose_header_says_more_than_is_there(folder: Path) -> Path:
    return put(folder / "image.nii", nii(folder)[:-100])


@damage("no NIfTI file, or a damaged one .Cannot work out file type")
def nii_cut_off_in_its_header(folder: Path) -> Path:
    return put(folder / "image.nii", nii(folder)[:200])


@damage("no NIfTI file, or a damaged one .Empty file")
def nii_without_a_byte(folder: Path) -> Path:
    return put(folder / "image.nii", b"")


@damage("no NIfTI file, or a damaged one .Cannot work out file type")
def nii_that_is_a_text(folder: Path) -> Path:
    return put(folder / "image.nii", b"text" * 200)


@damage("no NIfTI file, or a damaged one .*is not a gzip file")
def nii_gz_that_is_not_compressed(folder: Path) -> Path:
    return put(folder / "image.nii.gz", nii(folder))


@damage("cut off or damaged .Compressed file ended before")
def nii_gz_cut_off(folder: Path) -> Path:
    return put(folder / "image.nii.gz", gzip.compress(nii(folder))[:30000])


@damage("no NIfTI file, or a damaged one")
def nii_gz_cut_off_in_its_header(folder: Path) -> Path:
    return put(folder / "image.nii.gz", gzip.compress(nii(folder))[:30])


@damage("the file ends before its last voxel")
def nii_gz_whose_header_says_more_than_is_there(folder: Path) -> Path:
    return put(folder / "image.nii.gz", gzip.compress(nii(folder)[:-100]))


@damage("cut off or damaged .CRC check failed")
def nii_gz_with_bytes_that_are_damaged(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 2**15, (64, 64, 1024), "i2")  # more than is read for the header
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), folder / "whole.nii")
    content = bytearray(gzip.compress((folder / "whole.nii").read_bytes(), 1))
    content[-1000:-900] = bytes(100)
    return put(folder / "image.nii.gz", content)


# ---------------------------------------------------------------- Zarr


@damage("its zarr.json is not JSON")
def zarr_json_cut_off(folder: Path) -> Path:
    path = store(folder)
    put(path / "zarr.json", (path / "zarr.json").read_bytes()[:50])
    return path


@damage("its zarr.json is no JSON object")
def zarr_json_that_is_a_list(folder: Path) -> Path:
    path = store(folder)
    put(path / "zarr.json", b"[]")
    return path


@damage("its 0/zarr.json is not JSON")
def zarr_json_of_an_array_cut_off(folder: Path) -> Path:
    path = store(folder)
    put(path / "0/zarr.json", b"")
    return path


@damage("its Zarr metadata cannot be read .*(KeyError|ValueError|TypeError|MetadataValidationError)")
def zarr_json_of_an_array_without_its_shape(folder: Path) -> Path:
    path = store(folder)
    document = json.loads((path / "0/zarr.json").read_text())
    del document["shape"]
    put(path / "0/zarr.json", json.dumps(document).encode())
    return path


@damage("its .zattrs is not JSON")
def zattrs_cut_off(folder: Path) -> Path:
    path = store(folder, 2)
    put(path / ".zattrs", b"{")
    return path


@damage("its 0/.zarray is not JSON")
def zarray_cut_off(folder: Path) -> Path:
    path = store(folder, 2)
    put(path / "0/.zarray", b"{")
    return path


@damage("metadata name '0', which is not there; the store is not complete")
def level_that_is_missing(folder: Path) -> Path:
    path = store(folder)
    shutil.rmtree(path / "0")
    return path


@damage("no zip file, or not complete")
def zip_cut_off(folder: Path) -> Path:
    whole = into_zip(store(folder), folder / "whole.ozx").read_bytes()
    return put(folder / "image.ozx", whole[:-200])


@damage("its zarr.json is damaged .*CRC-32")
def zip_whose_metadata_are_damaged(folder: Path) -> Path:
    content = into_zip(store(folder), folder / "whole.ozx").read_bytes()
    return put(folder / "image.ozx", content.replace(b'"multiscales"', b'"multiscaler"'))


@damage("its storage chunk 0/c/0/0/0 is damaged .*CRC-32")
def zip_with_a_chunk_that_is_damaged(folder: Path) -> Path:
    path = store(folder)
    archive = into_zip(path, folder / "image.ozx")
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        stored = file.read("0/c/0/0/0")
    return put(archive, content.replace(stored, bytes(len(stored))))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused_with_its_path_and_what_is_wrong(name: str, tmp_path: Path) -> None:
    make, message = DAMAGES[name]
    path = make(tmp_path)
    with pytest.raises(OSError, match=message) as caught:
        ChunkedSlidingWindowInferer(32)(open_image(path), torch.relu)
    text = shown(caught.value)
    assert str(path) in text
    assert len(text.strip().splitlines()) <= 2  # the sentence, and which window was read


def test_bytes_behind_a_nii_gz_do_not_matter(tmp_path: Path) -> None:
    path = put(tmp_path / "image.nii.gz", gzip.compress(nii(tmp_path)) + b"more")
    result = ChunkedSlidingWindowInferer(32)(open_image(path), torch.relu)
    assert np.array_equal(result[0, 0], voxels(32, 32, 32))


def test_what_is_no_image_says_what_it_is(tmp_path: Path) -> None:
    for name in ("empty", "notes", "images.nii"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "a.txt").write_text("words")
    (tmp_path / "notes.txt").write_text("words")
    for name, kind, message in (
        ("empty", ValueError, "empty is an empty folder, so it is no Zarr array or group"),
        ("notes", ValueError, "notes is a folder without zarr.json, .zgroup, .zarray, so it is no Zarr"),
        ("notes.txt", ValueError, "notes.txt is no .nii, .nii.gz or .npy file, nor a Zarr array or group"),
        ("images.nii", OSError, "no NIfTI file, or a damaged one .*images.nii"),
    ):
        with pytest.raises(kind, match=message):
            open_image(tmp_path / name)


# ---------------------------------------------------------------- a storage chunk

CODECS: dict[str, dict[str, Any]] = {
    "zstd": {"compressors": ZstdCodec()},
    "blosc": {"compressors": BloscCodec()},
    "gzip": {"compressors": GzipCodec()},
    "checksum": {"compressors": Crc32cCodec()},
    "none": {"compressors": None, "serializer": BytesCodec()},
    "shards": {"compressors": ZstdCodec(), "chunks": (2, 2, 2), "shards": (4, 4, 4)},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("content", [b"", b"xx", bytes(60)], ids=["empty", "short", "zeros"])
def test_a_storage_chunk_that_is_damaged_is_named_with_its_store(codec: str, content: bytes, tmp_path: Path) -> None:
    if codec == "shards" and not content:
        content = b"x"  # an empty one is all zeros to zarr
    path, options = tmp_path / "image.zarr", {"chunks": (4, 4, 2), **CODECS[codec]}
    write_group(path, image("0.5", [space(axis) for axis in "zyx"]), {})
    zarr.create_array(path / "0", data=voxels(8, 8, 8), **options)
    for name in ("chunks", "shards"):
        options |= {name: (1, 1, *options[name])} if name in options else {}
    array = zarr.create_array(path / "five", data=voxels(1, 1, 8, 8, 8), **options)
    key = "1/0/1" if "shards" in options else "1/0/3"
    for inputs, chunk in ((open_image(path), f"0/c/{key}"), (array, f"c/0/0/{key}")):
        put((path if chunk.startswith("0") else path / "five") / chunk, content)
        with pytest.raises(OSError, match=rf"storage chunk {chunk} is damaged.*{path}") as caught:
            ChunkedSlidingWindowInferer(4, overlap=0)(inputs, torch.relu)
        assert "while reading window" in shown(caught.value)
