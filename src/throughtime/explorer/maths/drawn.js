// The network that the controls describe: drawn from a seed, its gates driven through their logits. Pure functions, no DOM.

// Numbers in [0, 1) from a seed and a name, always the same: xorshift with 32 bits (Marsaglia 2003).
function stream(seed, name) {
  let a = Math.imul(seed + 1, 0x9e3779b1);
  for (const letter of `${name}.....`) {
    a = Math.imul(a ^ letter.codePointAt(0), 0x01000193);
    a ^= a >>> 15; // every bit of the seed reaches every bit
  }
  a = a || 1;
  const next = () => {
    a ^= a << 13;
    a ^= a >>> 17;
    a ^= a << 5;
    return (a >>> 0) / 4294967296;
  };
  for (let i = 0; i < 20; i++) next();
  return next;
}

function shuffled(values, next) {
  const out = Float64Array.from(values);
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

function gaussian(next) {
  return Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
}

const LONGEST = 200; // steps; inputs are drawn by lag from the end, so that a longer sequence has the same end

// (T·D) the inputs of a task. `rows` are those of a digit, for the task that begins with one.
function inputsOf(task, T, seed, digits) {
  const next = stream(seed, `inputs ${task.id}`), { D } = task, x = new Float64Array(T * D);
  const half = Math.floor(T / 2), place = stream(seed, "markers");
  const markers = [Math.floor(place() * half), half + Math.floor(place() * (T - half))];
  const rows = task.id === "digits" ? digits[seed % digits.length] : [];
  for (let lag = 0; lag < LONGEST; lag++) {
    const k = T - 1 - lag;
    for (let d = 0; d < D; d++) {
      let value;
      if (task.id === "adding") value = d === 0 ? next() : markers.includes(k) ? 1 : 0;
      else value = gaussian(next);
      if (k >= 0) x[k * D + d] = k < rows.length ? rows[k][d] : value;
    }
  }
  return x;
}

// state → network, and the gradient that enters: L = Σ ⟨v, h_t⟩ over the loss steps, ‖v‖ = 1.
// Weights are uniform with standard deviation gain/√H; gain 1/√3 is torch's default. `measured`: quantiles of the logits of a
// recorded network by gate, which then stand in for its biases.
function drawnNetwork(state, task, digits, measured = null) {
  const cell = CELLS[state.cell], { T, H } = state, { D } = task, G = cell.gates.length;
  const uniform = (name, count, deviation) => {
    const next = stream(state.seed, name);
    return Float64Array.from({ length: count }, () => deviation * Math.sqrt(3) * (2 * next() - 1));
  };
  const torch = 1 / Math.sqrt(3 * H);
  const network = {
    T, D, H,
    x: inputsOf(task, T, state.seed, digits),
    initial: new Float64Array(cell.states.length * H),
    weight_ih: uniform("weight_ih", G * H * D, state.input / Math.sqrt(H)),
    weight_hh: uniform("weight_hh", G * H * H, state.gain / Math.sqrt(H)),
    bias_ih: uniform("bias_ih", G * H, torch),
    bias_hh: uniform("bias_hh", G * H, torch),
    drive: null,
  };
  const spread = stream(state.seed, "units");
  const levels = Float64Array.from({ length: H }, (_, j) => (j + spread()) / H); // one draw from each H-th part
  cell.gates.forEach((gate, p) => {
    const mixed = measured?.[gate] ? shuffled(levels, stream(state.seed, `units ${gate}`)) : levels;
    for (let j = 0; j < H; j++) {
      const at = p * H + j;
      if (measured?.[gate]) {
        network.bias_ih[at] = quantileAt(measured[gate], mixed[j]);
        network.bias_hh[at] = 0;
      }
      if (state.chrono >= 3 && (gate === cell.keepGate || gate === "i")) {
        // Tallec & Ollivier 2018: ln u, u uniform on (1, T_max − 1); an LSTM's input gate gets its negative
        network.bias_ih[at] = (gate === "i" ? -1 : cell.keeps ? 1 : -1) * Math.log(1 + levels[j] * (state.chrono - 2));
        network.bias_hh[at] = 0;
      }
    }
  });
  return driven({ network, ...lossOf(state) }, state);
}

// {levels, logits} → the logit at a level.
function quantileAt({ levels, logits }, level) {
  if (level <= levels[0]) return logits[0];
  for (let i = 1; i < levels.length; i++) {
    if (level <= levels[i]) {
      return logits[i - 1] + ((level - levels[i - 1]) / (levels[i] - levels[i - 1])) * (logits[i] - logits[i - 1]);
    }
  }
  return logits[logits.length - 1];
}

function lossOf(state) {
  const { T, H } = state, next = stream(state.seed, "loss"), g = new Float64Array(T * H);
  const v = Float64Array.from({ length: H }, () => gaussian(next)), norm = Math.hypot(...v);
  for (let t = 0; t < T; t++) {
    if (state.loss === "every" || t === (state.loss === "one" ? Math.min(state.at, T) : T) - 1) {
      for (let j = 0; j < H; j++) g[t * H + j] = v[j] / norm;
    }
  }
  return { g, gc: null };
}

// What the sliders add to the gates' logits, and the reset of some units at one step.
function driven({ network, g, gc }, state) {
  const cell = CELLS[state.cell], { T, H } = network;
  cell.gates.forEach((gate, p) => {
    const added = cell.sigmoids.includes(gate) ? state[gate] : 0;
    if (added) for (let j = 0; j < H; j++) network.bias_ih[p * H + j] += added;
  });
  const cut = Math.min(state.cut, T), units = Math.min(state.cutUnits, H);
  if (cut > 0 && units > 0 && cell.sigmoids.length) {
    const size = cell.gates.length * H;
    network.drive = new Float64Array(T * size);
    cell.gates.forEach((gate, p) => {
      if (gate !== cell.keepGate && gate !== "r") return;
      for (let j = 0; j < units; j++) network.drive[(cut - 1) * size + p * H + j] = -CUT * (gate === "r" || cell.keeps ? 1 : -1);
    });
  }
  return { network, g, gc };
}
const CUT = 20; // what is taken off a logit to reset a unit

// A recorded network, {weights, inputs, initial, gradient, cell_gradient}, moved by the sliders; all at rest it is as recorded.
function recordedNetwork(state, layer) {
  const cell = CELLS[state.cell], { weights, sequence } = layer.network, H = layer.hidden_size, G = cell.gates.length;
  const flat = (values) => Float64Array.from(values.flat(Infinity));
  const network = {
    T: layer.steps, D: layer.input_size, H,
    x: flat(sequence.inputs),
    initial: flat(sequence.initial),
    weight_ih: flat(weights.weight_ih).map((value) => value * state.input),
    weight_hh: flat(weights.weight_hh).map((value) => value * state.gain),
    bias_ih: weights.bias_ih ? flat(weights.bias_ih) : new Float64Array(G * H),
    bias_hh: weights.bias_hh ? flat(weights.bias_hh) : new Float64Array(G * H),
    drive: null,
  };
  return driven({ network, g: flat(sequence.gradient), gc: sequence.cell_gradient ? flat(sequence.cell_gradient) : null }, state);
}
