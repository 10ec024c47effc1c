"""LSTM, products, embedding and attention: cuBLAS, and the kernels between its calls."""

from collections.abc import Callable, Sequence

from rheme._cuda import persistent
from rheme._cuda.blas import Matrix, column_sums, prepared_product, product
from rheme._cuda.device import (
    THREADS,
    Array,
    check,
    cupy,
    each,
    empty,
    explained,
    fault,
    floating,
    given,
    launch,
    prepared,
    refuse,
    row_threads,
    zeros,
)


class Packed:
    """Weights as the products want them: for one direction, or a linear layer, the very arrays; two directions in one array."""

    def __init__(self, kind: str, weights: Sequence[Array], recurrent: Array | None) -> None:
        self.kind, self.weights, self.recurrent = kind, tuple(weights), recurrent

    @property
    def nbytes(self) -> int:
        """Of memory beside the weights' own."""
        return 0 if self.recurrent is None or self.recurrent is self.weights[-1] else int(self.recurrent.nbytes)


def _fits(packed: Packed | None, kind: str, weights: Sequence[Array]) -> bool:
    """Whether weights are packed. ValueError where what is given was made from others."""
    if packed is None:
        return False
    found = [w.shape for w in packed.weights] if packed.kind == kind else packed.kind
    if found != [w.shape for w in weights] or packed.weights[0].dtype != weights[0].dtype:
        refuse("packed", f"made from weights of shape {found}, wanted {[w.shape for w in weights]}")
    return True


# LSTM -----------------------------------------------------------------------------------------------------------------------


def _recurrent(w_hh: Sequence[Array]) -> Array:
    """(R, 4H, H): for one direction the array itself."""
    if len(w_hh) == 1:
        return w_hh[0]
    stacked = empty(shape=(len(w_hh), *w_hh[0].shape), dtype=w_hh[0].dtype.name)
    for r, w in enumerate(w_hh):
        stacked[r] = w
    return stacked


def pack_lstm(*, w_ih: Sequence[Array], w_hh: Sequence[Array]) -> Packed:
    dtype = floating(w_ih[0], "w_ih", 2)
    _check_weights(dtype, w_ih[0].shape[1], w_ih, w_hh)
    return Packed("lstm", [*w_ih, *w_hh], _recurrent(w_hh))


def _check_weights(dtype: str, inputs: int, w_ih: Sequence[Array], w_hh: Sequence[Array]) -> int:
    if len(w_ih) not in (1, 2) or len(w_hh) != len(w_ih):
        refuse("w_ih", f"{len(w_ih)} and {len(w_hh)} arrays, wanted one or two of each")
    if w_hh[0].ndim != 2:
        refuse("w_hh", f"{w_hh[0].ndim} axes, wanted 2")
    hidden = int(w_hh[0].shape[1])
    for w in w_ih:
        check(w, "w_ih", dtype, (4 * hidden, inputs))
    for w in w_hh:
        check(w, "w_hh", dtype, (4 * hidden, hidden))
    return hidden


def _state(start: Array | None, shape: tuple[int, ...], dtype: str) -> Array:
    """A state to update: a copy of where it starts, or zeros."""
    if start is None:
        return zeros(shape=shape, dtype=dtype)
    state = empty(shape=shape, dtype=dtype)
    state[...] = start
    return state


def _to_step(matrix: Matrix, s: int, time: int, batch: int, reverse: bool) -> None:
    """Step s of an array (R, T, N, width): at time s, or backwards at T - 1 - s; the second direction's is a stride away."""
    first = time - 1 - s if reverse else s
    matrix.offset = first * batch * matrix.ld
    matrix.stride = (time + (time - 1 - s) - first) * batch * matrix.ld


