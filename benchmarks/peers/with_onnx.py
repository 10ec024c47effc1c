"""ONNX Runtime: graphs made by hand, all optimisations on."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import works
from onnx import TensorProto, helper, numpy_helper
from with_numpy import inverse_cdf

VERSION = onnxruntime.__version__
Ways = dict[str, Callable[[], Any]]
_threads = 1


def set_threads(threads: int) -> None:
    global _threads
    _threads = threads


def _session(
    nodes: list[Any], weights: works.Arrays, inputs: list[Any], outputs: list[str], int8: bool = False
) -> onnxruntime.InferenceSession:
    constants = [numpy_helper.from_array(np.ascontiguousarray(w), name) for name, w in weights.items()]
    made = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name.startswith("ids") else TensorProto.FLOAT, None)
        for name in outputs
    ]
    graph = helper.make_graph(nodes, "graph", inputs, made, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if int8:
        model = _quantized(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """With DynamicQuantizeLSTM in the place of LSTM."""
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, before)
        quantization.quantize_dynamic(before, after, op_types_to_quantize=["LSTM"], per_channel=True)
        small = onnx.load(after)
    assert any(node.op_type == "DynamicQuantizeLSTM" for node in small.graph.node)
    return small


def _gates(w: np.ndarray) -> np.ndarray:
    """Rows of the gates i f g o in the order of ONNX, i o f c."""
    i, f, g, o = np.split(w, 4)
    return np.concatenate([i, o, f, g])


def _lstm_weights(weights: works.Arrays, layer: int, directions: int, prefix: str = "") -> works.Arrays:
    found: dict[str, list[np.ndarray]] = {"W": [], "R": [], "B": []}
    for suffix in ("", "_reverse")[:directions]:
        part = {kind: weights[f"{prefix}{kind}_l{layer}{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
        found["W"].append(_gates(part["weight_ih"]))
        found["R"].append(_gates(part["weight_hh"]))
        found["B"].append(np.concatenate([_gates(part["bias_ih"]), _gates(part["bias_hh"])]))
    return {f"{name}{layer}": np.stack(arrays) for name, arrays in found.items()}


def lstm(case: works.Case, data: works.Arrays) -> Ways:
    nodes, weights, name = [], {}, "x"
    for layer in range(case.layers):
        weights |= _lstm_weights(data["weights"], layer, case.R)
        given = [name, f"W{layer}", f"R{layer}", f"B{layer}", *(["lengths"] if "lengths" in data else [])]
        direction = "bidirectional" if case.R == 2 else "forward"
        nodes.append(helper.make_node("LSTM", given, [f"Y{layer}"], hidden_size=case.H, direction=direction))
        if case.R == 1:
            nodes.append(helper.make_node("Squeeze", [f"Y{layer}", "one"], [f"y{layer}"]))
        else:
            nodes.append(helper.make_node("Transpose", [f"Y{layer}"], [f"turned{layer}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned{layer}", "shape"], [f"y{layer}"]))
        name = f"y{layer}"
    weights |= {"one": np.array([1]), "shape": np.array([case.T, case.B, case.R * case.H])}
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.T, case.B, case.I])]
    feeds = {"x": data["x"]}
    if "lengths" in data:
        inputs.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, [case.B]))
        feeds["lengths"] = data["lengths"].astype(np.int32)
    session = _session(nodes, weights, inputs, [name], case.work.endswith("int8"))
    return {"LSTM": lambda: session.run(None, feeds)[0]}


lstm_mixed = lstm_int8 = lstm


def _step_graph(case: works.Case, data: works.Arrays, last: list[Any], output: str) -> onnxruntime.InferenceSession:
    w = data["weights"]
    weights = _lstm_weights(w, 0, 1, "decoder.") | {
        "table": w["embedding.weight"] * np.float32(works.EMBEDDING**0.5),
        "projection": w["output.projection.weight"].T,
        "projection_bias": w["output.projection.bias"],
        "vocabulary": w["embedding.weight"].T,
        "vocabulary_bias": w["output.vocabulary.bias"],
        "first": np.array([0]),
        "first_two": np.array([0, 1]),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Concat", ["embedded", "z"], ["joined"], axis=1),
        helper.make_node("Unsqueeze", ["joined", "first"], ["x"]),
        helper.make_node("LSTM", ["x", "W0", "R0", "B0", "", "h", "c"], ["", "h_n", "c_n"], hidden_size=case.H),
        helper.make_node("Squeeze", ["h_n", "first"], ["y"]),
        helper.make_node("Gemm", ["y", "projection", "projection_bias"], ["features"]),
        helper.make_node("Gemm", ["features", "vocabulary", "vocabulary_bias"], ["logits"]),
        *last,
    ]
    state = [1, case.B, case.H]
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, [case.B]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [case.B, works.LATENT]),
        helper.make_tensor_value_info("h", TensorProto.FLOAT, state),
        helper.make_tensor_value_info("c", TensorProto.FLOAT, state),
    ]
    return _session(nodes, weights, inputs, [output, "h_n", "c_n"])


def _loop(session: onnxruntime.InferenceSession, data: works.Arrays, choose: Callable[[Any], Any]) -> Callable[[], Any]:
    def run() -> Any:
        ids, h, c, written = data["ids"], data["h"], data["c"], []
        for _ in range(works.STEPS):
            out, h, c = session.run(None, {"ids": ids, "z": data["z"], "h": h, "c": c})
            ids = choose(out)
            written.append(ids)
        return np.stack(written)

    return run


def decode_greedy(case: works.Case, data: works.Arrays) -> Ways:
    node = helper.make_node("ArgMax", ["logits"], ["ids_out"], axis=1, keepdims=0)
    return {"ArgMax": _loop(_step_graph(case, data, [node], "ids_out"), data, lambda ids: ids)}


def decode_sampled(case: works.Case, data: works.Arrays) -> Ways:
    rng = np.random.default_rng(0)
    outside = _step_graph(case, data, [], "logits")
    scaled = [
        helper.make_node("Mul", ["logits", "factor"], ["scaled"]),
        helper.make_node("Multinomial", ["scaled"], ["drawn"], sample_size=1, dtype=TensorProto.INT64),
        helper.make_node("Squeeze", ["drawn", "second"], ["ids_out"]),
    ]
    constants = [
        helper.make_node("Constant", [], ["factor"], value=numpy_helper.from_array(np.float32(1 / works.TEMPERATURE))),
        helper.make_node("Constant", [], ["second"], value=numpy_helper.from_array(np.array([1]))),
    ]
    inside = _step_graph(case, data, constants + scaled, "ids_out")
    return {
        "NumPy draws": _loop(outside, data, lambda logits: inverse_cdf(logits, rng, works.TEMPERATURE)),
        "Multinomial": _loop(inside, data, lambda ids: ids),
    }


decode_greedy_int8, decode_sampled_int8 = decode_greedy, decode_sampled
assert onnx.__version__
