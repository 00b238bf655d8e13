// Sigmoid, tanh and products with weights. Matrices are row-major Float64Array. Pure functions, no DOM.

function sigmoid(a) {
  if (a >= 0) return 1 / (1 + Math.exp(-a));
  const e = Math.exp(a);
  return e / (1 + e);
}

// ln σ(a), without rounding σ to 1 first.
function logSigmoid(a) {
  return a >= 0 ? -Math.log1p(Math.exp(-a)) : a - Math.log1p(Math.exp(a));
}

// tanh′(a) = sech²(a): near saturation 1 − tanh² would be rounding alone.
function tanhSlope(a) {
  const e = Math.exp(-2 * Math.abs(a));
  return (4 * e) / ((1 + e) * (1 + e));
}

// out[o … o + rows) += W v, W (rows, cols) from w on, v from at on.
function addProduct(W, w, rows, cols, v, at, out, o) {
  for (let i = 0; i < rows; i++) {
    let sum = 0;
    const row = w + i * cols;
    for (let j = 0; j < cols; j++) sum += W[row + j] * v[at + j];
    out[o + i] += sum;
  }
}

// out[o … o + cols) += p W: the way back. Four rows at a time, so that `out` is read and written a quarter as often.
function addTransposed(W, w, rows, cols, p, at, out, o) {
  let i = 0;
  for (; i + 3 < rows; i += 4) {
    const a = p[at + i], b = p[at + i + 1], c = p[at + i + 2], d = p[at + i + 3];
    const first = w + i * cols, second = first + cols, third = second + cols, fourth = third + cols;
    for (let j = 0; j < cols; j++) {
      out[o + j] += a * W[first + j] + b * W[second + j] + c * W[third + j] + d * W[fourth + j];
    }
  }
  for (; i < rows; i++) {
    const a = p[at + i], row = w + i * cols;
    for (let j = 0; j < cols; j++) out[o + j] += a * W[row + j];
  }
}

// 2^n exactly, 0 and Infinity beyond the range of floats.
const POWERS = (() => {
  const table = new Float64Array(2200);
  for (let n = -1074; n <= 1023; n++) table[n + 1100] = 1;
  for (let n = 1; n <= 1023; n++) table[n + 1100] = table[n + 1099] * 2;
  for (let n = -1; n >= -1074; n--) table[n + 1100] = table[n + 1101] / 2;
  return table;
})();
function powerOfTwo(n) {
  return n > 1023 ? Infinity : n < -1074 ? 0 : POWERS[n + 1100];
}

// log10 of mantissa · 2^exponent; −Infinity for zero, also where the number itself would underflow.
function log10Of(mantissa, exponent) {
  return mantissa === 0 ? -Infinity : Math.log10(mantissa) + exponent * Math.log10(2);
}
