// The cells: forward equations and the pullback of one step, told apart by path. Pure functions, no DOM.
//
// A network is {cell, T, D, H, x (T·D), initial (S·H), weight_ih (G·H·D), weight_hh (G·H·H), bias_ih, bias_hh (G·H each),
// drive (T·G·H or null: what is added to the pre-activations at each step)}. `run` makes a trace of it: the carries
// (T + 1, S·H), `logits` and `values` of each gate (T·H), and the one-step factors `keep` (T·H) and `local` (T, P, H).
//
// pull(trace, steps, first, count, λ, out): `count` rows of λ (S·H each) from row `first` on, row r at step steps[r], 0-based →
// out.pre (count, P·H), out.paths (ports, count, H; each at the state that the port reads), out.carry (count, S·H).

function blank(network, cell) {
  const { T, H } = network;
  const trace = { ...network, cell, P: cell.pre.length, S: cell.states.length, values: {}, logits: {} };
  trace.carries = new Float64Array((T + 1) * trace.S * H);
  trace.carries.set(network.initial);
  trace.keep = new Float64Array(T * H);
  trace.local = new Float64Array(T * trace.P * H);
  for (const gate of cell.gates) trace.values[gate] = new Float64Array(T * H);
  for (const gate of cell.sigmoids) trace.logits[gate] = new Float64Array(T * H);
  return trace;
}

// W_ih x_k + b_ih + drive_k into `into` (G·H).
function intoGates(network, k, into) {
  const { D, x, weight_ih, bias_ih, drive } = network, size = into.length;
  for (let i = 0; i < size; i++) into[i] = bias_ih[i] + (drive ? drive[k * size + i] : 0);
  addProduct(weight_ih, 0, size, D, x, k * D, into, 0);
}

// Room for what `pull` makes of up to `count` rows.
function room(trace, count) {
  const { cell, S, P, H } = trace;
  return {
    pre: new Float64Array(count * P * H),
    paths: new Float64Array(count * cell.ports.length * H),
    carry: new Float64Array(count * S * H),
    work: new Float64Array(count * H),
  };
}

// The paths through the recurrent weights, added up into the carry of a cell with one state.
function addUp(paths, ports, size, carry) {
  for (let j = 0; j < size; j++) {
    let sum = 0;
    for (let p = 0; p < ports; p++) sum += paths[p * size + j];
    carry[j] = sum;
  }
}

// --- GRU, shared -------------------------------------------------------------------------------------------------

const GRU = {
  gates: ["r", "z", "n"],
  sigmoids: ["r", "z"],
  states: ["h"],
  ports: ["carry", "update", "candidate", "reset"],
  keepGate: "z",
};

// z, 1 − z and z(1 − z) of a logit, each to full precision; `keeps`: whether z multiplies the old state.
function kept(logit, keeps) {
  const z = sigmoid(logit), rest = sigmoid(-logit);
  return { z, keep: keeps ? z : rest, take: keeps ? rest : z, slope: z * rest };
}

// --- GRU, reset gate after the product: PyTorch ------------------------------------------------------------------

