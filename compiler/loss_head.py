"""Hidden states and labels -> cross-entropy and its gradient, as ONNX nodes in closed form.

    S = sum of exp(logit - top) over all tokens but the label's,  E the token embedding, y the label
    nll       = log(S + exp(logit_y - top)) - (logit_y - top)
    d nll/d h = (sum of exp(logit_v - top) E_v over v != y - S E_y) / (S + exp(logit_y - top))

Label smoothing s adds s (logit_y - mean logit) to the loss, s (E_y - mean E) to the gradient. The label's column is
taken out before the sum, which has two stages: a float32 sum of 51,864 numbers next to one that is nearly all of it
would lose the gradient (docs/decisions/0007).
"""

from __future__ import annotations

from dataclasses import dataclass

from whisperfold.compiler.graph import Graph

N_GROUPS = 24
"""Of columns, summed on their own: English vocabularies, 51,864 = 24 x 2,161, need no padding."""


@dataclass(frozen=True)
class Targets:
    """Names of the graph's inputs that say what is learned."""

    labels: str
    """int64 (batch, n)."""
    weights: str
    """float32 (batch, n), 0 where a position is not counted."""
    smoothing: str
    """float32 ()."""


@dataclass(frozen=True)
class Table:
    """The token embedding as a value of the graph, and its mean over the vocabulary."""

    name: str
    """float32 (n_state, n_vocab), or (n_vocab, n_state) where it has rows."""
    mean: str
    """float32 (n_state, 1)."""
    has_rows: bool

    def logits(self, graph: Graph, hidden: str) -> str:
        """Return (n, n_vocab) of hidden (n, n_state)."""
        if self.has_rows:
            return str(graph.op("Gemm", hidden, self.name, transB=1))
        return str(graph.op("MatMul", hidden, self.name))

    def embeddings(self, graph: Graph, tokens: str) -> str:
        """Return (n, n_state) of tokens (n,)."""
        if self.has_rows:
            return str(graph.op("Gather", self.name, tokens, axis=0))
        return str(graph.op("Transpose", graph.op("Gather", self.name, tokens, axis=1), perm=[1, 0]))

    def mix(self, graph: Graph, weights: str) -> str:
        """Return (n, n_state), the embeddings weighted by (n, n_vocab)."""
        return str(graph.op("Gemm", weights, self.name, transB=int(not self.has_rows)))


def loss_head(graph: Graph, hidden: str, table: Table, targets: Targets, n_vocab: int) -> tuple[str, str]:
    """Append the nodes of the loss.

    Args:
        graph: gets the nodes.
        hidden: float32 (batch, n, n_state).
        table: token embedding.
        targets: labels, weights, smoothing.
        n_vocab: columns of the table.

    Returns:
        Names of the weighted mean loss, (), and of its gradient with respect to hidden.
    """
    rows = graph.op("Reshape", hidden, graph.op("Concat", graph.ints(-1), graph.op("Shape", hidden, start=2), axis=0))
    label, weight = (graph.op("Reshape", name, graph.ints(-1)) for name in (targets.labels, targets.weights))
    total_weight = graph.op("ReduceSum", weight, graph.ints(0), keepdims=0)
    share = graph.op("Unsqueeze", graph.op("Div", weight, total_weight), graph.ints(1))

    logits = table.logits(graph, rows)
    top = graph.op("ReduceMax", logits, graph.ints(1), keepdims=1)
    column = graph.op("Unsqueeze", label, graph.ints(1))
    vocabulary = graph.op("Range", *(graph.op("Squeeze", graph.ints(n)) for n in (0, n_vocab, 1)))
    exponentials = graph.op("Exp", graph.op("Sub", logits, top))
    others = graph.op("Where", graph.op("Equal", vocabulary, column), graph.scalar(0.0), exponentials)
    sum_others = _two_stage_sum(graph, others, n_vocab)
    label_logit = graph.op("GatherElements", logits, column, axis=1)
    above_top = graph.op("Sub", label_logit, top)
    total = graph.op("Add", sum_others, graph.op("Exp", above_top))
    nll = graph.op("Sub", graph.op("Log", total), above_top)
    over_mean = graph.op("Sub", label_logit, graph.op("MatMul", rows, table.mean))
    losses = graph.op("Add", nll, graph.op("Mul", targets.smoothing, over_mean))
    loss = graph.op("ReduceSum", graph.op("Mul", losses, share), keepdims=0)

    label_rows = table.embeddings(graph, label)
    pull = graph.op("Sub", table.mix(graph, others), graph.op("Mul", label_rows, sum_others))
    off_mean = graph.op("Sub", label_rows, graph.op("Transpose", table.mean, perm=[1, 0]))
    smoothed = graph.op("Add", graph.op("Div", pull, total), graph.op("Mul", targets.smoothing, off_mean))
    return str(loss), str(graph.op("Reshape", graph.op("Mul", smoothed, share), graph.op("Shape", hidden)))


def _two_stage_sum(graph: Graph, values: str, n_columns: int) -> str:
    """Sum (rows, n_columns) over its columns, in groups first: (rows, 1)."""
    short = -n_columns % N_GROUPS
    padded = graph.op("Pad", values, graph.ints(0, 0, 0, short)) if short else values
    groups = graph.op("Reshape", padded, graph.ints(0, N_GROUPS, -1))
    sums = graph.op("ReduceSum", groups, graph.ints(2), keepdims=0)
    return str(graph.op("ReduceSum", sums, graph.ints(1), keepdims=1))
