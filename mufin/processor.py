"""What this processor has. Knows nothing of what is computed on it."""

from __future__ import annotations

from functools import cache

_DOT_PRODUCTS = {"avx512vnni", "avxvnni"}
INT8_OVERFLOWS = "this processor has no VNNI, and sums of int8 products overflow on it unless the export was given --int8-reduced-range"
"""What to tell somebody for whom int8 fails where ``int8_sums_overflow``"""


@cache
def processor_features() -> frozenset[str] | None:
    """LLVM's names of an x86-64 processor's instruction sets; None on others, and where llvmlite cannot be imported."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return None
    if not llvm.get_process_triple().startswith("x86_64"):
        return None
    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def int8_sums_overflow() -> bool:
    """Whether ONNX Runtime's int8 matrix products can overflow: without VNNI, pairs of products are added in 16 bits."""
    features = processor_features()
    return features is not None and not features & _DOT_PRODUCTS
