// The page: controls, drawing, address. Everything that is computed comes from frame.js.

const byId = (id) => document.getElementById(id);
const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

const SECOND_ROW = ["gates", "paths", "units"];
const DASHES = ["none", "7 3", "2 3", "8 3 2 3", "4 2"];
const PATH_ROLES = ["supply", "one", "two", "three", "four"];
const roleOfPath = (cell, p) => (cell.ports.length === 1 ? "ink" : PATH_ROLES[p]);

// The ends of the three gate cases, and the slider that runs from one to the next: a bend at each case.
const FAR_LOGIT = 12;
const GATE_CASES = {
  gru: [
    { name: "z → 1", state: { z: FAR_LOGIT, r: FAR_LOGIT } },
    { name: "z → 0\nr → 1", state: { z: -FAR_LOGIT, r: FAR_LOGIT } },
    { name: "z → 0\nr → 0", state: { z: -FAR_LOGIT, r: -FAR_LOGIT } },
  ],
  lstm: [
    { name: "f → 1\ni → 0", state: { f: FAR_LOGIT, i: -FAR_LOGIT, o: FAR_LOGIT } },
    { name: "f → 0\ni → 1", state: { f: -FAR_LOGIT, i: FAR_LOGIT, o: FAR_LOGIT } },
    { name: "f → 0\ni → 0", state: { f: -FAR_LOGIT, i: -FAR_LOGIT, o: FAR_LOGIT } },
  ],
  rnn: [],
};
const casesOf = (cell) => GATE_CASES[cell.split("-")[0]];

function between(cases, place) {
  const i = Math.min(cases.length - 2, Math.floor(place)), part = place - i;
  return Object.fromEntries(Object.keys(cases[i].state).map((gate) => {
    const from = cases[i].state[gate], to = cases[i + 1].state[gate];
    return [gate, from + part * (to - from)];
  }));
}

// Where on the way between the cases a state is nearest: projected on each stretch.
function placeOf(cases, state) {
  let best = 0, least = Infinity;
  for (let i = 0; i + 1 < cases.length; i++) {
    const from = cases[i].state, to = cases[i + 1].state, gates = Object.keys(from);
    let along = 0, length = 0, distance = 0;
    for (const gate of gates) {
      along += (state[gate] - from[gate]) * (to[gate] - from[gate]);
      length += (to[gate] - from[gate]) ** 2;
    }
    const part = Math.min(1, Math.max(0, along / length));
    for (const gate of gates) distance += (from[gate] + part * (to[gate] - from[gate]) - state[gate]) ** 2;
    if (distance < least) [best, least] = [i + part, distance];
  }
  return best;
}

const PARAMETER_NAMES = { weight_ih: "input weights U", weight_hh: "recurrent weights W", bias_ih: "bias b", bias_hh: "recurrent bias b′" };

