"""The dtypes that a file can hold: their widths, and which of them are numbers."""

DTYPE_BITS = {
    "float64": 64, "float32": 32, "float16": 16, "bfloat16": 16,
    "complex128": 128, "complex64": 64, "complex32": 32,
    "int64": 64, "int32": 32, "int16": 16, "int8": 8, "bool": 8,
    "uint64": 64, "uint32": 32, "uint16": 16, "uint8": 8,
    "float8_e4m3fn": 8, "float8_e5m2": 8, "float8_e4m3fnuz": 8, "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8, "float4_e2m1fn_x2": 4,
}  # fmt: skip
"""Bits per element of every stored dtype, by torch name."""


def is_number(dtype: str) -> bool:
    """Whether values of this dtype are weights themselves, and not codes or indexes."""
    return dtype.startswith(("float", "bfloat", "complex"))
