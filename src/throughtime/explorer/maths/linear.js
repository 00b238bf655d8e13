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

// C[i, j] += Σ_k A[i, k] B[k, j], M × N sums over K. A[i, k] stands at a + i·aRow + k·aStep, B[k, j] at b + k·bStep + j, C[i, j]
// at c + i·cRow + j. Two by four sums at a time stay in registers: the fastest of the forms that were tried.
function addMatrices(M, N, K, A, a, aRow, aStep, B, b, bStep, C, c, cRow) {
  const M2 = M - (M % 2), N4 = N - (N % 4);
  for (let i = 0; i < M2; i += 2) {
    for (let j = 0; j < N4; j += 4) {
      let c00 = 0, c01 = 0, c02 = 0, c03 = 0, c10 = 0, c11 = 0, c12 = 0, c13 = 0;
      let first = a + i * aRow, second = first + aRow, from = b + j;
      for (let k = 0; k < K; k++, first += aStep, second += aStep, from += bStep) {
        const p = A[first], q = A[second];
        let v = B[from];
        c00 += p * v;
        c10 += q * v;
        v = B[from + 1];
        c01 += p * v;
        c11 += q * v;
        v = B[from + 2];
        c02 += p * v;
        c12 += q * v;
        v = B[from + 3];
        c03 += p * v;
        c13 += q * v;
      }
      const to = c + i * cRow + j, next = to + cRow;
      C[to] += c00;
      C[to + 1] += c01;
      C[to + 2] += c02;
      C[to + 3] += c03;
      C[next] += c10;
      C[next + 1] += c11;
      C[next + 2] += c12;
      C[next + 3] += c13;
    }
  }
  for (let i = 0; i < M; i++) {
    for (let j = i < M2 ? N4 : 0; j < N; j++) {
      let sum = 0, at = a + i * aRow, from = b + j;
      for (let k = 0; k < K; k++, at += aStep, from += bStep) sum += A[at] * B[from];
      C[c + i * cRow + j] += sum;
    }
  }
}

// out (count, cols) += rows p (count, rows) through W (rows, cols): the way back. p's rows are `stride` apart.
function addBack(count, W, w, rows, cols, p, at, stride, out, o) {
  addMatrices(count, cols, rows, p, at, stride, 1, W, w, cols, out, o, cols);
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