// r = σ(…), z = σ(…), m = W_hn h₋ + b_hn, n = tanh(W_in x + b_in + r∘m), h = z∘h₋ + (1 − z)∘n
function gruAfter(keeps = true) {
  const cell = {
    ...GRU,
    keeps,
    pre: ["r", "z", "m", "n"],
    products: {
      weight_ih: { r: ["x", 0], z: ["x", 1], n: ["x", 3] },
      weight_hh: { r: ["h", 0], z: ["h", 1], n: ["h", 2] },
      bias_ih: { r: ["1", 0], z: ["1", 1], n: ["1", 3] },
      bias_hh: { r: ["1", 0], z: ["1", 1], n: ["1", 2] },
    },
  };
  cell.run = (network) => {
    const trace = blank(network, cell), { T, H, carries, local } = trace;
    const into = new Float64Array(3 * H), back = new Float64Array(3 * H);
    for (let k = 0; k < T; k++) {
      intoGates(network, k, into);
      back.set(network.bias_hh);
      addProduct(network.weight_hh, 0, 3 * H, H, carries, k * H, back, 0);
      for (let j = 0; j < H; j++) {
        const at = k * H + j, before = carries[at], m = back[2 * H + j];
        const r = kept(into[j] + back[j], true), z = kept(into[H + j] + back[H + j], keeps);
        const a = into[2 * H + j] + r.z * m, n = Math.tanh(a), byN = z.take * tanhSlope(a);
        carries[at + H] = z.keep * before + z.take * n;
        trace.logits.r[at] = into[j] + back[j];
        trace.logits.z[at] = into[H + j] + back[H + j];
        trace.values.r[at] = r.z;
        trace.values.z[at] = z.z;
        trace.values.n[at] = n;
        trace.keep[at] = z.keep;
        const first = k * 4 * H + j;
        local[first] = byN * m * r.slope;
        local[first + H] = (keeps ? before - n : n - before) * z.slope;
        local[first + 2 * H] = byN * r.z;
        local[first + 3 * H] = byN;
      }
    }
    return trace;
  };
  cell.pull = (trace, steps, first, count, lambda, out) => {
    const { H, local, keep, weight_hh } = trace, { pre, paths } = out, size = count * H;
    paths.fill(0, 0, 4 * size);
    for (let r = 0; r < count; r++) {
      const k = steps[first + r], at = (first + r) * H;
      for (let p = 0; p < 4; p++) {
        for (let j = 0; j < H; j++) pre[(r * 4 + p) * H + j] = lambda[at + j] * local[(k * 4 + p) * H + j];
      }
      for (let j = 0; j < H; j++) paths[r * H + j] = lambda[at + j] * keep[k * H + j];
    }
    addBack(count, weight_hh, H * H, H, H, pre, H, 4 * H, paths, size); // update: z
    addBack(count, weight_hh, 2 * H * H, H, H, pre, 2 * H, 4 * H, paths, 2 * size); // candidate: m
    addBack(count, weight_hh, 0, H, H, pre, 0, 4 * H, paths, 3 * size); // reset: r
    addUp(paths, 4, size, out.carry);
  };
  return cell;
}

// --- GRU, reset gate before the product: Cho et al. 2014 v3, the cell of the question ------------------------------

// r = σ(…), z = σ(…), n = tanh(W_in x + b + W_hn (r∘h₋)), h = z∘h₋ + (1 − z)∘n
function gruBefore(keeps = true) {
  const cell = {
    ...GRU,
    keeps,
    pre: ["r", "z", "n"],
    products: {
      weight_ih: { r: ["x", 0], z: ["x", 1], n: ["x", 2] },
      weight_hh: { r: ["h", 0], z: ["h", 1], n: ["rh", 2] },
      bias_ih: { r: ["1", 0], z: ["1", 1], n: ["1", 2] },
      bias_hh: { r: ["1", 0], z: ["1", 1], n: ["1", 2] },
    },
  };
  cell.run = (network) => {
    const trace = blank(network, cell), { T, H, carries, local } = trace;
    const into = new Float64Array(3 * H), back = new Float64Array(3 * H);
    trace.rh = new Float64Array(T * H);
    trace.byR = new Float64Array(T * H);
    for (let k = 0; k < T; k++) {
      intoGates(network, k, into);
      back.set(network.bias_hh);
      addProduct(network.weight_hh, 0, 2 * H, H, carries, k * H, back, 0);
      for (let j = 0; j < H; j++) {
        const at = k * H + j, r = kept(into[j] + back[j], true);
        trace.logits.r[at] = into[j] + back[j];
        trace.values.r[at] = r.z;
        trace.rh[at] = r.z * carries[at];
        trace.byR[at] = carries[at] * r.slope;
      }
      addProduct(network.weight_hh, 2 * H * H, H, H, trace.rh, k * H, back, 2 * H);
      for (let j = 0; j < H; j++) {
        const at = k * H + j, before = carries[at], logit = into[H + j] + back[H + j], z = kept(logit, keeps);
        const a = into[2 * H + j] + back[2 * H + j], n = Math.tanh(a);
        carries[at + H] = z.keep * before + z.take * n;
        trace.logits.z[at] = logit;
        trace.values.z[at] = z.z;
        trace.values.n[at] = n;
        trace.keep[at] = z.keep;
        // of r, which acts behind W_n, the pullback itself makes the adjoint
        local[(k * 3 + 1) * H + j] = (keeps ? before - n : n - before) * z.slope;
        local[(k * 3 + 2) * H + j] = z.take * tanhSlope(a);
      }
    }
    return trace;
  };
  cell.pull = (trace, steps, first, count, lambda, out) => {
    const { H, local, keep, weight_hh, values, byR } = trace, { pre, paths, work } = out, size = count * H;
    paths.fill(0, 0, 4 * size);
    work.fill(0, 0, size);
    for (let r = 0; r < count; r++) {
      const k = steps[first + r], at = (first + r) * H;
      for (let p = 1; p < 3; p++) {
        for (let j = 0; j < H; j++) pre[(r * 3 + p) * H + j] = lambda[at + j] * local[(k * 3 + p) * H + j];
      }
    }
    addBack(count, weight_hh, 2 * H * H, H, H, pre, 2 * H, 3 * H, work, 0); // the adjoint of r∘h₋
    for (let r = 0; r < count; r++) {
      const k = steps[first + r], at = (first + r) * H;
      for (let j = 0; j < H; j++) {
        const product = work[r * H + j];
        paths[r * H + j] = lambda[at + j] * keep[k * H + j];
        paths[2 * size + r * H + j] = product * values.r[k * H + j];
        pre[r * 3 * H + j] = product * byR[k * H + j];
      }
    }
    addBack(count, weight_hh, H * H, H, H, pre, H, 3 * H, paths, size);
    addBack(count, weight_hh, 0, H, H, pre, 0, 3 * H, paths, 3 * size);
    addUp(paths, 4, size, out.carry);
  };
  return cell;
}