def lstm(
    *,
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    bias: Sequence[Array],
    packed: Packed | None,
    reverse: bool,
    save: bool,
) -> tuple[Array, Array, Array, Array | None, Array | None]:
    dtype = floating(x, "x", 3)
    time, batch, inputs = x.shape
    directions = len(w_ih)
    hidden = _check_weights(dtype, inputs, w_ih, w_hh)
    state = (directions, batch, hidden)
    check(x, "x", dtype, None)
    check(lengths, "lengths", "int64", (batch,), optional=True)
    check(h0, "h0", dtype, state, optional=True)
    check(c0, "c0", dtype, state, optional=True)
    if len(bias) != directions:
        refuse("bias", f"{len(bias)} arrays, wanted {directions}")
    for b in bias:
        check(b, "bias", dtype, (4 * hidden,))
    if reverse and directions == 2:
        refuse("reverse", "only for one direction")
    recurrent = packed.recurrent if packed is not None and _fits(packed, "lstm", [*w_ih, *w_hh]) else _recurrent(w_hh)
    both = bias[0] if directions == 1 else _recurrent([b.reshape(1, -1) for b in bias])
    gates = empty(shape=(directions, time, batch, 4 * hidden), dtype=dtype)
    cells = empty(shape=(directions, time, batch, hidden), dtype=dtype) if save else None
    rows, columns = time * batch, 4 * hidden
    for r in range(directions):
        out = Matrix(gates, columns, offset=r * rows * columns)
        product(rows, columns, inputs, Matrix(x, inputs), Matrix(w_ih[r], inputs, True), out)

    def recurrence(h: Array) -> Callable[[int], None]:
        at = Matrix(gates, columns)
        left, right = Matrix(h, hidden, stride=batch * hidden), Matrix(recurrent, hidden, True, stride=columns * hidden)
        add = prepared_product(batch, columns, hidden, left, right, at, add=True, batch=directions)

        def add_to(s: int) -> None:
            if s or h0 is not None:
                _to_step(at, s, time, batch, reverse)
                add()

        return add_to

    shape = persistent.chosen(hidden, time, directions * batch, dtype)
    if shape is not None:
        y, h, c = persistent.forward(shape, gates, cells, recurrent, both, (h0, c0), lengths, reverse)
    else:
        y, h, c = lstm_steps(recurrence, both, gates, cells, (h0, c0), lengths, reverse)
    return y, h, c, gates if save else None, cells


def lstm_steps(
    recurrence: Callable[[Array], Callable[[int], None]],
    bias: Array | None,
    gates: Array,
    cells: Array | None,
    start: tuple[Array | None, Array | None],
    lengths: Array | None,
    reverse: bool,
) -> tuple[Array, Array, Array]:
    """y, h_n and c_n from gates (R, T, N, 4H) that hold W_ih x. recurrence(h)(s): adds W_hh h to step s of them."""
    directions, time, batch, columns = gates.shape
    hidden, dtype = columns // 4, gates.dtype.name
    y = empty(shape=(time, batch, directions * hidden), dtype=dtype)
    h, c = (_state(array, (directions, batch, hidden), dtype) for array in start)
    add_recurrent, step = recurrence(h), prepared("lstm", "lstm_step", dtype, h.size)
    rest = given((directions, time, batch, hidden, int(reverse), lengths, bias, gates, cells, h, c, y))
    for s in range(time):
        add_recurrent(s)
        step((s,), rest)
    return y, h, c


