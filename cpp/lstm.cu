// LSTM over whole sequences, one layer, one or two directions: what stands between cuBLAS' products, which `_cuda` calls.
//
// gates, (R, T, N, 4H) in the order i f g o, begin as W_ih x; at each step W_hh h is added to one time of each direction, then
// a kernel makes them gates. All rows take every step; a row that has no such step keeps its state. Step s stands at time s,
// or, backwards, at time T - 1 - s.
#include "device.h"

// What R directions of N rows share. `reverse`: with one direction, backwards; the second direction always is.
struct Step {
  int64_t r, n, j, t;
  bool live;
  RHEME_FN Step here(int64_t i, int64_t s, int64_t time, int64_t batch, int64_t hidden, int64_t reverse,
                     const int64_t* lengths) {
    const int64_t j = i % hidden, n = i / hidden % batch, r = i / hidden / batch;
    const int64_t t = r == 1 || reverse ? time - 1 - s : s;
    return {r, n, j, t, t < length_of(lengths, n, time)};
  }
};

// h and c (R, N, H) are the state, updated. gates (of all times) and cells (R, T, N, H, or null) are written where a step is.
extern "C" __global__ void lstm_step(int64_t s, int64_t directions, int64_t time, int64_t batch, int64_t hidden,
                                     int64_t reverse, const int64_t* lengths, const T* bias, T* gates, T* cells, T* h, T* c,
                                     T* y) {
  RHEME_EACH(i, directions * batch * hidden) {
    const Step p = Step::here(i, s, time, batch, hidden, reverse, lengths);
    T* out = y + (p.t * batch + p.n) * directions * hidden + p.r * hidden + p.j;
    if (!p.live) {
      *out = T(0);
      continue;
    }
    const int64_t at = (p.r * time + p.t) * batch + p.n;
    T* g = gates + at * 4 * hidden + p.j;
    T gi = g[0], gf = g[hidden], gg = g[2 * hidden], go = g[3 * hidden];
    if (bias) {
      const T* b = bias + p.r * 4 * hidden + p.j;
      gi = gi + b[0], gf = gf + b[hidden], gg = gg + b[2 * hidden], go = go + b[3 * hidden];
    }
    T cell = c[i], output;
    lstm_cell<S>(gi, gf, gg, go, cell, output);
    c[i] = cell;
    h[i] = output;
    *out = output;
    if (!cells) continue;
    cells[at * hidden + p.j] = cell;
    g[0] = gi;
    g[hidden] = gf;
    g[2 * hidden] = gg;
    g[3 * hidden] = go;
  }
}

// dgates (R, T, N, 4H): the gradients of the pre-activations at this step, 0 where a row has none. dh and dc (R, N, H): in, the
// gradients of the state after the step; out, dc of the state before it and dh without W_hh^T dgates, which is added next.
extern "C" __global__ void lstm_step_backward(int64_t s, int64_t directions, int64_t time, int64_t batch, int64_t hidden,
                                              int64_t reverse, const int64_t* lengths, const T* dy, const T* gates,
                                              const T* cells, const T* c0, T* dgates, T* dh, T* dc) {
  RHEME_EACH(i, directions * batch * hidden) {
    const Step p = Step::here(i, s, time, batch, hidden, reverse, lengths);
    const int64_t at = (p.r * time + p.t) * batch + p.n;
    T* d = dgates + at * 4 * hidden + p.j;
    T gi = T(0), gf = T(0), gg = T(0), go = T(0);
    if (p.live) {
      const T* g = gates + at * 4 * hidden + p.j;
      gi = g[0], gf = g[hidden], gg = g[2 * hidden], go = g[3 * hidden];
      const int64_t before = p.r == 1 || reverse ? p.t + 1 : p.t - 1;
      const bool first = before < 0 || before >= length_of(lengths, p.n, time);
      const T previous = first ? (c0 ? c0[i] : T(0)) : cells[((p.r * time + before) * batch + p.n) * hidden + p.j];
      const T dhidden = dy[(p.t * batch + p.n) * directions * hidden + p.r * hidden + p.j] + dh[i];
      lstm_cell_backward<S>(gi, gf, gg, go, cells[at * hidden + p.j], previous, dhidden, dc[i]);
      dh[i] = T(0);
    }
    d[0] = gi;
    d[hidden] = gf;
    d[2 * hidden] = gg;
    d[3 * hidden] = go;
  }
}

// out (R, T, N, H): the hidden state before each step; 0 where a row has no such step.
extern "C" __global__ void lstm_previous(int64_t directions, int64_t time, int64_t batch, int64_t hidden, int64_t reverse,
                                         const int64_t* lengths, const T* y, const T* h0, T* out) {
  RHEME_EACH(i, directions * time * batch * hidden) {
    const int64_t j = i % hidden, n = i / hidden % batch, t = i / hidden / batch % time, r = i / hidden / batch / time;
    const int64_t length = length_of(lengths, n, time), before = r == 1 || reverse ? t + 1 : t - 1;
    T h = T(0);
    if (t < length) {
      if (before >= 0 && before < length)
        h = y[(before * batch + n) * directions * hidden + r * hidden + j];
      else if (h0)
        h = h0[(r * batch + n) * hidden + j];
    }
    out[i] = h;
  }
}

// x (T, N, I) with zeros past each row's length: what stands there is nobody's, and 0 times it must be 0.
extern "C" __global__ void zero_padding(int64_t time, int64_t batch, int64_t input, const int64_t* lengths, const T* x, T* y) {
  RHEME_EACH(i, time * batch * input) y[i] = i / input / batch < lengths[i / input % batch] ? x[i] : T(0);
}
