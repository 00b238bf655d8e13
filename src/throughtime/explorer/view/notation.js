// How numbers, lags and parameters are written.

const SUPERSCRIPTS = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

function powerOfTen(exponent) {
  if (exponent === 0) return "1";
  if (exponent === 1) return "10";
  return `10${[...String(exponent)].map((letter) => SUPERSCRIPTS[letter]).join("")}`;
}

// 10^log10 in words a reader takes in, also where the number itself would underflow.
function fromLog10(log10) {
  if (Number.isNaN(log10)) return "–";
  if (!Number.isFinite(log10)) return log10 < 0 ? "0" : "∞";
  if (log10 >= -3 && log10 < 4) return number(10 ** log10, 2);
  let exponent = Math.floor(log10), mantissa = Number((10 ** (log10 - exponent)).toFixed(1));
  if (mantissa >= 10) [exponent, mantissa] = [exponent + 1, mantissa / 10];
  return `${mantissa}\u00a0×\u00a0${powerOfTen(exponent)}`; // a number is not broken over two lines
}

function number(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  if (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) return (value < 0 ? "−" : "") + fromLog10(Math.log10(Math.abs(value)));
  const decimals = Math.max(digits - 1 - Math.floor(Math.log10(Math.abs(value))), 0);
  const written = value.toFixed(decimals);
  return (written.includes(".") ? written.replace(/\.?0+$/, "") : written).replace("-", "−");
}

// Shares near 1 need their distance from 1: 99.98 % and not 100 %.
function percent(share) {
  if (!Number.isFinite(share)) return "–";
  const value = share * 100;
  if (Math.abs(value) > 99 && Math.abs(value) < 100) return `${number(value, Math.min(6, 2 + Math.ceil(-Math.log10(100 - Math.abs(value)) + 1)))} %`;
  return `${number(value, 2)}\u00a0%`;
}

function runs(lags) {
  const found = [];
  for (const lag of lags) {
    const last = found[found.length - 1];
    if (last && lag === last[1] + 1) last[1] = lag;
    else found.push([lag, lag]);
  }
  return found;
}

function lagWords(lags) {
  const spans = runs(lags);
  if (!spans.length) return "no lag";
  if (spans.length > 3) return `${lags.length} lags, ${lags[0]} to ${lags[lags.length - 1]}`;
  const words = spans.map(([a, b]) => (a === b ? `${a}` : `${a}–${b}`)).join(", ");
  return lags.length === 1 ? `lag ${words}` : `lags ${words}`;
}

// What the sum over k is called: U, W and b of the question, with torch's name beside it.
const LETTERS = { weight_ih: "U", weight_hh: "W", bias_ih: "b", bias_hh: "b′" };
function gateName(cell, gate) {
  return cell.startsWith("gru-reset-before") && gate === "n" ? "h" : gate;
}
function symbol(cell, parameter, gate) {
  return CELLS[cell].gates.length === 1 ? LETTERS[parameter] : `${LETTERS[parameter]}_${gateName(cell, gate)}`;
}

const CELL_NAMES = {
  "gru-reset-before": "GRU of the question",
  "gru-reset-before-z-takes": "GRU, reset before the product, z takes",
  gru: "GRU of PyTorch",
  "gru-z-takes": "GRU, reset after the product, z takes",
  lstm: "LSTM",
  "rnn-tanh": "Elman RNN (tanh)",
  "rnn-relu": "Elman RNN (relu)",
};
const GATE_NAMES = { z: "update gate z", r: "reset gate r", f: "forget gate f", i: "input gate i", o: "output gate o", n: "candidate", g: "candidate g", a: "state" };