// --- LSTM ----------------------------------------------------------------------------------------------------------

// c = f∘c₋ + i∘g, h = o∘tanh(c); the carry is (h, c). Paths and units are told on d = λᶜ + λʰ∘o∘tanh′(c).
function lstm() {
  const cell = {
    gates: ["i", "f", "g", "o"],
    sigmoids: ["i", "f", "o"],
    states: ["h", "c"],
    ports: ["carry", "input", "forget", "candidate", "output"],
    pre: ["i", "f", "g", "o"],
    keepGate: "f",
    keeps: true,
    products: {},
  };
  for (const [parameter, operand] of [["weight_ih", "x"], ["weight_hh", "h"], ["bias_ih", "1"], ["bias_hh", "1"]]) {
    cell.products[parameter] = Object.fromEntries(cell.gates.map((gate, p) => [gate, [operand, p]]));
  }
  cell.run = (network) => {
    const trace = blank(network, cell), { T, H, carries, local } = trace, into = new Float64Array(4 * H);
    trace.slope = new Float64Array(T * H); // ∂h/∂c = o∘tanh′(c)
    for (let k = 0; k < T; k++) {
      intoGates(network, k, into);
      for (let i = 0; i < 4 * H; i++) into[i] += network.bias_hh[i];
      addProduct(network.weight_hh, 0, 4 * H, H, carries, k * 2 * H, into, 0);
      for (let j = 0; j < H; j++) {
        const at = k * H + j, before = carries[k * 2 * H + H + j];
        const i = kept(into[j], true), f = kept(into[H + j], true), o = kept(into[3 * H + j], true);
        const a = into[2 * H + j], g = Math.tanh(a), c = f.z * before + i.z * g, tanhC = Math.tanh(c);
        carries[(k + 1) * 2 * H + j] = o.z * tanhC;
        carries[(k + 1) * 2 * H + H + j] = c;
        trace.logits.i[at] = into[j];
        trace.logits.f[at] = into[H + j];
        trace.logits.o[at] = into[3 * H + j];
        trace.values.i[at] = i.z;
        trace.values.f[at] = f.z;
        trace.values.g[at] = g;
        trace.values.o[at] = o.z;
        trace.keep[at] = f.z;
        trace.slope[at] = o.z * tanhSlope(c);
        const first = k * 4 * H + j;
        local[first] = g * i.slope;
        local[first + H] = before * f.slope;
        local[first + 2 * H] = i.z * tanhSlope(a);
        local[first + 3 * H] = tanhC * o.slope;
      }
    }
    return trace;
  };
  cell.pull = (trace, steps, first, count, lambda, out) => {
    const { H, local, keep, slope, weight_hh } = trace, { pre, paths, carry } = out, size = count * H;
    paths.fill(0, 0, 5 * size);
    for (let r = 0; r < count; r++) {
      const k = steps[first + r], at = (first + r) * 2 * H, to = r * 4 * H;
      for (let j = 0; j < H; j++) {
        const h = lambda[at + j], d = lambda[at + H + j] + h * slope[k * H + j], from = k * 4 * H + j;
        pre[to + j] = d * local[from];
        pre[to + H + j] = d * local[from + H];
        pre[to + 2 * H + j] = d * local[from + 2 * H];
        pre[to + 3 * H + j] = h * local[from + 3 * H];
        paths[r * H + j] = d * keep[k * H + j];
      }
    }
    for (let p = 0; p < 4; p++) addBack(count, weight_hh, p * H * H, H, H, pre, p * H, 4 * H, paths, (p + 1) * size);
    for (let r = 0; r < count; r++) {
      for (let j = 0; j < H; j++) {
        const at = r * H + j;
        carry[r * 2 * H + j] = paths[size + at] + paths[2 * size + at] + paths[3 * size + at] + paths[4 * size + at];
        carry[r * 2 * H + H + j] = paths[at];
      }
    }
  };
  return cell;
}

