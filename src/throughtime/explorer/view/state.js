// The state of the page and its address: everything that differs from the defaults stands behind the #, so that a link holds it.

const DEFAULTS = {
  preset: "", view: "full", source: "drawn", layer: 0,
  cell: "gru-reset-before", task: "delayed", T: 100, H: 24, loss: "last", at: 100, seed: 7,
  z: 0, r: 0, f: 0, i: 0, o: 0, gain: 1, input: 1, chrono: 0, cut: 0, cutUnits: 12,
  parameter: "weight_ih", gate: "z", shown: "z", lag: 10,
};
const RANGES = {
  layer: [0, 1000, 1], T: [20, 200, 1], H: [2, 32, 1], at: [1, 200, 1], seed: [0, 999, 1],
  z: [-20, 20, 0.1], r: [-20, 20, 0.1], f: [-20, 20, 0.1], i: [-20, 20, 0.1], o: [-20, 20, 0.1],
  gain: [0, 4, 0.01], input: [0, 4, 0.01], chrono: [0, 200, 1], cut: [0, 200, 1], cutUnits: [1, 32, 1], lag: [0, 199, 1],
};
const CHOICES = {
  view: ["full", "cv556070"], source: ["drawn", "flow"], loss: ["last", "one", "every"],
  cell: ["gru-reset-before", "gru", "lstm", "rnn-tanh", "gru-reset-before-z-takes", "gru-z-takes", "rnn-relu"],
  task: ["none", "delayed", "last-three", "digits", "adding"],
  parameter: ["weight_ih", "weight_hh", "bias_ih", "bias_hh"],
};

// One value as it may stand: anything else, from an address that was mistyped or made up, becomes the default.
function allowed(key, value) {
  if (Object.hasOwn(RANGES, key)) {
    const [low, high] = RANGES[key], number = Number(value);
    return value === "" || !Number.isFinite(number) ? DEFAULTS[key] : Math.min(high, Math.max(low, number));
  }
  if (Object.hasOwn(CHOICES, key)) return CHOICES[key].includes(value) ? value : DEFAULTS[key];
  return /^[\w-]{0,64}$/.test(value) ? value : DEFAULTS[key];
}

// Values that must fit each other.
function settled(state) {
  if (state.view === "cv556070") state.cell = "gru-reset-before"; // the question's own
  const cell = CELLS[state.cell];
  for (const key of ["T", "H", "at", "seed", "chrono", "cut", "cutUnits", "lag", "layer"]) state[key] = Math.round(state[key]);
  if (!cell.gates.includes(state.gate)) state.gate = cell.keepGate ?? cell.gates[0];
  if (!cell.gates.includes(state.shown)) state.shown = cell.keepGate ?? cell.gates[0];
  return state;
}

function fromHash(hash, presets) {
  const given = new URLSearchParams(hash.replace(/^#/, "")), state = { ...DEFAULTS };
  const preset = presets.find((each) => each.id === given.get("preset"));
  if (preset) Object.assign(state, preset.state, { preset: preset.id });
  for (const [key, value] of given) if (Object.hasOwn(DEFAULTS, key) && key !== "preset") state[key] = allowed(key, value);
  return settled(state);
}

function toHash(state, presets) {
  const preset = presets.find((each) => each.id === state.preset), base = { ...DEFAULTS, ...preset?.state };
  const out = new URLSearchParams();
  if (preset) out.set("preset", preset.id);
  for (const key of Object.keys(DEFAULTS)) {
    if (key !== "preset" && state[key] !== base[key]) out.set(key, String(typeof state[key] === "number" ? Number(state[key].toFixed(4)) : state[key]));
  }
  return `#${out}`;
}
