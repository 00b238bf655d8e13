// Drawing: each function fills a host element from numbers. SVG for lines, canvas for heat maps. No state of its own.

const escaped = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.codePointAt(0)};`);
const tag = (name, attributes, inner = "") =>
  `<${name} ${Object.entries(attributes).map(([key, value]) => `${key}="${escaped(value)}"`).join(" ")}>${inner}</${name}>`;
const words = (x, y, text, extra = {}) => tag("text", { x: x.toFixed(1), y: y.toFixed(1), ...extra }, escaped(text));

const MARGIN = { left: 52, right: 12, top: 8, bottom: 34 };

// Axis ends move in jumps, so that the picture keeps still under a slider: 2, 4, 8, 12, 16, 24, 32, … decades.
function wideEnough(decades) {
  let end = 2;
  while (end < Math.min(decades, 1e6)) end = end < 8 ? 2 * end : Number.isInteger(Math.log2(end)) ? 1.5 * end : (4 * end) / 3;
  return end;
}
function decades(series, count) {
  let low = 0, high = -Infinity;
  for (const { values } of series) {
    for (let lag = 0; lag < Math.min(count, values.length); lag++) {
      const value = values[lag];
      if (!Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return [-wideEnough(-low), high <= 0.3 ? 0 : high <= 1 ? 1 : wideEnough(high)];
}

function decadeTicks(low, high) {
  const least = (high - low) / 5, power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  const step = [1, 2, 3, 4, 5, 10].map((factor) => factor * power).find((each) => each >= least);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick + 0); // + 0: no −0
  return ticks;
}

function roundSteps(count, most) {
  const rough = count / most, power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough) ?? 10 * power;
}

// Widths are read once and then kept until the window changes: reading one between two drawings would lay the page out again.
let widths = new WeakMap();
function widthOf(host) {
  if (!widths.get(host)) widths.set(host, host.clientWidth);
  return Math.max(260, widths.get(host) || 600);
}
function forgetWidths() {
  widths = new WeakMap();
}

// An SVG in two groups: `fixed`, axes and words, is only replaced when it changed, which most moves spare; `moving` is drawn anew.
function put(host, width, height, label, fixed, moving) {
  const key = `${width} ${height} ${fixed}`;
  if (host.fixed !== key) {
    host.fixed = key;
    host.innerHTML = tag("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" }, `<g>${fixed}</g><g></g>`);
  }
  host.firstChild.setAttribute("aria-label", label);
  host.firstChild.lastChild.innerHTML = moving;
}

// Lines over the lag. spec: {count, series: [{name, values, role, dash}], log, range, cursor, needed, demand: {z, threshold, lags},
// height, x: the axis' name}. Marks on the cursor show what the sentence above the chart says.
function drawLags(host, spec) {
  const width = widthOf(host), height = spec.height;
  const strip = spec.demand ? 64 : 0, inner = height - MARGIN.top - MARGIN.bottom - strip;
  const right = width - MARGIN.right, span = Math.max(1, spec.count - 1);
  const [low, high] = spec.log ? decades(spec.series, spec.count) : spec.range;
  const x = (lag) => MARGIN.left + ((right - MARGIN.left) * lag) / span;
  const y = (value) => MARGIN.top + inner * (1 - (Math.min(high, Math.max(low, value)) - low) / (high - low));
  const half = Math.max(1, (x(1) - x(0)) / 2);
  const parts = [], moving = [];
  for (const [a, b] of runs((spec.needed ?? []).filter((lag) => lag < spec.count))) {
    parts.push(tag("rect", { class: "band", x: (x(a) - half).toFixed(1), y: MARGIN.top, width: (x(b) - x(a) + 2 * half).toFixed(1), height: inner }));
  }
  const ticks = spec.ticks ?? decadeTicks(low, high);
  for (const tick of ticks) {
    const label = spec.log ? powerOfTen(tick) : number(tick, 2);
    parts.push(tag("line", { class: tick === 0 ? "grid zero" : "grid", x1: MARGIN.left, x2: right, y1: y(tick).toFixed(1), y2: y(tick).toFixed(1) }));
    parts.push(words(MARGIN.left - 6, y(tick) + 4, label, { class: "tick end" }));
  }
  const bottom = MARGIN.top + inner;
  for (const { values, role, dash, thin } of spec.series) {
    let path = "", pen = "M";
    for (let lag = 0; lag < spec.count; lag++) {
      const value = values[lag];
      if (value === undefined || value === null || Number.isNaN(value)) {
        pen = "M";
        continue;
      }
      path += `${pen}${x(lag).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
    moving.push(tag("path", { class: `line ${role}${thin ? " thin" : ""}`, d: path || "M0 0", "stroke-dasharray": dash ?? "none" }));
  }
  if (spec.demand) {
    const top = bottom + 22, base = height - MARGIN.bottom, { z, threshold, lags } = spec.demand;
    const most = Math.max(threshold * 1.4, ...z.filter((value) => value !== null)) || 1, asked = new Set(lags);
    const of = (value) => base - ((base - top) * Math.max(0, Math.min(value, most))) / most;
    parts.push(words(MARGIN.left + 2, top - 6, "demand, z of the test", { class: "tick demand" }));
    z.forEach((value, lag) => {
      if (value === null || lag >= spec.count) return;
      parts.push(tag("rect", { class: asked.has(lag) ? "asked" : "idle", x: (x(lag) - half * 0.7).toFixed(1), y: of(value).toFixed(1), width: (half * 1.4).toFixed(1), height: (base - of(value)).toFixed(1) }));
    });
    parts.push(tag("line", { class: "threshold", x1: MARGIN.left, x2: right, y1: of(threshold).toFixed(1), y2: of(threshold).toFixed(1) }));
    parts.push(words(MARGIN.left - 6, of(threshold) + 4, number(threshold, 2), { class: "tick end" }));
    parts.push(tag("line", { class: "axis", x1: MARGIN.left, x2: right, y1: base, y2: base }));
  }
  if (spec.cursor !== null && spec.cursor < spec.count) {
    moving.push(tag("line", { class: "cursor", x1: x(spec.cursor).toFixed(1), x2: x(spec.cursor).toFixed(1), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    for (const { values, role } of spec.series) {
      const value = values[spec.cursor];
      if (Number.isFinite(value)) moving.push(tag("circle", { class: `dot ${role}`, cx: x(spec.cursor).toFixed(1), cy: y(value).toFixed(1), r: 4 }));
    }
  }
  const step = roundSteps(span, Math.min(10, width / 60)), foot = height - MARGIN.bottom;
  parts.push(tag("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
  for (let lag = 0; lag <= span; lag += step) parts.push(words(x(lag), foot + 14, lag, { class: "tick middle" }));
  parts.push(words(right, foot + 29, spec.x, { class: "tick end" }));
  put(host, width, height, spec.label, parts.join(""), moving.join(""));
  host.reading = (clientX) => {
    const box = host.getBoundingClientRect(), at = ((clientX - box.left) * width) / box.width;
    return Math.min(spec.count - 1, Math.max(0, Math.round(((at - MARGIN.left) / (right - MARGIN.left)) * span)));
  };
}

// One mark a unit on a logarithmic axis of steps. marks: [{values (H), role, shape}]
function drawUnits(host, { count, marks, height, label }) {
  const width = widthOf(host), inner = height - MARGIN.top - MARGIN.bottom, right = width - MARGIN.right;
  let most = 2;
  for (const { values } of marks) for (const value of values) if (Number.isFinite(value)) most = Math.max(most, Math.log10(Math.max(value, 0.01)));
  const high = most <= 2 ? 2 : most <= 3 ? 3 : most <= 4 ? 4 : Math.min(9, Math.ceil(most)), low = -1;
  const x = (unit) => MARGIN.left + ((right - MARGIN.left) * (unit + 0.5)) / count;
  const y = (value) => MARGIN.top + inner * (1 - (Math.min(high, Math.max(low, Math.log10(value))) - low) / (high - low));
  const parts = [], moving = [];
  for (let power = low; power <= high; power++) {
    parts.push(tag("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(10 ** power).toFixed(1), y2: y(10 ** power).toFixed(1) }));
    if (high - low < 6 || power % 2 === 0) parts.push(words(MARGIN.left - 6, y(10 ** power) + 4, power < 0 ? "0.1" : power < 4 ? 10 ** power : powerOfTen(power), { class: "tick end" }));
  }
  const size = Math.max(2, Math.min(5, (x(1) - x(0)) / 2.4));
  for (const { values, role, shape } of marks) {
    values.forEach((value, unit) => {
      if (!(value > 0) || !Number.isFinite(value)) return;
      const cx = x(unit), cy = y(value);
      if (shape === "bar") moving.push(tag("line", { class: `mark ${role}`, x1: (cx - size * 1.3).toFixed(1), x2: (cx + size * 1.3).toFixed(1), y1: cy.toFixed(1), y2: cy.toFixed(1) }));
      else moving.push(tag("circle", { class: `${shape === "ring" ? "ring" : "dot"} ${role}`, cx: cx.toFixed(1), cy: cy.toFixed(1), r: size.toFixed(1) }));
    });
  }
  const step = roundSteps(count, 8);
  for (let unit = 0; unit < count; unit += step) parts.push(words(x(unit), height - MARGIN.bottom + 14, unit, { class: "tick middle" }));
  parts.push(words(right, height - MARGIN.bottom + 29, "unit", { class: "tick end" }));
  put(host, width, height, label, parts.join(""), moving.join(""));
}

// --- heat maps -------------------------------------------------------------------------------------------------------

// Colours of the current scheme as [r, g, b], read once until `forgetColours`.
let palette = null;
function colours() {
  if (palette) return palette;
  const style = getComputedStyle(document.documentElement);
  const of = (name) => {
    const value = style.getPropertyValue(`--tt-${name}`).trim();
    return [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
  };
  const ramp = (stops) => Uint8ClampedArray.from({ length: 256 * 3 }, (_, i) => {
    const at = (Math.floor(i / 3) / 255) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(at));
    return stops[low][i % 3] + (at - low) * (stops[low + 1][i % 3] - stops[low][i % 3]);
  });
  palette = { gate: ramp([of("panel"), of("supply-soft"), of("supply")]), signed: ramp([of("against"), of("panel"), of("one")]) };
  return palette;
}
function forgetColours() {
  palette = null;
}

// values (rows · columns) by place(row, column) → [0, 1], painted one pixel a cell; CSS makes it large.
function paint(canvas, rows, columns, ramp, place) {
  if (canvas.width !== columns || canvas.height !== rows) [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows), { data } = image;
  for (let i = 0, at = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++, at += 4) {
      const shade = 3 * Math.max(0, Math.min(255, Math.round(255 * place(i, j))));
      data[at] = ramp[shade];
      data[at + 1] = ramp[shade + 1];
      data[at + 2] = ramp[shade + 2];
      data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}