// --- Elman ---------------------------------------------------------------------------------------------------------

function rnn(activation = "tanh") {
  const cell = {
    gates: ["a"],
    sigmoids: [],
    states: ["h"],
    ports: ["recurrent"],
    pre: ["a"],
    keepGate: null,
    keeps: true,
    products: { weight_ih: { a: ["x", 0] }, weight_hh: { a: ["h", 0] }, bias_ih: { a: ["1", 0] }, bias_hh: { a: ["1", 0] } },
  };
  cell.run = (network) => {
    const trace = blank(network, cell), { T, H, carries } = trace, into = new Float64Array(H);
    for (let k = 0; k < T; k++) {
      intoGates(network, k, into);
      for (let i = 0; i < H; i++) into[i] += network.bias_hh[i];
      addProduct(network.weight_hh, 0, H, H, carries, k * H, into, 0);
      for (let j = 0; j < H; j++) {
        const at = k * H + j, a = into[j], tanh = activation === "tanh";
        carries[at + H] = trace.values.a[at] = tanh ? Math.tanh(a) : Math.max(a, 0);
        trace.local[at] = tanh ? tanhSlope(a) : a > 0 ? 1 : 0;
      }
    }
    return trace;
  };
  cell.pull = (trace, steps, first, count, lambda, out) => {
    const { H, local, weight_hh } = trace, { pre, paths } = out, size = count * H;
    for (let r = 0; r < count; r++) {
      const k = steps[first + r], at = (first + r) * H;
      for (let j = 0; j < H; j++) pre[r * H + j] = lambda[at + j] * local[k * H + j];
    }
    paths.fill(0, 0, size);
    addBack(count, weight_hh, 0, H, H, pre, 0, H, paths, 0);
    addUp(paths, 1, size, out.carry);
  };
  return cell;
}

// By the names of throughtime.cells.REGISTRY.
const CELLS = {
  "gru-reset-before": gruBefore(),
  "gru-reset-before-z-takes": gruBefore(false),
  gru: gruAfter(),
  "gru-z-takes": gruAfter(false),
  lstm: lstm(),
  "rnn-tanh": rnn(),
  "rnn-relu": rnn("relu"),
};

// --- what all cells share ------------------------------------------------------------------------------------------

// The total adjoint of unit j: what paths and units are told on.
function totalAt(trace, k, lambda, at, j) {
  return trace.S === 1 ? lambda[at + j] : lambda[at + trace.H + j] + lambda[at + j] * trace.slope[k * trace.H + j];
}

// What a parameter multiplies at step k: [array, offset, width].
function operandAt(trace, operand, k) {
  const { H, D, S } = trace;
  if (operand === "x") return [trace.x, k * D, D];
  if (operand === "h") return [trace.carries, k * S * H, H];
  if (operand === "rh") return [trace.rh, k * H, H];
  return [ONE, 0, 1];
}
const ONE = new Float64Array([1]);

// The paths of the one-step Jacobian at step k: {port: (S·H, H)}, rows the new carry, columns the state the port reads.
function jacobianPaths(trace, k) {
  const { cell, S, H } = trace, size = S * H, units = new Float64Array(size * size), out = room(trace, size);
  for (let i = 0; i < size; i++) units[i * size + i] = 1;
  cell.pull(trace, new Int32Array(size).fill(k), 0, size, units, out);
  return Object.fromEntries(cell.ports.map((port, p) => [port, out.paths.slice(p * size * H, (p + 1) * size * H)]));
}
