// The adjoints of all loss steps, lag by lag, and the terms of each weight's gradient. Pure functions, no DOM.
//
// Rows are carried as floats times a power of two, which is exact, so that 1e-60 is 1e-60 and not 0. Definitions are those of
// docs/definitions.md: lag τ = t − k, λ[t, k] the adjoint, G(τ) = Σ_t λ[t, t − τ] ∂⁺s/∂θ.

const FAR = 2 ** 40; // a row is rescaled when its largest entry has left 2^±40
const DEAD = -(2 ** 30); // the exponent of a row that is zero

// trace: of `cell.run`; g (T·H): what enters at each step; gc ((S − 1)·H or null): what enters at the last c.
// → by lag: log10 sums Σ‖λ‖² (`square`), pairs, `entering` Σ‖λ[t, t]‖² of the pairs that reach back so far, `units` (lag·H),
// path shares; and the adjoints of the pre-activations, `pre` (rows, P·H) times 2^`power`, `first[τ]` the first row of a lag.
// store: room for `pre` to be used again by the next sweep, which then takes this one's away.
function sweep(trace, g, gc = null, store = null) {
  const { cell, T, H, P, S } = trace, size = S * H, ports = cell.ports.length;
  const origins = [];
  for (let t = 0; t < T; t++) {
    let enters = t === T - 1 && gc !== null && gc.some((value) => value !== 0);
    for (let j = 0; j < H && !enters; j++) enters = g[t * H + j] !== 0;
    if (enters) origins.push(t);
  }
  const first = new Int32Array(T + 1);
  for (let lag = 0; lag < T; lag++) first[lag + 1] = first[lag] + origins.filter((t) => t >= lag).length;
  const R = origins.length, rows = new Float64Array(R * size), power = new Int32Array(R);
  origins.forEach((t, r) => {
    rows.set(g.subarray(t * H, (t + 1) * H), r * size);
    if (S > 1 && gc !== null && t === T - 1) rows.set(gc, r * size + H);
  });
  const result = {
    trace, origins, first,
    pre: store?.length === first[T] * P * H ? store : new Float64Array(first[T] * P * H),
    power: new Int32Array(first[T]),
    square: { mantissa: new Float64Array(T), exponent: new Int32Array(T).fill(DEAD) },
    total: new Float64Array(T), // Σ‖total adjoint‖², times 2^exponent of `square`
    units: new Float64Array(T * H).fill(NaN), // log10 Σ λ_j²
    entering: new Float64Array(T),
    enteringTotal: new Float64Array(T), // as `entering`, of the total adjoint
    pairs: new Int32Array(T),
    paths: Object.fromEntries(cell.ports.map((port) => [port, new Float64Array(T).fill(NaN)])),
  };
  const entered = origins.map((t, r) => squares(rows, r * size, size));
  const enteredTotal = origins.map((t, r) => {
    let sum = 0;
    for (let j = 0; j < H; j++) sum += totalAt(trace, t, rows, r * size, j) ** 2;
    return sum;
  });
  for (let r = 0; r < R; r++) rescale(rows, r * size, size, power, r, largest(rows, r * size, size));
  const out = room(trace, R), unit = new Float64Array(H), inner = new Float64Array(ports), steps = new Int32Array(R);
  const along = new Float64Array(H), { carry } = out;
  for (let lag = 0; lag < T; lag++) {
    const live = first[lag + 1] - first[lag], start = R - live; // the rows of later origins live longest
    if (live === 0) continue;
    let top = DEAD;
    for (let r = start; r < R; r++) {
      if (power[r] > top) top = power[r];
      steps[r] = origins[r] - lag;
    }
    out.pre = result.pre.subarray(first[lag] * P * H, first[lag + 1] * P * H);
    cell.pull(trace, steps, start, live, rows, out);
    let sum = 0, whole = 0;
    unit.fill(0);
    inner.fill(0);
    for (let r = start; r < R; r++) {
      const k = steps[r], at = r * size, scale = powerOfTwo(power[r] - top), place = r - start;
      result.entering[lag] += entered[r];
      result.enteringTotal[lag] += enteredTotal[r];
      result.power[first[lag] + place] = power[r];
      if (S === 1) {
        for (let j = 0; j < H; j++) {
          const value = scale * rows[at + j];
          unit[j] += value * value;
        }
      } else {
        sum += scale * scale * squares(rows, at, size);
        for (let j = 0; j < H; j++) {
          const value = scale * totalAt(trace, k, rows, at, j);
          unit[j] += value * value;
        }
      }
      if (k > 0) addPathProducts(trace, k - 1, out, place, live, scale * scale, along, inner);
      let peak = 0;
      for (let j = 0, from = place * size; j < size; j++) {
        const value = carry[from + j], magnitude = value < 0 ? -value : value;
        rows[at + j] = value;
        if (magnitude > peak) peak = magnitude;
      }
      rescale(rows, at, size, power, r, peak);
    }
    for (let j = 0; j < H; j++) result.total[lag] += unit[j];
    if (S === 1) sum = result.total[lag];
    for (let p = 0; p < ports; p++) whole += inner[p]; // Σ⟨λ_p, λ⟩ = ⟨λ, λ⟩
    result.pairs[lag] = live;
    result.square.mantissa[lag] = sum;
    result.square.exponent[lag] = 2 * top;
    for (let j = 0; j < H; j++) result.units[lag * H + j] = log10Of(unit[j], 2 * top);
    if (lag + 1 < T && whole > 0) cell.ports.forEach((port, p) => (result.paths[port][lag + 1] = inner[p] / whole));
  }
  return result;
}

