// From the state to everything that the page shows: one frame. Pure, but for the data that the page carries.

let store = null; // the largest array of a frame: making it anew at every move would cost a millisecond

function frameOf(state, data) {
  const layer = state.source === "flow" ? data.flow?.layers[Math.min(state.layer, data.flow.layers.length - 1)] ?? null : null;
  const task = data.tasks.find((each) => each.id === state.task) ?? data.tasks[0];
  const recorded = Boolean(layer?.network);
  const given = recorded ? recordedNetwork(state, layer) : drawnNetwork(state, task, data.digits, layer && quantilesOf(layer));
  const trace = CELLS[state.cell].run(given.network);
  const swept = sweep(trace, given.g, given.gc, store);
  store = swept.pre;
  const { origins } = swept, origin = origins.length ? origins[origins.length - 1] : trace.T - 1;
  const lag = Math.min(state.lag, origin), k = origin - lag;
  const arriving = log10ArrivingTotal(swept);
  const parts = jacobianPaths(trace, k);
  const { matrix, size } = wholeJacobian(trace, parts);
  const measured = layer && measuredSupply(layer), standIn = Boolean(layer) && !recorded, headline = standIn ? measured : arriving;
  const asked = demandOf(state, layer, task, trace.T);
  return {
    state, layer, task, recorded, given, trace, swept, origin, lag, k, arriving, ...asked,
    standIn, measured,
    // what the headline tells: of a measured layer without weights what was measured, never the stand-in
    headline, growth: growth(headline),
    reach: standIn ? layer.loss_steps.reduce((most, step) => Math.max(most, step), 0) : origin,
    transport: log10Transport(swept),
    paths: trace.cell.ports.map((port) => ({ port, matrix: parts[port], size: sizeOf(parts[port], trace.H) })),
    matrix, whole: size,
    term: terms(swept, state.parameter, state.gate),
    other: state.view === "cv556070" ? terms(swept, "weight_ih", "n") : null,
    scales: timescales(trace),
    halves: halfLives(swept),
    cut: trace.drive ? Math.min(state.cut, trace.T) : 0,
    units: Math.min(state.cutUnits, trace.H),
  };
}

// log10 of what arrives by lag, as the library measured it: of the recorded sequence, without one of all of them.
function measuredSupply(layer) {
  const from = layer.network ? layer.network.sequence : layer.adjoint, numbers = (values) => values.map((value) => value ?? NaN);
  if (from.log10_arriving_total) return numbers(from.log10_arriving_total);
  const norms = numbers(layer.adjoint.by_state.d ?? from.log10_norm); // a file from before that was written: over lag 0
  return norms.map((value) => value - norms[0]);
}

// J = Σ paths, (S·H, S·H), and its size; of an LSTM the carry path reads c and all others h.
function wholeJacobian(trace, parts) {
  const { S, H, cell } = trace, side = S * H, matrix = new Float64Array(side * side);
  cell.ports.forEach((port, p) => {
    const offset = S > 1 && p === 0 ? H : 0;
    for (let i = 0; i < side; i++) for (let j = 0; j < H; j++) matrix[i * side + offset + j] += parts[port][i * H + j];
  });
  return { matrix, size: sizeOf(matrix, side) };
}

function demandOf(state, layer, task, T) {
  if (layer) {
    const { demand } = layer;
    return { demand, needed: demand ? demand.lags : [], demandSource: demand ? `throughtime.demand, measured in FLOW on ${demand.sequences} sequences` : "No demand was measured in FLOW, so nothing here says how far back is far enough." };
  }
  if (state.loss !== "last") return { demand: null, needed: [], demandSource: "Demand was measured for a loss at the last step only." };
  const fits = task.demand && (task.any_length ? T <= task.demand.z.length : T === task.demand.z.length);
  if (!fits) return { demand: null, needed: [], demandSource: `Demand of this task was measured with ${task.demand.z.length} steps only: choose that length to see it.` };
  return { demand: task.demand, needed: task.demand.lags.filter((lag) => lag < T), demandSource: `throughtime.demand on ${task.demand.sequences} sequences of this task` };
}

// Logit quantiles of a measured layer by gate.
function quantilesOf(layer) {
  return Object.fromEntries(Object.entries(layer.gates).map(([gate, of]) => [gate, { levels: of.levels, logits: of.logit_quantiles }]));
}

// The registry's name of a measured layer's cell.
function keyOf({ cell, convention }) {
  if (cell === "rnn") return `rnn-${convention.activation}`;
  if (cell !== "gru") return cell;
  return `gru${convention.reset === "before" ? "-reset-before" : ""}${convention.z === "takes" ? "-z-takes" : ""}`;
}

// The state that shows a measured layer: of a recorded network steps and units are its own, else as near as the page goes.
function stateOfLayer(state, layer) {
  const near = (key, value) => Math.min(RANGES[key][1], Math.max(RANGES[key][0], value));
  return settled({
    ...state,
    cell: keyOf(layer),
    T: near("T", layer.steps),
    H: near("H", layer.hidden_size),
    loss: layer.loss_steps.length > 1 ? "every" : layer.loss_steps[0] === layer.steps - 1 ? "last" : "one",
    at: near("at", layer.loss_steps[0] + 1),
    lag: near("lag", Math.floor((layer.network ? layer.steps : near("T", layer.steps)) / 4)),
  });
}
