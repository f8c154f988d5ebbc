"""Files that are no weights (a Git LFS pointer, a web page), or hold them in a form unrelated to any format here."""

from __future__ import annotations

from ssmdiag.checkpoint.formats.interface import Format, Refusal

FORMAT = Format(
    name="others",
    refusals=(
        Refusal(
            "a Git LFS pointer, not the weights",
            "git lfs pull, then inspect it again.",
            magic=(b"version https://git-lfs",),
        ),
        Refusal(
            "a web page, not the file it should be",
            "download it again, with access rights.",
            magic=(b"<!DOCTYPE", b"<html"),
        ),
        Refusal(
            "a gzip archive, which ssmdiag does not read",
            "gzip -dc FILE > UNPACKED, and inspect that; a tar (.nemo, .tgz) need not be unpacked further.",
            magic=(b"\x1f\x8b",),
        ),
        Refusal(
            "compressed (bzip2, xz or zstd), which ssmdiag does not read",
            "bzip2 -dk, xz -dk or zstd -d, and inspect the result.",
            magic=(b"BZh", b"\xfd7zXZ", b"(\xb5/\xfd"),
        ),
        Refusal(
            "an HDF5 file (Keras, netCDF), which ssmdiag does not read",
            "with h5py: found = []; h5py.File(PATH).visititems(lambda name, x: found.append((name, x))); "
            "numpy.savez('model.npz', **dict((name, x[()]) for name, x in found if hasattr(x, 'dtype')))",
            magic=(b"\x89HDF",),
        ),
        Refusal(
            "a Keras archive, whose weights are in an HDF5 file, which ssmdiag does not read",
            "unzip it and inspect model.weights.h5, which says how to copy its arrays.",
            name=r"\.keras$",
        ),
        Refusal(
            "an ONNX graph, which ssmdiag does not read",
            "inspect the checkpoint it was exported from; or with onnx: numpy.savez('model.npz', **dict((t.name, "
            "onnx.numpy_helper.to_array(t)) for t in onnx.load(PATH).graph.initializer)).",
            name=r"\.onnx$",
        ),
        Refusal(
            "a part of a TensorFlow checkpoint",
            "name its folder, {folder}, to see how its arrays are copied.",
            name=r"\.data-\d{5}-of-\d{5}$|(?:\.ckpt[-.\d]*|^variables)\.index$|^saved_model\.pb$",
        ),
        Refusal(
            "what `ssmdiag retrain --resume` goes on from: weights of several arms, and no checkpoint",
            "name a step-….safetensors in the folder of an arm.",
            name=r"^state-.*\.state$",
        ),
        Refusal("settings or a list, no weights", "ssmdiag inspect {folder}", name=r"\.(?:json|ya?ml|toml)$"),
    ),
    conversions={".tar": "unpack it first."},
)