// Of one row that lands at step k: inner[p] += weight · ⟨λ_p, λ⟩ of each path, told on the total adjoint.
function addPathProducts(trace, k, { paths, carry }, place, live, weight, along, inner) {
  const { H, S, slope } = trace, ports = inner.length;
  if (S === 1) for (let j = 0; j < H; j++) along[j] = carry[place * H + j];
  else for (let j = 0; j < H; j++) along[j] = totalAt(trace, k, carry, place * S * H, j);
  for (let p = 0; p < ports; p++) {
    const from = (p * live + place) * H;
    let sum = 0;
    // the carry path lands on c of an LSTM, the others on h
    if (S > 1 && p > 0) for (let j = 0; j < H; j++) sum += paths[from + j] * slope[k * H + j] * along[j];
    else for (let j = 0; j < H; j++) sum += paths[from + j] * along[j];
    inner[p] += weight * sum;
  }
}

function largest(values, at, count) {
  let peak = 0;
  for (let j = at; j < at + count; j++) peak = Math.max(peak, Math.abs(values[j]));
  return peak;
}

function squares(values, at, count) {
  let sum = 0;
  for (let j = at; j < at + count; j++) sum += values[j] * values[j];
  return sum;
}

// Brings a row, whose largest entry is `peak`, back near 1; `power` [r] counts what was taken out.
function rescale(rows, at, size, power, r, peak) {
  if (peak === 0) power[r] = DEAD;
  else if (peak > FAR || peak < 1 / FAR) {
    const shift = Math.floor(Math.log2(peak)), half = shift >> 1;
    const a = powerOfTwo(-half), b = powerOfTwo(half - shift);
    for (let j = at; j < at + size; j++) rows[j] = rows[j] * a * b;
    power[r] += shift;
  }
}

