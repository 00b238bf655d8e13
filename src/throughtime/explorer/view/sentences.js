// What each chart shows right now, in one line. Pure functions of a frame (see frame.js).

const steps = (value) => `${number(value, 3)} ${number(value, 3) === "1" ? "step" : "steps"}`;

function arrives(log10) {
  if (log10 === -Infinity) return "nothing arrives";
  if (Math.abs(log10) < 0.002) return "all of it arrives";
  return log10 > 0.04 ? `it has grown ${fromLog10(log10)}-fold` : `${fromLog10(log10)} arrives`;
}

function growthWords({ nats, factor, halfLife, last }, reach, what) {
  if (reach === 0) return "The loss is at the first step: there is no step to go back.";
  if (Number.isNaN(nats)) return "The numbers are not finite here.";
  if (nats === -Infinity) return `Here ${what} is cut to exactly 0.`;
  if (nats > 0) return `Each step back multiplies ${what} by ${number(factor)}: it doubles in ${steps(-halfLife)}.`;
  if (-nats * last < 0.005) return `Each step back hands ${what} on nearly whole.`;
  if (halfLife < 1) return `Each step back leaves only ${fromLog10(nats / Math.LN10)} of ${what}.`;
  return `Each step back multiplies ${what} by ${number(factor)}: half-life ${steps(halfLife)}.`;
}

// The growth rate in its three forms; the mean over all lags that are told.
function rateSentence({ growth: { nats, last, eFold, halfLife } }) {
  if (!Number.isFinite(nats)) return "";
  const times = nats > 0 ? `e-fold in ${steps(-eFold)}, doubling in ${steps(-halfLife)}` : `e-fold ${steps(eFold)}, half-life ${steps(halfLife)}`;
  return `Growth rate ${number(nats)} nats a step (× ${fromLog10(nats / Math.LN10)}); ${times}; mean over lags 0–${last}.`;
}

// The sentence of the page, also spoken to screen readers.
function mainSentence(frame) {
  const { headline, growth: grown, needed, standIn, reach, trace } = frame;
  const words = `${standIn ? "Measured: " : ""}${growthWords(grown, reach, trace.S > 1 ? "the cell's gradient d" : "the gradient")}`;
  if (!grown.last) return words;
  const beyond = headline[grown.last + 1] === -Infinity ? " Beyond it nothing arrives." : "";
  const supply = `${words} At lag ${grown.last}, ${arrives(grown.arriving)}.${beyond}`;
  const there = needed.filter((lag) => lag <= grown.last);
  if (!there.length) return supply;
  const [least, most] = [Math.min, Math.max].map((of) => of(...there.map((lag) => headline[lag])));
  const answer = fromLog10(least) === fromLog10(most) ? arrives(least) : `${fromLog10(least)} to ${fromLog10(most)} arrives`;
  return `${supply} The loss asks for ${lagWords(needed)}: ${answer} there.`;
}

function supplySentence({ arriving, lag, trace }) {
  const log10 = arriving[lag], d = trace.S > 1 ? ", on the cell's gradient d" : "";
  if (!Number.isFinite(log10) && log10 !== -Infinity) return "The numbers are not finite here.";
  return log10 > 0.04 ? `At lag ${lag} the gradient has grown ${fromLog10(log10)}-fold${d}.` : `Of the gradient, ${arrives(log10)} at lag ${lag}${d}.`;
}

function demandSentence({ demand, needed, demandSource }) {
  if (!demand) return demandSource;
  const found = needed.length ? `${lagWords(needed)} asked for` : "no demand detected, which is not “not needed”; nothing here says that more is needed";
  return `Demand, by ${demandSource}: ${found}.`;
}

function jacobianSentence({ k, paths, whole }) {
  const parts = paths.map(({ port, size }) => `${port} ${number(size, 2)}`).join(", ");
  return `At step ${k + 1}: ${parts}${paths.length > 1 ? `; together ${number(whole, 2)}` : ""} (identity: 1).`;
}

