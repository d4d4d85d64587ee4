"""What the processor has, and what follows for int8."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mufin import processor
from mufin.compilation import CPU_LEVELS, cpu_level


@pytest.mark.parametrize(
    ("features", "overflows"),
    [
        (frozenset({"avx2", "fma"}), True), (frozenset({"avx2", "avxvnni"}), False),
        (frozenset({"avx512f", "avx512vnni"}), False), (frozenset({"avx512f"}), True), (None, False),
    ],
)  # fmt: skip
def test_int8_sums_overflow_without_vnni(
    features: frozenset[str] | None, overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever width; elsewhere than on x86-64 nothing is said."""
    monkeypatch.setattr(processor, "processor_features", lambda: features)
    assert processor.int8_sums_overflow() is overflows


def test_onnx_runtime_overflows_where_it_is_said_to() -> None:
    """A product of the largest numbers, on this processor."""
    one = [helper.make_node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])]
    inputs = [
        helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 64]),
        helper.make_tensor_value_info("za", TensorProto.UINT8, []),
    ]
    constants = [
        helper.make_tensor("b", TensorProto.INT8, [64, 16], np.full((64, 16), 127, np.int8).tobytes(), raw=True),
        helper.make_tensor("zb", TensorProto.INT8, [], np.zeros((), np.int8).tobytes(), raw=True),
    ]
    output = [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])]
    model = helper.make_model(
        helper.make_graph(one, "g", inputs, output, constants), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((1, 64), 255, np.uint8), "za": np.zeros((), np.uint8)})[0]
    assert bool(np.all(found == 64 * 255 * 127)) is not processor.int8_sums_overflow()


def test_features_decide_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level needs those below it; another architecture has none."""
    below: set[str] = set()
    for level in reversed(list(CPU_LEVELS)):
        below |= set(CPU_LEVELS[level])
        monkeypatch.setattr("mufin.compilation.processor_features", lambda own=frozenset(below): own)
        assert cpu_level() == level
    monkeypatch.setattr("mufin.compilation.processor_features", lambda: frozenset(CPU_LEVELS["x86-64-v4"]))
    assert cpu_level() == "x86-64"
    monkeypatch.setattr("mufin.compilation.processor_features", lambda: None)
    assert cpu_level() is None


def test_without_llvmlite_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle can be served by numpy alone."""
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert processor.processor_features.__wrapped__() is None