// What one gate block of a parameter gets: by lag log10 ‖G(τ)‖ and the parts of its share, ⟨G(τ), G⟩, with ⟨G, G⟩; `rows`
// (lag·H): log10 of the norm of each unit's row of G(τ).
function termsOfBlock(swept, parameter, gate) {
  const { trace, origins, first, pre, power } = swept, { cell, T, H, P } = trace;
  const [operand, place] = cell.products[parameter][gate];
  const width = operandAt(trace, operand, 0)[2], R = origins.length;
  const at = (row) => (row * P + place) * H;

  // G = Σ_k (Σ_t p[t, k]) ⊗ operand_k, then G operand_k of every step: an inner product with G costs H from there on.
  const summed = new Float64Array(T * H), G = new Float64Array(H * width), seen = new Float64Array(T * H);
  for (let lag = 0; lag < T; lag++) {
    for (let row = first[lag]; row < first[lag + 1]; row++) {
      const k = origins[R - first[lag + 1] + row] - lag, scale = powerOfTwo(power[row]), from = at(row);
      if (scale !== 0) for (let j = 0; j < H; j++) summed[k * H + j] += scale * pre[from + j];
    }
  }
  for (let k = 0; k < T; k++) {
    const [values, from] = operandAt(trace, operand, k);
    addMatrices(H, width, 1, summed, k * H, 1, 0, values, from, 0, G, 0, width);
  }
  for (let k = 0; k < T; k++) addProduct(G, 0, H, width, ...operandAt(trace, operand, k).slice(0, 2), seen, k * H);

  const found = { square: new Float64Array(T), exponent: new Int32Array(T), inner: new Float64Array(T), whole: squares(G, 0, G.length) };
  found.rows = new Float64Array(T * H).fill(NaN);
  const term = new Float64Array(H * width), scaled = new Float64Array(R * H), met = new Float64Array(R * width);
  for (let lag = 0; lag < T; lag++) {
    const live = first[lag + 1] - first[lag];
    let top = DEAD, inner = 0;
    for (let row = first[lag]; row < first[lag + 1]; row++) if (power[row] > top) top = power[row];
    for (let place = 0; place < live; place++) {
      const row = first[lag] + place, k = origins[R - live + place] - lag, scale = powerOfTwo(power[row] - top), from = at(row);
      const [values, there] = operandAt(trace, operand, k);
      for (let j = 0; j < H; j++) {
        scaled[place * H + j] = scale * pre[from + j];
        inner += scaled[place * H + j] * seen[k * H + j];
      }
      for (let j = 0; j < width; j++) met[place * width + j] = values[there + j];
    }
    term.fill(0);
    addMatrices(H, width, live, scaled, 0, 1, H, met, 0, width, term, 0, width);
    // Of 2^top · term; a block may be far smaller than the row it came from, so its own largest entry is taken out first.
    let peak = 0;
    for (let j = 0; j < term.length; j++) peak = Math.max(peak, Math.abs(term[j]));
    const shift = peak > 0 ? Math.floor(Math.log2(peak)) : 0, unscale = powerOfTwo(-shift);
    for (let j = 0; j < H; j++) {
      let sum = 0;
      for (let i = j * width; i < (j + 1) * width; i++) sum += (term[i] * unscale) ** 2;
      found.square[lag] += sum;
      if (first[lag + 1] > first[lag]) found.rows[lag * H + j] = 0.5 * log10Of(sum, 2 * (top + shift));
    }
    found.exponent[lag] = peak > 0 ? 2 * (top + shift) : DEAD;
    found.inner[lag] = top === DEAD ? 0 : inner * powerOfTwo(top);
  }
  return found;
}

// By lag, of a parameter's gate block, or of the whole tensor where gate is null: {log10_norm, share, rows}.
function terms(swept, parameter, gate = null) {
  const { trace, first } = swept, T = trace.T;
  const gates = gate === null ? trace.cell.gates : [gate];
  const blocks = gates.map((name) => termsOfBlock(swept, parameter, name));
  const whole = blocks.reduce((sum, block) => sum + block.whole, 0);
  const log10_norm = new Float64Array(T), share = new Float64Array(T);
  for (let lag = 0; lag < T; lag++) {
    const top = Math.max(...blocks.map((block) => block.exponent[lag]));
    let sum = 0, inner = 0;
    for (const block of blocks) {
      sum += block.square[lag] * powerOfTwo(block.exponent[lag] - top);
      inner += block.inner[lag];
    }
    log10_norm[lag] = first[lag + 1] === first[lag] ? NaN : 0.5 * log10Of(sum, top);
    share[lag] = inner / whole;
  }
  return { log10_norm, share, rows: blocks.length === 1 ? blocks[0].rows : null, norm: Math.sqrt(whole) };
}