def lstm_backward(
    *,
    dy: Array,
    dh_n: Array | None,
    dc_n: Array | None,
    x: Array,
    lengths: Array | None,
    h0: Array | None,
    c0: Array | None,
    w_ih: Sequence[Array],
    w_hh: Sequence[Array],
    y: Array,
    gates: Array,
    cells: Array,
    reverse: bool,
    need_dx: bool,
) -> tuple[Array | None, Array, Array, list[Array], list[Array], list[Array]]:
    dtype = floating(x, "x", 3)
    time, batch, inputs = x.shape
    directions = len(w_ih)
    hidden = _check_weights(dtype, inputs, w_ih, w_hh)
    state, columns, rows = (directions, batch, hidden), 4 * hidden, time * batch
    for name, array, shape in (
        ("dy", dy, (time, batch, directions * hidden)),
        ("x", x, (time, batch, inputs)),
        ("y", y, (time, batch, directions * hidden)),
        ("gates", gates, (directions, time, batch, columns)),
        ("cells", cells, (directions, time, batch, hidden)),
    ):
        check(array, name, dtype, shape)
    for name, array in (("dh_n", dh_n), ("dc_n", dc_n), ("h0", h0), ("c0", c0)):
        check(array, name, dtype, state, optional=True)
    check(lengths, "lengths", "int64", (batch,), optional=True)
    recurrent = _recurrent(w_hh)
    dgates = empty(shape=gates.shape, dtype=dtype)
    dh, dc = _state(dh_n, state, dtype), _state(dc_n, state, dtype)
    cut = persistent.chosen(hidden, time, directions * batch, dtype)
    if cut is not None:
        persistent.backward(cut, dy, gates, cells, recurrent, c0, dgates, dh, dc, lengths, reverse)
    else:
        at, out = Matrix(dgates, columns), Matrix(dh, hidden, stride=batch * hidden)
        right = Matrix(recurrent, hidden, stride=columns * hidden)
        add = prepared_product(batch, hidden, columns, at, right, out, add=True, batch=directions)
        step = prepared("lstm", "lstm_step_backward", dtype, dh.size)
        rest = given((directions, time, batch, hidden, int(reverse), lengths, dy, gates, cells, c0, dgates, dh, dc))
        for s in reversed(range(time)):
            step((s,), rest)
            _to_step(at, s, time, batch, reverse)
            add()
    # Over all steps at once: what stands past a row's length has gates of gradient 0.
    previous = empty(shape=(directions, time, batch, hidden), dtype=dtype)
    launch(
        "lstm", "lstm_previous", dtype, each(previous.size), THREADS,
        directions, time, batch, hidden, int(reverse), lengths, y, h0, previous,
    )  # fmt: skip
    if lengths is not None:
        padded, x = x, empty(shape=x.shape, dtype=dtype)
        launch("lstm", "zero_padding", dtype, each(x.size), THREADS, time, batch, inputs, lengths, padded, x)
    dx = empty(shape=x.shape, dtype=dtype) if need_dx else None
    dw_ih, dw_hh, dbias = [], [], []
    for r in range(directions):
        offset = r * rows * columns
        by_row, by_column = Matrix(dgates, columns, offset=offset), Matrix(dgates, columns, True, offset=offset)
        dw_ih.append(empty(shape=w_ih[r].shape, dtype=dtype))
        dw_hh.append(empty(shape=w_hh[r].shape, dtype=dtype))
        dbias.append(empty(shape=(columns,), dtype=dtype))
        product(columns, inputs, rows, by_column, Matrix(x, inputs), Matrix(dw_ih[r], inputs))
        product(columns, hidden, rows, by_column, Matrix(previous, hidden, offset=r * rows * hidden), Matrix(dw_hh[r], hidden))
        column_sums(dgates[r].reshape(rows, columns), dbias[r])
        if dx is not None:
            product(rows, inputs, columns, by_row, Matrix(w_ih[r], inputs), Matrix(dx, inputs), add=r > 0)
    return dx, dh, dc, dw_ih, dw_hh, dbias


# Products -------------------------------------------------------------------------------------------------------------------


def pack_linear(*, weight: Array) -> Packed:
    floating(weight, "weight", 2)
    check(weight, "weight", weight.dtype.name, None)
    return Packed("linear", [weight], None)


def linear(*, x: Array, weight: Array, bias: Array | None, packed: Packed | None) -> Array:
    dtype = floating(x, "x", 2)
    floating(weight, "weight", 2)
    (m, k), c = x.shape, weight.shape[0]
    check(x, "x", dtype, None)
    check(weight, "weight", dtype, (None, k))
    check(bias, "bias", dtype, (c,), optional=True)
    _fits(packed, "linear", [weight])
    y = empty(shape=(m, c), dtype=dtype)
    product(m, c, k, Matrix(x, k), Matrix(weight, k, True), Matrix(y, c))
    if bias is not None:
        launch("gemm", "add_bias", dtype, each(y.size), THREADS, m, c, bias, y)
    return y


def linear_backward(
    *, dy: Array, x: Array, weight: Array, need_dx: bool, need_dweight: bool, need_dbias: bool
) -> tuple[Array | None, Array | None, Array | None]:
    dtype = floating(x, "x", 2)
    floating(weight, "weight", 2)
    (m, k), c = x.shape, weight.shape[0]
    check(x, "x", dtype, None)
    check(weight, "weight", dtype, (c, k))
    check(dy, "dy", dtype, (m, c))
    dx = empty(shape=(m, k), dtype=dtype) if need_dx else None
    dweight = empty(shape=(c, k), dtype=dtype) if need_dweight else None
    dbias = empty(shape=(c,), dtype=dtype) if need_dbias else None
    if dx is not None:
        product(m, k, c, Matrix(dy, c), Matrix(weight, k), Matrix(dx, k))
    if dweight is not None:
        product(c, k, m, Matrix(dy, c, True), Matrix(x, k), Matrix(dweight, k))
    if dbias is not None:
        column_sums(dy, dbias)
    return dx, dweight, dbias


def matmul(*, a: Array, b: Array, transpose_a: bool, transpose_b: bool) -> Array:
    dtype = floating(a, "a", 3)
    floating(b, "b", 3)
    batch, m, k = (a.shape[0], a.shape[2], a.shape[1]) if transpose_a else a.shape
    c = b.shape[1] if transpose_b else b.shape[2]
    check(a, "a", dtype, None)
    check(b, "b", dtype, (batch, c, k) if transpose_b else (batch, k, c))
    y = empty(shape=(batch, m, c), dtype=dtype)
    left, right = (
        Matrix(a, a.shape[2], transpose_a, stride=m * k),
        Matrix(b, b.shape[2], transpose_b, stride=k * c),
    )
    product(m, c, k, left, right, Matrix(y, c, stride=m * c), batch=batch)
    return y


