"""What onnxruntime made of a graph, and the chains of nodes that it left apart although it has one kernel for them.

    graph -> Counter of ops                                count_ops
    graph -> [Found(chain, names of the nodes)]            find_chains, by walking from producer to consumer

A chain is data: the fused op, and the ops from producer to consumer. A step is op types joined by "|", then perhaps
":stored" (one input is a weight), ":computed" (none is), ":last" (a Transpose that swaps the last two axes), ":copied"
(its value leaves the graph, its input has other readers), and "?" where the step may be missing. A weight that is
unpacked at load is computed before the optimisation and stored after it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx


@dataclass(frozen=True)
class Chain:
    """Ops that one kernel of onnxruntime's CPU provider can do."""

    fused: str
    steps: tuple[str, ...]
    note: str = ""
    """What keeps them apart, where it is known; fused_kernels.py measures the pairs."""


QK = "MatMul|FusedMatMul:computed"
ATTENTION = (QK, "Mul|Div:stored?", "Add:computed?", "Softmax", "MatMul|FusedMatMul:computed", "Transpose", "Reshape")
CHAINS = (
    Chain("SkipLayerNormalization", ("Add:computed", "LayerNormalization"), "the CPU kernel is the slower one"),
    Chain("MultiHeadAttention, Attention (opset 23)", ATTENTION),
    Chain("Attention (opset 23), past inside", ("Concat:computed", "Transpose?", *ATTENTION)),
    Chain("output without a copy", ("Identity:copied",), "name the producer's output instead"),
    Chain("BiasGelu", ("Add:stored", "Gelu")),
    Chain("QuickGelu", ("Sigmoid", "Mul:computed")),
    Chain("Gelu", ("Erf", "Add:stored", "Mul", "Mul?")),
    Chain("LayerNormalization", ("ReduceMean", "Sub", "Pow|Mul", "ReduceMean")),
    Chain("bias inside DynamicQuantizeMatMul", ("DynamicQuantizeMatMul", "Add:stored")),
    Chain("bias inside MatMulNBits", ("MatMulNBits", "Add:stored")),
    Chain("DynamicQuantizeMatMul", ("DynamicQuantizeLinear", "MatMulInteger|MatMulIntegerToFloat")),
    Chain("MatMulIntegerToFloat", ("MatMulInteger", "Cast", "Mul")),
    Chain("Gemm", ("MatMul:stored", "Add:stored"), "Gemm is for matrices: a batch needs two Reshapes around it"),
    Chain("FusedMatMul, scale", ("MatMul", "Mul|Div:stored")),
    Chain("FusedMatMul, transposed input", ("Transpose:last", "MatMul")),
    Chain("FusedMatMul, transposed input", ("Transpose:last", "FusedMatMul")),
    Chain("one Transpose", ("Transpose", "Transpose")),
    Chain("one Reshape", ("Reshape", "Reshape")),
    Chain("one Cast", ("Cast", "Cast")),
)


@dataclass(frozen=True)
class Found:
    """One place where a chain lies apart."""

    chain: Chain
    nodes: tuple[str, ...]


@dataclass
class _Net:
    """A graph's nodes with who reads what."""

    stored: set[str]
    outputs: set[str]
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Net:
        """Index a graph; constants count as stored."""
        constants = {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        net = cls({tensor.name for tensor in graph.initializer} | constants, {item.name for item in graph.output})
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                net.readers[name].append(node)
        return net

    def fits(self, node: onnx.NodeProto, step: str) -> bool:
        """Whether a node is what a step asks for."""
        kinds, _, condition = step.removesuffix("?").partition(":")
        if node.op_type not in kinds.split("|"):
            return False
        if condition == "last":
            perm = next((list(item.ints) for item in node.attribute if item.name == "perm"), [])
            return perm[-2:] == [len(perm) - 1, len(perm) - 2] and perm[:-2] == list(range(len(perm) - 2))
        if condition == "copied":
            return node.output[0] in self.outputs and len(self.readers[node.input[0]]) > 1
        has_stored = any(name in self.stored for name in node.input)
        return has_stored if condition == "stored" else not (condition == "computed" and has_stored)

    def walk(self, node: onnx.NodeProto, steps: tuple[str, ...]) -> Iterator[list[onnx.NodeProto]]:
        """Every way from a node on along the steps."""
        if steps[0].endswith("?") and len(steps) > 1:
            yield from self.walk(node, steps[1:])
        if not self.fits(node, steps[0]):
            return
        if len(steps) == 1:
            yield [node]
            return
        for reader in (reader for name in node.output if name for reader in self.readers[name]):
            yield from ([node, *rest] for rest in self.walk(reader, steps[1:]))
        if all(step.endswith("?") for step in steps[1:]):
            yield [node]


def find_chains(graph: onnx.GraphProto, chains: tuple[Chain, ...] = CHAINS) -> list[Found]:
    """Return where the chains lie apart, in the order of chains and nodes; the longest where one begins more than once.

    What several nodes read may still be fused, as the fused ops put out what is between (the sum of a
    SkipLayerNormalization, the weights of an Attention).
    """
    net, found = _Net.of(graph), []
    for chain in chains:
        for node in graph.node:
            ways = [] if chain.steps[0].endswith("?") else list(net.walk(node, chain.steps))
            if ways:
                longest = max(ways, key=len)
                found.append(Found(chain, tuple(step.name or step.output[0] for step in longest)))
    return found


def count_ops(graph: onnx.GraphProto) -> Counter[str]:
    """Return how many nodes of each op a graph holds; ops beyond ONNX's own have their domain in front."""
    return Counter(f"{node.domain}:{node.op_type}" if node.domain else node.op_type for node in graph.node)
