"""ONNX graphs, built node by node from standard operators, in float32, float16 or int8.

No operator of a vendor's domain and nothing newer than opset 17, so that every runtime of the last years reads them.
int8 means: weights in 8 bits with a scale for each output, and inputs brought to 8 bits token by token, while the
graph runs. The usual converters take one scale for a whole batch; there a text's vector depends on its neighbours.

Axes: R rows of a table, I inputs, O outputs, D width.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from longspan.errors import LongspanError

OnnxPrecision = Literal["float32", "float16", "int8"]

OPSET, IR_VERSION = 17, 8
_LARGEST, _ZERO = 127, 128
"""Integers are in [-127, 127], stored as unsigned numbers around 128. Signed weights would lose sums on processors
without VNNI, whose kernels add two products in 16 bits; signed inputs have no fast kernel in ONNX Runtime."""
_LIMIT = 2**31 - 2**20
"""A protocol buffer, and so an ONNX file, holds less than 2 GiB."""


class Graph:
    """A graph in the making: methods add nodes and return the names of what these compute."""

    def __init__(self, precision: OnnxPrecision) -> None:
        self.precision = precision
        self.dtype = np.dtype(np.float16 if precision == "float16" else np.float32)
        """In which states between the layers are."""
        self._nodes: list[Any] = []
        self._initializers: dict[str, np.ndarray] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self._node(kind, inputs, 1, attributes)[0]

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        """Pieces of `x` along an axis."""
        return self._node("Split", (x, self.integers(sizes)), len(sizes), {"axis": axis})

    def weight(self, name: str, values: np.ndarray) -> str:
        """A constant under a name of its own, as it is."""
        assert name not in self._initializers
        self._initializers[name] = np.ascontiguousarray(values)
        return name

    def state_constant(self, name: str, values: np.ndarray) -> str:
        """A constant in the type of the states."""
        return self.weight(name, values.astype(self.dtype))

    def integers(self, values: list[int]) -> str:
        """Whole numbers, kept once: shapes, axes, sizes."""
        return self._shared(f"int_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """A number in float32, kept once."""
        return self._shared(f"float_{value!r}", np.array(value, dtype=np.float32))

    def state_number(self, value: float) -> str:
        """A number in the type of the states, kept once."""
        return self._shared(f"{self.dtype}_{value!r}", np.array(value, dtype=self.dtype))

    def to_float(self, x: str) -> str:
        """In float32."""
        return x if self.dtype == np.float32 else self._cast(x, np.dtype(np.float32))

    def to_state(self, x: str) -> str:
        """From float32 to the type of the states."""
        return x if self.dtype == np.float32 else self._cast(x, self.dtype)

    def from_integers(self, x: str) -> str:
        """Whole numbers in float32."""
        return self._cast(x, np.dtype(np.float32))

    def to_integers(self, x: str) -> str:
        """Whole numbers from float32."""
        return self._cast(x, np.dtype(np.int64))

    def dense(self, x: str, name: str, weight_OI: np.ndarray, bias_O: np.ndarray | None, *, fine: bool = False) -> str:
        """`x @ weight.T + bias`, by the graph's precision.

        Args:
            fine: under int8, bring inputs to 15 bits (two products) instead of 8. Normalised states have a few
                coordinates that are much larger than the rest; in 8 bits what is left for the others is too coarse.
        """
        if self.precision == "int8":
            y = self._int8_product(x, name, weight_OI.T, fine)
        else:
            y = self.op("MatMul", x, self.state_constant(f"{name}.weight", weight_OI.T))
        return y if bias_O is None else self.op("Add", y, self.state_constant(f"{name}.bias", bias_O))

    def rows(self, ids: str, name: str, table_RD: np.ndarray) -> str:
        """Rows of a table by their numbers; in 8 bits with a scale for each row under int8."""
        if self.precision != "int8":
            return self.op("Gather", self.state_constant(f"{name}.weight", table_RD), ids)
        integers_RD, scale_R1 = _to_int8(table_RD, axis=1)
        rows = self.from_integers(self.op("Gather", self.weight(f"{name}.int8", integers_RD), ids))
        rows = self.op("Sub", rows, self.number(float(_ZERO)))
        return self.op("Mul", rows, self.op("Gather", self.weight(f"{name}.scale", scale_R1), ids))

    def layer_norm(self, x: str, name: str, weight_D: np.ndarray, bias_D: np.ndarray, eps: float) -> str:
        """Layer norm over the last axis."""
        scale, shift = self.state_constant(f"{name}.weight", weight_D), self.state_constant(f"{name}.bias", bias_D)
        return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps)

    def serialized(
        self,
        inputs: dict[str, tuple[str, ...]],
        output: tuple[str, str, tuple[str | int, ...]],
        properties: dict[str, str],
    ) -> bytes:
        """The file.

        Args:
            inputs: name -> its axes, of int64 tensors.
            output: its name, the name of what is computed, its axes; float32.
            properties: kept in the file as metadata.

        Raises:
            LongspanError: it is larger than an ONNX file may be.
        """
        from onnx import TensorProto, helper, numpy_helper

        size = sum(values.nbytes for values in self._initializers.values())
        if size > _LIMIT:
            raise LongspanError(
                f"the weights take {size / 2**30:.1f} GiB in {self.precision}, and an ONNX file holds less than 2",
                where="the export",
                remedy="export it in float16 or int8",
            )
        result, computed, axes = output
        nodes = [*self._nodes, helper.make_node("Identity", [computed], [result])]
        graph = helper.make_graph(
            nodes,
            "longspan",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(result, TensorProto.FLOAT, axes)],
            [numpy_helper.from_array(values, name) for name, values in self._initializers.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, producer_name="longspan", opset_imports=[opset], ir_version=IR_VERSION)
        helper.set_model_props(model, properties)
        return model.SerializeToString()

    def _int8_product(self, x: str, name: str, weight_IO: np.ndarray, fine: bool) -> str:
        integers_IO, scale_1O = _to_int8(weight_IO, axis=0)
        weights, scale_O = self.weight(f"{name}.int8", integers_IO), scale_1O[0] / _LARGEST
        largest = self.op("ReduceMax", self.op("Abs", x), axes=[-1], keepdims=1)
        largest = self.op("Max", largest, self.number(1e-30))
        even = self.op("Div", x, largest)  # in [-1, 1], whatever the token
        step, zero = self.number(1 / _LARGEST), self._shared("zero", np.array(_ZERO, dtype=np.uint8))
        rounded = self.op("QuantizeLinear", even, step, zero)
        product = self._integer_product(rounded, weights, zero, f"{name}.scale", scale_O)
        if fine:
            left = self.op("Sub", even, self.op("DequantizeLinear", rounded, step, zero))
            left = self.op("QuantizeLinear", left, self.number(0.5 / _LARGEST**2), zero)
            small = self._integer_product(left, weights, zero, f"{name}.small", scale_O * 0.5 / _LARGEST)
            product = self.op("Add", product, small)
        return self.op("Mul", product, largest)

    def _integer_product(self, integers: str, weights: str, zero: str, name: str, scale_O: np.ndarray) -> str:
        sums = self.from_integers(self.op("MatMulInteger", integers, weights, zero, zero))
        return self.op("Mul", sums, self.weight(name, scale_O.astype(np.float32)))

    def _cast(self, x: str, dtype: np.dtype[Any]) -> str:
        from onnx import helper

        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(dtype))

    def _shared(self, name: str, values: np.ndarray) -> str:
        self._initializers.setdefault(name, values)
        return name

    def _node(self, kind: str, inputs: tuple[str, ...], num_outputs: int, attributes: dict[str, Any]) -> list[str]:
        from onnx import helper

        self._count += 1
        outputs = [
            f"{kind}_{self._count}_{i}" if num_outputs > 1 else f"{kind}_{self._count}" for i in range(num_outputs)
        ]
        self._nodes.append(helper.make_node(kind, inputs, outputs, name=f"{kind}_{self._count}", **attributes))
        return outputs


def _to_int8(values: np.ndarray, *, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Unsigned integers and scales, `values ~ (integers - 128) * scales`: one scale for each line along `axis`."""
    scales = (np.abs(values).max(axis=axis, keepdims=True) / _LARGEST).astype(np.float32)
    scales = np.maximum(scales, np.float32(1e-30))
    return (np.rint(values / scales) + _ZERO).astype(np.uint8), scales
