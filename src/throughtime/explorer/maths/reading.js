// What is read from a sweep: supply, growth, half-lives, timescales, quantiles. Pure functions, no DOM.

// By lag, log10 of the root mean square of ‖λ[t, t − τ]‖ over the pairs that reach back so far.
function log10Adjoint(swept) {
  return Float64Array.from(swept.pairs, (pairs, lag) =>
    pairs ? 0.5 * (log10Of(swept.square.mantissa[lag], swept.square.exponent[lag]) - Math.log10(pairs)) : NaN);
}

// By lag, log10 of √Σ_t‖λ[t, t − τ]‖²: the transport of the terms.
function log10Transport(swept) {
  return Float64Array.from(swept.pairs, (pairs, lag) =>
    pairs ? 0.5 * log10Of(swept.square.mantissa[lag], swept.square.exponent[lag]) : NaN);
}

// By lag, log10 of the fraction of the gradient that arrives.
function log10Arriving(swept) {
  const adjoint = log10Adjoint(swept);
  return adjoint.map((value, lag) => value - 0.5 * Math.log10(swept.entering[lag] / swept.pairs[lag]));
}

// The same on the total adjoint, of an LSTM the cell's gradient d: what the supply is drawn on.
function log10ArrivingTotal(swept) {
  return Float64Array.from(swept.pairs, (pairs, lag) =>
    pairs ? 0.5 * (log10Of(swept.total[lag], swept.square.exponent[lag]) - Math.log10(swept.enteringTotal[lag])) : NaN);
}

// The mean growth of a series of log10 by lag, from lag 0 to the last that is told: nats a step, e-fold and half-life in
// steps (negative where it grows: then the steps to grow e-fold and to double).
function growth(log10) {
  let last = log10.length - 1;
  while (last > 0 && !Number.isFinite(log10[last])) last--;
  if (last === 0 && log10[1] === -Infinity) last = 1; // cut at once
  const nats = last > 0 ? ((log10[last] - log10[0]) * Math.LN10) / last : NaN;
  return { last, nats, factor: Math.exp(nats), eFold: -1 / nats, halfLife: -Math.LN2 / nats, arriving: log10[last] };
}

// (H) steps: −1/⟨ln keep⟩, by the logits; NaN for a cell without a gate on its carry.
function timescales(trace) {
  const { cell, T, H } = trace, out = new Float64Array(H).fill(NaN);
  if (!cell.keepGate) return out;
  const logits = trace.logits[cell.keepGate];
  for (let j = 0; j < H; j++) {
    let sum = 0;
    for (let k = 0; k < T; k++) sum += logSigmoid((cell.keeps ? 1 : -1) * logits[k * H + j]);
    out[j] = -T / sum;
  }
  return out;
}

// (H): the first lag after its peak at which RMS|λ_j| is half the peak or less; NaN if never.
function halfLives(swept) {
  const { T, H } = swept.trace, out = new Float64Array(H).fill(NaN);
  for (let j = 0; j < H; j++) {
    const of = (lag) => 0.5 * (swept.units[lag * H + j] - Math.log10(swept.pairs[lag]));
    let peak = 0;
    for (let lag = 1; lag < T; lag++) if (of(lag) > of(peak)) peak = lag;
    for (let lag = peak + 1; lag < T && Number.isNaN(out[j]); lag++) {
      if (of(lag) <= of(peak) - Math.log10(2)) out[j] = lag;
    }
  }
  return out;
}

function quantile(sorted, level) {
  const place = level * (sorted.length - 1), low = Math.floor(place);
  return sorted[low] + (place - low) * (sorted[Math.ceil(place)] - sorted[low]);
}

// Size of a matrix that maps H numbers on rows/H times as many: Frobenius norm over √H, so that the identity has size 1.
function sizeOf(matrix, H) {
  return Math.sqrt(squares(matrix, 0, matrix.length) / H);
}