function start(data) {
  const root = byId("page");
  const initial = location.hash.length > 1 ? location.hash : data.start;
  if (data.flow) RANGES.lag[1] = Math.max(RANGES.lag[1], ...data.flow.layers.map((layer) => layer.steps - 1));
  let state = usable(fromHash(initial, data.presets));
  if (data.flow && !initial) state = atRest(0);
  let frame = null, waiting = 0, cost = 0;

  // A link made from another page may name a measured layer that is not here.
  function usable(wanted) {
    if (wanted.source !== "flow") return wanted;
    if (!data.flow) return { ...wanted, source: "drawn" };
    wanted.layer = Math.min(wanted.layer, data.flow.layers.length - 1);
    return settled({ ...wanted, cell: keyOf(data.flow.layers[wanted.layer]), chrono: 0 });
  }

  // A measured layer with all sliders at rest.
  function atRest(layer) {
    return stateOfLayer({ ...DEFAULTS, source: "flow", layer }, data.flow.layers[layer]);
  }

  // --- one change ----------------------------------------------------------------------------------------------------

  function change(values, { rebuild = false } = {}) {
    state = settled({ ...state, ...values });
    if (rebuild) build();
    schedule();
  }

  function schedule() {
    // A network so large that a frame takes long is drawn when the slider rests.
    const draw = () => {
      waiting = 0;
      render();
    };
    if (slow()) computing();
    if (cost > 120 || slow()) {
      clearTimeout(waiting);
      waiting = setTimeout(draw, 120);
    } else if (!waiting) waiting = requestAnimationFrame(draw);
  }

  // A loss at many steps of a large network takes seconds: that is said before it is done.
  function slow() {
    const layer = state.source === "flow" ? data.flow.layers[state.layer] : null;
    return Boolean(layer?.network) && layer.loss_steps.length * layer.steps * layer.hidden_size ** 2 > 2e8;
  }
  function computing() {
    clearTimeout(told);
    byId("main-sentence").textContent = "Computing…";
  }

  let addressed = 0, told = 0;
  function render() {
    const begun = performance.now();
    frame = frameOf(state, data);
    const computed = performance.now();
    show();
    cost = performance.now() - begun;
    api.timing = { compute: computed - begun, draw: cost - (computed - begun) };
    clearTimeout(addressed);
    addressed = setTimeout(address, 150);
    clearTimeout(told);
    told = setTimeout(() => (byId("main-sentence").textContent = mainSentence(frame)), 60);
  }

  function address() {
    const hash = toHash(state, data.presets);
    if (hash !== location.hash) history.replaceState(null, "", hash === "#" ? location.pathname + location.search : hash);
  }

  // --- charts --------------------------------------------------------------------------------------------------------

  const part = (id, selector) => byId(id).querySelector(selector);
  const say = (id, text) => (part(id, "figcaption").textContent = frame.standIn ? `Stand-in: ${text}` : text);
  const tall = (id) => (innerWidth < 900 ? 250 : state.view !== "full" ? 232 : SECOND_ROW.includes(id) ? 214 : 262);

  function legend(id, all) {
    const series = all.filter(({ name }) => name);
    const key = JSON.stringify(series.map(({ name, role, dash, shape }) => [name, role, dash, shape])), list = part(id, ".legend");
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    list.innerHTML = series.map(({ name, role, dash, shape }) => {
      const mark = shape === "dot" || shape === "ring"
        ? tag("circle", { class: `${shape} ${role}`, cx: 12, cy: 6, r: 4 })
        : tag("line", { class: `line ${role}`, x1: 0, x2: 24, y1: 6, y2: 6, "stroke-dasharray": dash ?? "none" });
      return `<li>${tag("svg", { width: 24, height: 12, "aria-hidden": "true" }, mark)}${escaped(name)}</li>`;
    }).join("");
  }

  function lags(id, series, options) {
    legend(id, series);
    drawLags(part(id, ".plot"), { count: frame.trace.T, cursor: frame.lag, x: "lag τ, steps back from the loss →", height: tall(id), series, ...options });
  }

  function show() {
    const { layer, trace } = frame;
    if (root.dataset.view !== state.view) {
      root.dataset.view = state.view;
      forgetWidths();
    }
    byId("all").hidden = state.view === "full";
    const full = state.view === "full";
    showSupply(full);
    showJacobian();
    showTerms("terms", state.parameter, state.gate, frame.term);
    if (full) {
      showGates();
      showPaths();
      showUnits();
    } else showTerms("other", "weight_ih", "n", frame.other);
    for (const output of outputs) output();
    byId("growth").textContent = rateSentence(frame);
    byId("source").hidden = !layer;
    if (layer) byId("source").textContent = sourceSentence(layer);
    showPreset();
  }

  function sourceSentence(layer) {
    const what = `Measured: layer ${layer.name}, ${layer.cell.toUpperCase()} of ${layer.hidden_size} units, ${layer.steps} steps, ${layer.batch} ${layer.batch === 1 ? "sequence" : "sequences"}. `;
    if (!layer.network) return `${what}FLOW has no weights (diagnose --network stores them): the weights here are drawn as a stand-in, the gates' biases follow the measured logit quantiles.`;
    const moved = ["z", "r", "f", "i", "o"].some((gate) => state[gate] !== 0) || state.gain !== 1 || state.input !== 1 || frame.cut;
    return `${what}This is that network on its sequence ${layer.network.sequence.index}${moved ? ", moved by the sliders" : ", as recorded: all sliders are at rest"}.`;
  }

  function showPreset() {
    const preset = data.presets.find((each) => each.id === state.preset);
    const claim = byId("claim");
    claim.hidden = !preset;
    // Moved, the sentence may no longer hold; what it leaves free may move.
    const looked = ["preset", "view", "lag", "shown", ...(preset?.free ?? [])];
    const moved = preset && Object.entries({ ...DEFAULTS, ...preset.state }).some(([key, value]) => !looked.includes(key) && state[key] !== value);
    if (preset) claim.replaceChildren(make("b", { textContent: `${preset.title}. ` }), moved ? "Moved from the example: Reset brings it back." : preset.sentence);
    byId("preset").value = preset ? preset.id : "";
  }

  // "", or over which sequences a measured number is told
  const over = (layer) => (layer.batch === 1 ? "" : ` over the ${layer.batch} sequences`);

  function showSupply(full) {
    const { layer, arriving, demand, needed, measured, standIn } = frame;
    const series = [{ name: standIn ? "stand-in, with the sliders" : layer ? "here, with the sliders" : "supply: what arrives", role: "supply", values: arriving }];
    if (layer) series.push({ name: `measured${layer.network ? ", this sequence" : over(layer)}`, role: "ink", dash: DASHES[1], thin: true, values: measured });
    const label = `Gradient that arrives, on a logarithmic axis over the lag. ${supplySentence(frame)}`;
    lags("supply", series, { log: true, needed: full ? needed : [], demand: full ? demand : null, label, height: tall("supply") + (full && demand ? 60 : 0) });
    say("supply", supplySentence(frame));
    const note = part("supply", ".note");
    note.hidden = !full;
    note.textContent = `${demandSentence(frame)}${layer ? "" : ` ${frame.task.needs}`}`;
  }

  function showJacobian() {
    const { trace, paths, matrix, whole } = frame, side = trace.S * trace.H, host = part("jacobian", ".maps");
    const shown = [...paths.map(({ port, matrix: values, size }, p) => ({ name: port, role: roleOfPath(trace.cell, p), values, size, columns: trace.H }))];
    if (paths.length > 1) shown.push({ name: "sum = J", role: "ink", values: matrix, size: whole, columns: side });
    while (host.children.length > shown.length) host.lastChild.remove();
    while (host.children.length < shown.length) {
      host.append(make("div", {}, make("p", { className: "name" }, make("span"), make("b")), Object.assign(make("canvas"), { role: "img" })));
    }
    let most = 0;
    for (const { values } of shown) for (const value of values) most = Math.max(most, Math.abs(value));
    const ramp = colours().signed;
    shown.forEach(({ name, role, values, size, columns }, i) => {
      const [title, canvas] = host.children[i].children;
      title.firstChild.innerHTML = `<i class="swatch ${role}"></i>${escaped(name)}`;
      title.lastChild.textContent = number(size, 2);
      canvas.setAttribute("aria-label", `${name}: size ${number(size, 2)}`);
      paint(canvas, side, columns, ramp, (row, column) => {
        const value = values[row * columns + column] / (most || 1);
        return 0.5 + 0.5 * Math.sign(value) * Math.sqrt(Math.abs(value));
      });
    });
    const key = part("jacobian", ".key");
    key.innerHTML = `−${escaped(number(most, 2))} <i style="background:linear-gradient(to right,var(--tt-against),var(--tt-panel),var(--tt-one))"></i> ${escaped(number(most, 2))}`;
    part("jacobian", ".formula").innerHTML = trace.S > 1
      ? "∂(h,c)<sub>i</sub>/∂(h,c)<sub>i−1</sub>" : "∂h<sub>i</sub>/∂h<sub>i−1</sub>";
    say("jacobian", jacobianSentence(frame));
  }

  function showTerms(id, parameter, gate, term) {
    const { transport, layer } = frame;
    const immediate = term.log10_norm.map((value, lag) => value - transport[lag]);
    const series = [
      { name: "transport ‖λ‖", role: "supply", dash: DASHES[1], thin: true, values: transport },
      { name: "immediate part", role: "three", dash: DASHES[2], values: immediate },
      { name: "term = transport × immediate", role: "ink", values: term.log10_norm },
    ];
    const measured = layer && measuredTerms(layer, parameter, gate);
    if (measured) series.push({ name: `measured term${over(layer)}`, role: "two", dash: DASHES[3], thin: true, values: measured.log10_norm });
    const which = part(id, ".which"), name = symbol(state.cell, parameter, gate).split("_");
    which.innerHTML = `∂L/∂${escaped(name[0])}${name[1] ? `<sub>${escaped(name[1])}</sub>` : ""}`;
    const sentence = termsSentence(frame, term, transport) + (id === "terms" ? resetSentence(frame, term) : "");
    const share = measured ? ` Share of lag ${frame.lag}: ${percent(term.share[frame.lag])} ${frame.standIn ? "of the stand-in" : "here"}, ${percent(measured.share[frame.lag] ?? NaN)} measured${over(layer)}.` : "";
    say(id, sentence + share);
    lags(id, series, { log: true, label: `Terms by lag. ${sentence}` });
  }

  function measuredTerms(layer, parameter, gate) {
    const name = new RegExp(`(^|\\.)${parameter}(_l0)?$`);
    return layer.parameters.find((row) => name.test(row.name) && (row.gate === gate || (row.gate === null && frame.trace.cell.gates.length === 1))) ?? null;
  }

  function showGates() {
    const { trace, layer, k } = frame, { T, H } = trace, gate = state.shown, signed = !trace.cell.sigmoids.includes(gate);
    const canvas = part("gates", "canvas"), values = trace.values[gate];
    paint(canvas, H, T, signed ? colours().signed : colours().gate, (unit, step) => (signed ? 0.5 + values[step * H + unit] / 2 : values[step * H + unit]));
    part("gates", ".cursor").style.left = `${((k + 0.5) / T) * 100}%`;
    part("gates", ".last").textContent = `step ${T}`;
    part("gates", ".key").innerHTML = signed
      ? '−1 <i style="background:linear-gradient(to right,var(--tt-against),var(--tt-panel),var(--tt-one))"></i> 1'
      : '0 <i style="background:linear-gradient(to right,var(--tt-panel),var(--tt-supply-soft),var(--tt-supply))"></i> 1';
    const of = layer?.gates[gate], at = (level) => number(of.logit_quantiles[of.levels.indexOf(level)], 2);
    const measured = of ? ` Measured logits${over(layer)}: median ${at(0.5)}, 90 % between ${at(0.05)} and ${at(0.95)}.` : "";
    const sentence = gateSentence(frame, gate) + measured;
    canvas.setAttribute("aria-label", `Values of ${GATE_NAMES[gate] ?? gate} by unit and step. ${sentence}`);
    say("gates", sentence);
  }

  function showPaths() {
    const { swept, trace, layer } = frame, series = [];
    trace.cell.ports.forEach((port, p) => {
      series.push({ name: port, role: roleOfPath(trace.cell, p), dash: DASHES[p], values: swept.paths[port] });
      if (layer?.paths[port]) series.push({ name: p ? null : `thin, dotted: measured${over(layer)}`, role: roleOfPath(trace.cell, p), dash: "1 4", thin: true, values: layer.paths[port] });
    });
    lags("paths", series, { log: false, range: [-0.25, 1.25], ticks: [0, 0.5, 1], label: `Share of each path by lag. ${pathsSentence(frame)}` });
    say("paths", pathsSentence(frame));
  }

  function showUnits() {
    const { scales, halves, trace, layer } = frame, marks = [];
    if (trace.cell.keepGate) marks.push({ name: `ln 2 × −1/⟨ln ${trace.cell.keepGate}⟩`, role: "supply", shape: "bar", values: scales.map((value) => value * Math.LN2) });
    marks.push({ name: "half-life of its gradient", role: "three", shape: "dot", values: halves });
    if (layer) {
      const order = layer.hidden_size === trace.H ? layer.units : [];
      if (order.length) marks.push({ name: `measured half-life${over(layer)}`, role: "two", shape: "ring", values: order.map((unit) => unit.half_life ?? NaN) });
    }
    legend("units", marks);
    let sentence = unitsSentence(frame);
    if (layer) {
      const known = layer.units.map((unit) => unit.timescale).filter((value) => value !== null);
      if (known.length) sentence += ` Measured timescales${over(layer)}: ${number(Math.min(...known), 2)} to ${steps(Math.max(...known))}.`;
    }
    drawUnits(part("units", ".plot"), { count: trace.H, marks, height: tall("units"), label: sentence });
    say("units", sentence);
  }

  // --- controls ------------------------------------------------------------------------------------------------------

  let outputs = [];

  function slider(key, label, told, keyRange = RANGES[key]) {
    const [min, max, step] = keyRange, id = `control-${key}`;
    const input = make("input", { type: "range", id, min, max, step, value: state[key] });
    const output = make("output");
    output.htmlFor.add(id);
    input.addEventListener("input", () => change({ [key]: Number(input.value) }));
    outputs.push(() => {
      const text = told(state[key]);
      if (output.textContent !== text) output.textContent = text;
      if (Number(input.value) !== state[key]) input.value = state[key];
      input.setAttribute("aria-valuetext", text);
    });
    return make("div", { className: "control" }, make("label", { htmlFor: id, textContent: label }), output, input);
  }

  // A list is made once and stays where it is: moved or made anew, it would lose the keyboard at each change.
  const lists = new Map();
  function choice(key, label, options, told = () => state[key], chosen = (value) => change({ [key]: value }, { rebuild: true })) {
    const id = `control-${key}`;
    if (!lists.has(id)) {
      const select = make("select", { id });
      for (const [value, text] of options) select.append(make("option", { value, textContent: text }));
      select.addEventListener("change", () => chosen(select.value));
      lists.set(id, make("div", { className: "control" }, make("label", { htmlFor: id, textContent: label }), select));
    }
    const control = lists.get(id);
    outputs.push(() => (control.lastChild.value = told()));
    return control;
  }
  function place(host, controls) {
    for (const child of [...host.children]) if (!controls.includes(child)) child.remove();
    controls.forEach((control, i) => {
      if (host.children[i] !== control) host.insertBefore(control, host.children[i] ?? null);
    });
  }

  function build() {
    const focused = document.activeElement?.id;
    outputs = [];
    const { cell: key } = state, cell = CELLS[key], layer = state.source === "flow" ? data.flow.layers[state.layer] : null;
    const fixed = Boolean(layer?.network), cases = layer ? [] : casesOf(key);
    const gates = part("cases", ".sliders"), weights = part("weights", ".sliders"), sequence = part("sequence", ".sliders");

    part("cases", ".cases").replaceChildren(...cases.map(({ name, state: values }) => {
      const button = make("button", { type: "button", textContent: name });
      button.addEventListener("click", () => change(values));
      outputs.push(() => button.setAttribute("aria-pressed", String(Object.entries(values).every(([gate, value]) => state[gate] === value))));
      return button;
    }));
    part("cases", ".between").replaceChildren();
    if (cases.length) {
      const input = make("input", { type: "range", id: "control-between", min: 0, max: cases.length - 1, step: 0.01 }), output = make("output");
      output.htmlFor.add(input.id);
      input.addEventListener("input", () => change(between(cases, Number(input.value))));
      outputs.push(() => {
        const place = placeOf(cases, state);
        if (document.activeElement !== input || Math.abs(Number(input.value) - place) > 0.02) input.value = place;
        const text = cell.sigmoids.filter((gate) => gate !== "o").map((gate) => `${gate} ≈ ${number(sigmoid(state[gate]), 2)}`).join(", ");
        output.textContent = text;
        input.setAttribute("aria-valuetext", text);
      });
      part("cases", ".between").append(make("div", { className: "control" }, make("label", { htmlFor: input.id, textContent: "between the cases" }), output, input));
    }
    gates.replaceChildren(...[...cell.sigmoids].sort((a, b) => (a === cell.keepGate ? -1 : b === cell.keepGate ? 1 : 0)).map((gate) =>
      slider(gate, `${GATE_NAMES[gate]}, logit ${layer ? "+" : "bias"}`, (value) =>
        layer ? `${value > 0 ? "+" : value < 0 ? "−" : ""}${number(Math.abs(value))}` : `${number(value)} · σ = ${number(sigmoid(value), 2)}`)));
    if (!cell.sigmoids.length) gates.replaceChildren(make("p", { className: "hint", textContent: "An Elman net has no gates: only the weights decide." }));

    weights.replaceChildren(
      slider("gain", layer ? "recurrent weights ×" : "recurrent gain", (value) => (layer ? `× ${number(value)}` : `sd = ${number(value)}/√H`)),
      slider("input", layer ? "input weights ×" : "input gain", (value) => (layer ? `× ${number(value)}` : `sd = ${number(value)}/√H`)),
    );
    if (cell.keepGate && !layer) weights.append(slider("chrono", "chrono biases ln u, up to", (value) => (value < 3 ? "off" : `${value} steps`)));
    if (cell.sigmoids.length) {
      weights.append(make("div", { className: "pair" },
        slider("cut", "reset at", (value) => (value ? `step ${value}` : "never")), slider("cutUnits", "units reset", (value) => `${value}`)));
    }

    const controls = [];
    if (!layer) controls.push(choice("cell", "Cell", Object.keys(CELL_NAMES).filter((name) => !name.endsWith("takes") && name !== "rnn-relu").map((name) => [name, CELL_NAMES[name]])));
    if (data.flow) {
      const options = [["drawn", "a drawn network"], ...data.flow.layers.map((each, i) => [String(i), `measured: ${each.name}`])];
      controls.push(choice("source", "Network", options, () => (state.source === "flow" ? String(state.layer) : "drawn"), (value) =>
        change(value === "drawn" ? { source: "drawn" } : atRest(Number(value)), { rebuild: true })));
    }
    if (!fixed) {
      controls.push(choice("task", "Sequence task", data.tasks.map(({ id, title }) => [id, title])));
      controls.push(slider("T", "sequence length", (value) => `${value} steps`), choice("loss", "Place of the loss", [["last", "last step"], ["one", "one step"], ["every", "every step"]]));
      if (state.loss === "one") controls.push(slider("at", "loss at step", (value) => `${Math.min(value, state.T)}`));
    }
    controls.push(slider("lag", "lag looked at", () => `${frame.lag} (step ${frame.k + 1})`));
    if (!fixed) controls.push(make("div", { className: "pair" }, slider("H", "units", (value) => `${value}`), slider("seed", "seed", (value) => `${value}`)));
    place(sequence, controls);
    byId("loss-note").hidden = fixed;

    picks("terms", cell.gates.map((gate) => [gate, gateName(key, gate)]), "gate", parameterChoice());
    picks("gates", [...new Set([...cell.sigmoids, ...cell.gates])].map((gate) => [gate, gateName(key, gate)]), "shown");
    // the control that was moved was made anew: the keyboard stays on it
    if (focused) byId(focused === "all" ? "preset" : focused)?.focus();
  }

  function parameterChoice() {
    const select = make("select", { ariaLabel: "Parameter" });
    for (const [value, text] of Object.entries(PARAMETER_NAMES)) select.append(make("option", { value, textContent: text }));
    select.addEventListener("change", () => change({ parameter: select.value }));
    outputs.push(() => (select.value = state.parameter));
    return select;
  }

  function picks(id, options, key, ...before) {
    part(id, ".pick").replaceChildren(...before, ...options.map(([value, text]) => {
      const button = make("button", { type: "button", textContent: text });
      button.setAttribute("aria-label", GATE_NAMES[value] ?? value);
      button.addEventListener("click", () => change({ [key]: value }));
      outputs.push(() => button.setAttribute("aria-pressed", String(state[key] === value)));
      return button;
    }));
  }

  // --- around --------------------------------------------------------------------------------------------------------

  const menu = byId("preset");
  menu.append(make("option", { value: "", textContent: "free play" }), ...data.presets.map(({ id, title }) => make("option", { value: id, textContent: title })));
  menu.addEventListener("change", () => go(menu.value ? `#preset=${menu.value}` : ""));
  function go(hash) {
    state = usable(fromHash(hash, data.presets));
    build();
    schedule();
  }
  byId("reset").addEventListener("click", () => {
    if (state.source === "flow") change(atRest(state.layer), { rebuild: true });
    else go(state.preset ? `#preset=${state.preset}` : "");
  });
  byId("all").addEventListener("click", () => change({ view: "full" }, { rebuild: true }));
  byId("copy").addEventListener("click", async ({ target }) => {
    address();
    const link = location.href.split("#")[0] + toHash(state, data.presets);
    try {
      await navigator.clipboard.writeText(link);
      target.textContent = "Copied";
    } catch {
      target.textContent = "Copy the address bar";
    }
    setTimeout(() => (target.textContent = "Copy link"), 2000);
  });
  for (const plot of document.querySelectorAll(".lags")) {
    let held = false;
    const read = (event) => change({ lag: plot.reading(event.clientX) });
    plot.addEventListener("pointerdown", (event) => {
      held = true;
      plot.setPointerCapture(event.pointerId);
      read(event);
    });
    plot.addEventListener("pointermove", (event) => held && read(event));
    for (const name of ["pointerup", "pointercancel"]) plot.addEventListener(name, () => (held = false));
  }
  addEventListener("hashchange", () => location.hash !== toHash(state, data.presets) && go(location.hash));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    forgetColours();
    schedule();
  });
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) {
      forgetWidths();
      schedule();
    }
    width = innerWidth;
  });

  const api = {
    timing: null,
    change: (values) => change(values, { rebuild: true }),
    // what the tests read: the frame of the state as it is now
    frame: () => frameOf(state, data),
    state: () => ({ ...state }),
    render,
  };
  globalThis.throughtime = api;
  for (const id of ["weights", "sequence"]) byId(id).open = innerWidth >= 900;
  build();
  if (slow()) schedule();
  else render();
  return api;
}

start(JSON.parse(document.getElementById("data").textContent));