# Embedding ------------------------------------------------------------------------------------------------------------------


def embedding(*, ids: Array, weight: Array) -> Array:
    dtype = floating(weight, "weight", 2)
    check(weight, "weight", dtype, None)
    check(ids, "ids", "int64", (None,))
    (m,), (v, c) = ids.shape, weight.shape
    y = empty(shape=(m, c), dtype=dtype)
    launch("embedding", "embedding", dtype, each(y.size), THREADS, m, c, v, ids, weight, fault(), y)
    return y


def embedding_backward(*, dy: Array, ids: Array, num_embeddings: int, order: Array | None) -> Array:
    dtype = floating(dy, "dy", 2)
    m, c = dy.shape
    check(dy, "dy", dtype, None)
    check(ids, "ids", "int64", (m,))
    check(order, "order", "int64", (m,), optional=True)
    dweight = empty(shape=(num_embeddings, c), dtype=dtype)
    if order is None:
        with explained():
            order = cupy().argsort(ids)  # stable, on the device
    launch("embedding", "embedding_backward", dtype, num_embeddings, row_threads(c), m, c, ids, order, dy, dweight)
    return dweight


# Attention ------------------------------------------------------------------------------------------------------------------


def _time_major(array: Array, transposed: bool = False) -> Matrix:
    """An array (T, N, H) as N matrices (T, H)."""
    _, n, h = array.shape
    return Matrix(array, n * h, transposed, stride=h)


def _batch_major(array: Array, transposed: bool = False) -> Matrix:
    """An array (N, T, S) as N matrices (T, S)."""
    _, t, s = array.shape
    return Matrix(array, s, transposed, stride=t * s)


def _attention_shapes(query: Array, key: Array, value: Array) -> tuple[str, int, int, int, int, int]:
    dtype = floating(query, "query", 3)
    floating(key, "key", 3)
    floating(value, "value", 3)
    (t, n, h), s, c = query.shape, key.shape[0], value.shape[2]
    check(query, "query", dtype, None)
    check(key, "key", dtype, (s, n, h))
    check(value, "value", dtype, (s, n, c))
    return dtype, t, n, h, s, c


def attention(*, query: Array, key: Array, value: Array, lengths: Array | None, scale: float) -> tuple[Array, Array]:
    dtype, t, n, h, s, c = _attention_shapes(query, key, value)
    check(lengths, "lengths", "int64", (n,), optional=True)
    weights = empty(shape=(n, t, s), dtype=dtype)
    context = empty(shape=(t, n, c), dtype=dtype)
    if s == 0:
        context.fill(0)
        return context, weights
    product(t, s, h, _time_major(query), _time_major(key, True), _batch_major(weights), batch=n)
    launch("attention", "attention_softmax", dtype, n * t, row_threads(s), t, s, lengths, float(scale), weights)
    product(t, c, s, _batch_major(weights), _time_major(value), _time_major(context), batch=n)
    return context, weights


def attention_backward(
    *, dcontext: Array, dweights: Array | None, query: Array, key: Array, value: Array, weights: Array, scale: float
) -> tuple[Array, Array, Array]:
    dtype, t, n, h, s, c = _attention_shapes(query, key, value)
    check(dcontext, "dcontext", dtype, (t, n, c))
    check(dweights, "dweights", dtype, (n, t, s), optional=True)
    check(weights, "weights", dtype, (n, t, s))
    dquery, dkey, dvalue = (empty(shape=a.shape, dtype=dtype) for a in (query, key, value))
    dscores = empty(shape=(n, t, s), dtype=dtype)
    product(t, s, c, _time_major(dcontext), _time_major(value, True), _batch_major(dscores), batch=n)
    launch("attention", "attention_softmax_backward", dtype, n * t, row_threads(s), s, weights, dweights, float(scale), dscores)
    product(t, h, s, _batch_major(dscores), _time_major(key), _time_major(dquery), batch=n)
    product(s, h, t, _batch_major(dscores, True), _time_major(query), _time_major(dkey), batch=n)
    product(s, c, t, _batch_major(weights, True), _time_major(dcontext), _time_major(dvalue), batch=n)
    return dquery, dkey, dvalue