function termsSentence({ lag, state, swept }, term, transport) {
  const lost = (at) => swept.pairs[at] > 0 && !Number.isFinite(term.log10_norm[at]) && term.log10_norm[at] !== -Infinity;
  if (lost(0) || lost(lag) || Number.isNaN(term.norm)) return "The terms are not finite here.";
  const total = summedNorms(term.log10_norm), nearest = 10 ** term.log10_norm[0] / total;
  const at = term.log10_norm[lag], carried = transport[lag];
  const first = Number.isFinite(term.log10_norm[0]) ? `${percent(nearest)} of Σ‖term‖ is lag 0${state.loss === "every" ? "" : ", the k = t term"}, ${fromLog10(term.log10_norm[0])}` : "the k = t term is 0";
  if (!Number.isFinite(at)) return `${first}. At lag ${lag}: ${Number.isNaN(at) ? "no step so far back" : "0"}.`;
  return `${first}. At lag ${lag}: transport ${fromLog10(carried)} × immediate ${fromLog10(at - carried)} = ${fromLog10(at)}.`;
}

// Σ_τ ‖G(τ)‖.
function summedNorms(log10_norm) {
  let sum = 0;
  for (const value of log10_norm) if (Number.isFinite(value)) sum += 10 ** value;
  return sum;
}

// Fraction of Σ_k|terms| that comes from before the reset, of the units that are reset and of the others.
function beforeReset({ state, trace, origin, cut, units }, term) {
  const { H } = trace, out = [[0, 0], [0, 0]];
  for (let lag = 0; lag < trace.T; lag++) {
    for (let j = 0; j < H; j++) {
      const value = term.rows[lag * H + j], size = Number.isFinite(value) ? 10 ** value : 0, group = out[j < units ? 0 : 1];
      group[1] += size;
      if (origin - lag < cut - 1) group[0] += size;
    }
  }
  return out.map(([before, all]) => before / all);
}

function resetSentence(frame, term) {
  if (!frame.cut || !term.rows) return "";
  const [cut, kept] = beforeReset(frame, term);
  return ` Of Σ|term|, from before step ${frame.cut}: ${percent(cut)} in the units reset${Number.isNaN(kept) ? "" : `, ${percent(kept)} in the others`}.`;
}

function gateSentence({ trace, state }, gate) {
  const sorted = Float64Array.from(trace.values[gate]).sort();
  const [low, middle, high] = [0.05, 0.5, 0.95].map((level) => number(quantile(sorted, level), 2));
  return `${gateName(state.cell, gate)}: median ${middle}; 90 % of the values lie between ${low} and ${high}.`;
}

function unitsSentence({ scales, halves, trace }) {
  const measured = [...halves].filter((value) => !Number.isNaN(value));
  if (trace.cell.keepGate && scales.some((value) => Number.isNaN(value))) return "The gates are not finite here.";
  if (!trace.cell.keepGate) return measured.length ? `No gate keeps the state; measured half-lives ${number(Math.min(...measured), 2)} to ${steps(Math.max(...measured))}.` : "No gate keeps the state; no unit's gradient halves here.";
  const ratios = [...halves].map((half, j) => half / (Math.LN2 * scales[j])).filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  const range = `By its gate alone a unit keeps ${number(Math.min(...scales), 2)} to ${steps(Math.max(...scales))} (e-fold)`;
  return ratios.length ? `${range}; its half-life, measured in ${ratios.length} of ${halves.length}, is ${number(quantile(ratios, 0.5), 2)} times what that gives (median).` : `${range}; no unit's gradient halves within the sequence.`;
}

function pathsSentence({ swept, lag, trace }) {
  const at = Math.max(1, lag);
  const parts = trace.cell.ports.map((port) => `${port} ${percent(swept.paths[port][at])}`);
  return Number.isNaN(swept.paths[trace.cell.ports[0]][at]) ? `Lag ${at} has no gradient to divide.` : `Into lag ${at}: ${parts.join(", ")}.`;
}
