"use strict";
// Charts, sorting and copying. The page is readable without any of it.
(() => {
  const root = document.documentElement;
  const PRINT_WIDTH = 660;
  const BAR_BESIDE = { thickness: 12, outlinewidth: 0 };
  const BAR_ABOVE = { ...BAR_BESIDE, orientation: "h", y: 1.01, yanchor: "bottom", len: 0.9, nticks: 5 };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const painted = new Set();
  let figures = null;

  // --- what the file carries: gzip in base64 ---------------------------------------------------------------------

  async function inflate(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  let loading = null;
  function ready() {
    loading ??= Promise.all([inflate("tt-charts"), inflate("tt-plotly")]).then(([data, library]) => {
      const script = document.createElement("script");
      script.textContent = library; // allowed by its hash in the page's security policy
      document.head.append(script);
      figures = JSON.parse(data);
    });
    return loading;
  }

  // --- charts ----------------------------------------------------------------------------------------------------

  // Replaces colour roles ("--tt-supply") by the colours of the current scheme; long arrays of numbers stay untouched.
  function coloured(value, style) {
    if (typeof value === "string") return value.startsWith("--tt-") ? style.getPropertyValue(value).trim() : value;
    if (Array.isArray(value)) {
      const numbers = typeof value[0] === "number" && typeof value[1] !== "string"; // not a stop of a colour scale
      const matrix = Array.isArray(value[0]) && value[0].length > 2;
      return numbers || matrix || value[0] === null ? value : value.map((item) => coloured(item, style));
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, style)]));
  }

  function laidOut(layout) {
    const lines = { gridcolor: "--tt-line", linecolor: "--tt-faint", zeroline: false, automargin: true };
    const axes = { xaxis: { ...lines, showgrid: false, showline: true, ticks: "outside", tickcolor: "--tt-faint" }, yaxis: lines };
    const whole = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "--tt-soft" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 54, r: 12, t: 26, b: 44 },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      hoverlabel: { bgcolor: "--tt-panel", bordercolor: "--tt-line", font: { color: "--tt-ink" } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      ...layout,
    };
    for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout)])) {
      const kind = /^([xy]axis)\d*$/.exec(name);
      if (kind) whole[name] = { ...axes[kind[1]], ...layout[name], title: { standoff: 8, font: { size: 13 }, ...layout[name]?.title } };
    }
    return whole;
  }

  function paint(plot, width) {
    const views = figures[plot.dataset.chart];
    const name = plot.dataset.view ?? Object.keys(views)[0];
    const { data, layout } = coloured({ data: views[name].data, layout: laidOut(views[name].layout) }, getComputedStyle(root));
    const narrow = plot.clientWidth < 480;
    for (const trace of data) if (trace.colorbar) Object.assign(trace.colorbar, narrow ? BAR_ABOVE : BAR_BESIDE);
    if (narrow) layout.font.size = 11;
    if (width) layout.width = width;
    painted.add(plot);
    return Plotly.react(plot, data, layout, { displayModeBar: false, displaylogo: false, responsive: true });
  }

  function offerViews(plot) {
    const names = Object.keys(figures[plot.dataset.chart]);
    if (names.length < 2 || plot.dataset.view) return;
    plot.dataset.view = names[0];
    const group = document.createElement("div");
    group.className = "views";
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "What the chart shows");
    for (const name of names) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name;
      button.setAttribute("aria-pressed", String(name === names[0]));
      button.addEventListener("click", () => {
        for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
        plot.dataset.view = name;
        paint(plot);
      });
      group.append(button);
    }
    plot.before(group);
  }

  function failed(plot) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "This browser cannot unpack the charts; a newer one can. Texts and tables are complete.";
    plot.replaceWith(hint);
  }

  const observer = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        ready().then(() => paint(target), () => failed(target));
      }
    },
    { rootMargin: "400px 0px" },
  );

  ready().then(() => plots.forEach(offerViews), () => {}).finally(() => plots.forEach((plot) => observer.observe(plot)));

  dark.addEventListener("change", () => painted.forEach((plot) => paint(plot)));
  addEventListener("beforeprint", () => {
    root.classList.add("tt-light");
    if (figures) plots.forEach((plot) => paint(plot, PRINT_WIDTH));
  });
  addEventListener("afterprint", () => {
    root.classList.remove("tt-light");
    painted.forEach((plot) => paint(plot));
  });

  // --- tables ----------------------------------------------------------------------------------------------------

  function key(row, column) {
    const cell = row.cells[column];
    if (!("v" in cell.dataset)) return cell.textContent;
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  }

  // Numbers by size, words by the alphabet, what does not exist always last.
  function compare(a, b, direction) {
    if (a === null || b === null) return (a === null) - (b === null);
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), row]);
        rows.sort(([a], [b]) => compare(a, b, down ? -1 : 1));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // --- lines to paste --------------------------------------------------------------------------------------------

  for (const block of document.querySelectorAll(".paste")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const code = block.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    block.append(button);
  }
})();
