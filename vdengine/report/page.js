"use strict";
// One file, above 500 lines: the page has one script element, whose hash its policy names, and one scope, in which
// charts, tables and texts share the data, what the reader chose and what is drawn.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#b0568f", "#a87400", "#2a8fc4"];
  const DARK = ["#4fa8e0", "#f0803c", "#2bc49a", "#e39bc5", "#f0b429", "#8cd0f5"];
  const DASHES = ["solid", "dash", "dot"];
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"];
  const MANY = 4; // with more runs than this, bands of intervals hide each other: off until asked for
  const PAGE = 20; // texts at a time
  const STANCES = ["support", "neutral", "oppose"];
  const UNIT = { openings: "nats per 100 bytes", answers: "probability" };
  const CHANNELS = {
    stance: "stance", graded: "support − oppose", yes_bias: "yes-bias", neutral: "neutral", displacement: "displacement",
    support: "support", oppose: "oppose",
  };
  const RULES = {
    ci95: "first within the interval of its extreme", frac95: "first at 95% of its extreme",
    settled: "settled: stays within the interval of the last",
  };

  const has = (readout) => DATA.runs.some((r) => Object.values(r.views).some((v) => v.readout === readout));
  const state = {
    readout: has(DATA.readout) ? DATA.readout : has("openings") || !has("answers") ? "openings" : "answers",
    judge: DATA.judges[0] || "",
    topics: new Set(DATA.topics.map((t) => t.name)),
    runs: new Set(DATA.runs.map((_, i) => i)),
    mode: "mix",
    mixRun: 0,
    rule: "ci95",
    bands: DATA.runs.length <= MANY,
    oneScale: true,
    textRun: null,
    textStep: "",
    search: "",
    shownTexts: PAGE,
    shownSamples: PAGE,
  };

  // ------------------------------------------------------------------------------------------------ small tools

  /** An element; strings among the children become text, never markup. */
  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(node.style, value);
      else if (value === true) node.setAttribute(name, "");
      else if (value !== false && value != null) node.setAttribute(name, value);
    }
    node.append(...children.flat(Infinity).filter((c) => c != null && c !== false));
    return node;
  }
  /** Plotly reads some tags in its texts: as text. */
  const esc = (s) => String(s).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const dark = () => root.dataset.theme === "dark";
  const fixed = (x, d) => x.toFixed(d).replace("-", "−");
  const signed = (x, d = 2) => {
    if (x == null) return "–";
    const text = fixed(x, d);
    return Number(x.toFixed(d)) === 0 ? text.replace("−", "") : (x > 0 ? "+" : "") + text;
  };
  const percent = (x) => (x == null ? "–" : fixed(100 * x, x !== 0 && Math.abs(x) < 0.1 ? 1 : 0) + "%");
  const interval = (e, f = signed) => (e.low == null ? "no interval" : `[${f(e.low)}, ${f(e.high)}]`);
  const pvalue = (p) => (p == null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
  const seconds = (s) => (s >= 3600 ? fixed(s / 3600, 1) + " h" : s >= 90 ? fixed(s / 60, 1) + " min" : fixed(s, s < 10 ? 1 : 0) + " s");
  const topicName = (t) => (t === "all" ? "all topics" : t);
  const axisOf = (t) => (DATA.topics.find((x) => x.name === t) || { axis: "" }).axis;
  const colour = (i) => (dark() ? DARK : LIGHT)[i % LIGHT.length];
  const dash = (i) => DASHES[Math.floor(i / LIGHT.length) % DASHES.length];
  const symbol = (i) => SYMBOLS[(i + Math.floor(i / LIGHT.length)) % SYMBOLS.length];
  const faint = (hex, a) => `rgba(${[1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)).join(",")},${a})`;
  const key = () => (state.readout === "openings" ? "openings" : `answers:${state.judge}`);
  const runs = () => DATA.runs.map((r, i) => ({ ...r, i, view: r.views[key()] })).filter((r) => state.runs.has(r.i));
  const viewed = () => runs().filter((r) => r.view);
  const topics = (all = true) => [...(all ? ["all"] : []), ...DATA.topics.map((t) => t.name).filter((t) => state.topics.has(t))];
  const drop = (node) => node.querySelectorAll(".plot").forEach((p) => Plotly.purge(p));

  function swatch(i) {
    const svg = document.getElementById("swatch").content.firstElementChild.cloneNode(true);
    const line = svg.querySelector("line");
    line.setAttribute("stroke", colour(i));
    line.setAttribute("stroke-dasharray", { solid: "none", dash: "6 3", dot: "2 3" }[dash(i)]);
    return svg;
  }

  // ------------------------------------------------------------------------------------------------------ plots

  function layout(more) {
    const axis = {
      gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, ticks: "outside", ticklen: 4,
      tickcolor: css("--line"), automargin: true, fixedrange: touch, exponentformat: "e",
    };
    const { xaxis, yaxis, ...rest } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
      font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif", size: 12, color: css("--ink") },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--soft"), font: { color: css("--ink"), size: 13 }, align: "left" },
      margin: { l: 46, r: 12, t: 10, b: 38 }, dragmode: touch ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
    };
  }
  const named = (text) => ({ text, font: { size: 12, color: css("--soft") }, standoff: 6 });
  const CONFIG = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", showTips: false,
    modeBarButtonsToRemove: ["zoom2d", "pan2d", "select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  };
  const queue = []; // plots are drawn once they are in the page, and have a width
  function plot(traces, more, size = "") {
    const node = el("div", { class: `plot ${size}` });
    queue.push([node, traces, layout(more)]);
    return node;
  }
  function flush() {
    for (const [node, traces, shape] of queue.splice(0)) Plotly.newPlot(node, traces, shape, CONFIG);
  }
  const figure = (title, axis, body) =>
    el("figure", {}, el("figcaption", {}, el("h3", {}, title), axis && el("span", { class: "axis" }, axis)), body);

  /** Index ranges over which all of these series have values. */
  function stretches(...series) {
    const out = [];
    let open = null;
    for (let k = 0; k <= series[0].length; k++) {
      const known = k < series[0].length && series.every((s) => s[k] != null);
      if (known && open == null) open = k;
      if (!known && open != null) { out.push([open, k - 1]); open = null; }
    }
    return out;
  }
  /** The outline between two series, in pieces where there are gaps; a lone sample gets some width. */
  function outline(x, low, high) {
    const wide = 0.006 * (x[x.length - 1] - x[0] || 1);
    const xs = [], ys = [];
    for (const [a, b] of stretches(low, high)) {
      const at = a === b ? [[x[a] - wide, a], [x[a] + wide, a]] : x.slice(a, b + 1).map((v, k) => [v, a + k]);
      for (const [v, k] of at) { xs.push(v); ys.push(high[k]); }
      for (const [v, k] of at.slice().reverse()) { xs.push(v); ys.push(low[k]); }
      xs.push(at[0][0], null); ys.push(high[at[0][1]], null);
    }
    return { x: xs, y: ys };
  }
  const area = (x, low, high, fill, pattern) => ({
    ...outline(x, low, high), type: "scatter", mode: "lines", fill: "toself", fillcolor: fill, hoverinfo: "skip",
    line: { width: 0, color: fill }, ...(pattern ? { fillpattern: pattern } : {}),
  });
  const plus = (a, b) => a.map((v, k) => (v == null || b[k] == null ? null : v + b[k]));
  const from1 = (a) => a.map((v) => (v == null ? null : 1 - v));
  /** Stretches of steps that were read but are not shown, as the steps around them. */
  function closedGaps(x, mean) {
    const known = mean.map((v) => (v == null ? null : 1));
    const missing = known.map((v) => (v == null ? 1 : null));
    return stretches(missing).map(([a, b]) => [x[Math.max(a - 1, 0)], x[Math.min(b + 1, x.length - 1)]]);
  }

  function shiftPlot(topic, shown, range) {
    const traces = [];
    const shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: css("--soft"), width: 1, dash: "dot" } }];
    for (const r of shown) {
      const c = r.view.curves[topic];
      if (!c) continue;
      const x = r.view.steps, kinds = r.view.kinds;
      if (state.bands) traces.push(area(x, c.low, c.high, faint(colour(r.i), 0.16)));
      traces.push({
        x, y: c.mean, type: "scatter", mode: x.length > 40 && !kinds ? "lines" : "lines+markers", connectgaps: false,
        line: { color: colour(r.i), width: 2, dash: dash(r.i) },
        marker: { color: colour(r.i), symbol: symbol(r.i), size: kinds ? kinds.map((k) => (k === "anchor" ? 8 : 3)) : 4 },
        hoverinfo: "text",
        hovertext: x.map((s, k) => `<b>${esc(r.name)}</b><br>${esc(topicName(topic))}, step ${s}<br>${signed(c.mean[k])} `
          + `${interval({ low: c.low[k], high: c.high[k] })}<br>${c.n[k]} probes${kinds ? (kinds[k] === "anchor" ? ", fresh answers" : ", weighted answers") : ""}`),
      });
    }
    return plot(traces, {
      shapes, xaxis: { title: named("step") },
      yaxis: { title: named(state.readout === "openings" ? "shift, nats / 100 B" : "shift"), ...(range ? { range } : {}) },
    });
  }

  function mixPlot(topic, r) {
    const { steps: x, kinds, levels } = r.view;
    const l = levels[topic];
    const s = l.support, o = l.oppose, n = l.neutral;
    const top = from1(o.mean), floor = x.map(() => 0), ceiling = x.map(() => 1);
    const anchors = x.map((_, k) => k).filter((k) => kinds[k] === "anchor" && s.mean[k] != null);
    const pattern = (shape) => ({ shape, fgcolor: faint(css("--card"), 0.55), size: 7, solidity: 0.12, fillmode: "overlay" });
    const mark = (mean, high, low, colour) => ({
      x: anchors.map((k) => x[k]), y: anchors.map((k) => mean[k]), type: "scatter", mode: "markers", hoverinfo: "skip",
      marker: { color: css("--card"), size: 7, line: { color: css("--ink"), width: 1.5 } },
      error_y: {
        type: "data", symmetric: false, array: anchors.map((k) => (high[k] == null ? 0 : high[k] - mean[k])),
        arrayminus: anchors.map((k) => (low[k] == null ? 0 : mean[k] - low[k])), color: colour, thickness: 1.5, width: 3,
      },
    });
    const line = (y) => ({ x, y, type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: css("--ink"), width: 1 } });
    const text = x.map((step, k) => `<b>${esc(topicName(topic))}</b>, ${esc(r.name)}<br>step ${step}, `
      + `${kinds[k] === "anchor" ? "fresh" : "weighted"} answers, ${s.n[k]} probes`
      + STANCES.map((name) => `<br>${name} ${percent(l[name].mean[k])} ${interval({ low: l[name].low[k], high: l[name].high[k] }, percent)}`).join(""));
    const shapes = closedGaps(x, s.mean).map(([a, b]) => ({
      type: "rect", yref: "paper", x0: a, x1: b, y0: 0, y1: 1, line: { width: 0 }, fillcolor: faint(css("--soft"), 0.1), layer: "below",
    }));
    const span = x[x.length - 1] - x[0] || 1;
    const annotations = closedGaps(x, s.mean).filter(([a, b]) => b - a > 0.25 * span).map(([a, b]) => ({
      x: (a + b) / 2, y: 0.5, yref: "paper", text: "nothing drawn", showarrow: false, font: { size: 11, color: css("--soft") },
    }));
    return plot([
      area(x, floor, s.mean, css("--support"), pattern("")),
      area(x, s.mean, top, css("--neutral")),
      area(x, top, ceiling, css("--oppose"), pattern("/")),
      area(x, s.low, s.high, faint(css("--ink"), 0.3)), area(x, from1(o.high), from1(o.low), faint(css("--ink"), 0.3)),
      line(s.mean), line(top), mark(s.mean, s.high, s.low, css("--ink")), mark(top, from1(o.low), from1(o.high), css("--ink")),
      {
        x, y: plus(s.mean, n.mean.map((v) => (v == null ? null : v / 2))), type: "scatter", mode: "markers",
        marker: { size: 14, opacity: 0, color: css("--ink") }, hoverinfo: "text", hovertext: text,
      },
    ], {
      shapes, annotations, hovermode: "x", xaxis: { title: named("step"), showgrid: false },
      yaxis: { range: [0, 1], tickformat: ".0%", tickvals: [0, 0.25, 0.5, 0.75, 1], showgrid: false },
    });
  }

  // --------------------------------------------------------------------------------------------------- controls

  const segmented = (label, choices, now, pick) =>
    el("span", { class: "seg", role: "group", "aria-label": label }, choices.map(([value, text, off]) =>
      el("button", { type: "button", "data-value": value, "aria-pressed": String(value === now), disabled: !!off, onclick: () => { pick(value); render(); } }, text)));
  const select = (label, choices, now, pick) =>
    el("label", {}, el("span", { class: "label" }, label), el("select", { onchange: (e) => { pick(e.target.value); render(); } },
      choices.map(([value, text]) => el("option", { value, selected: String(value) === String(now) }, text))));
  const checkbox = (label, now, pick) =>
    el("label", {}, el("input", { type: "checkbox", checked: now, onchange: (e) => { pick(e.target.checked); render(); } }), label);
  const toggle = (set, value) => (set.has(value) ? set.delete(value) : set.add(value));
  function chips(id, values, set, label, icon) {
    const choose = (some) => () => { set.clear(); some.forEach((v) => set.add(v)); render(); };
    return el("div", { class: "chips", id }, values.map((v) =>
      el("button", { type: "button", class: "chip", "data-value": v, "aria-pressed": String(set.has(v)), onclick: () => { toggle(set, v); render(); } },
        icon && icon(v), label(v))),
    el("button", { type: "button", class: "quiet", onclick: choose(values) }, "all"), el("button", { type: "button", class: "quiet", onclick: choose([]) }, "none"));
  }
  function controls() {
    const out = [
      el("span", { class: "label" }, "Readout"),
      el("div", { class: "chips", id: "readout" },
        segmented("Readout", [["openings", "Openings", !has("openings")], ["answers", "Answers", !has("answers")]], state.readout, (v) => { state.readout = v; }),
        DATA.judges.length > 1 && state.readout === "answers" && select("judge", DATA.judges.map((j) => [j, j]), state.judge, (v) => { state.judge = v; }),
        DATA.judges.length === 1 && state.readout === "answers" && el("small", {}, `judge: ${state.judge}`)),
      el("span", { class: "label" }, "Topics"),
      chips("topics", DATA.topics.map((t) => t.name), state.topics, (v) => v),
    ];
    if (DATA.runs.length > 1) {
      out.push(el("span", { class: "label" }, "Runs"), chips("runs", DATA.runs.map((_, i) => i), state.runs, (i) => DATA.runs[i].name, swatch));
    }
    return out;
  }

  // --------------------------------------------------------------------------------------------------- sections

  const section = (id, title, lead, ...body) =>
    el("section", { id }, el("h2", {}, title), lead && el("p", { class: "lead" }, lead), ...body);
  const empty = (text) => el("p", { class: "empty" }, text);
  /** Why some chosen runs have nothing in this readout; runs with the same reason together. */
  function missing() {
    const why = new Map();
    for (const r of runs().filter((x) => !x.view)) {
      const others = Object.values(r.views).filter((v) => v.judge).map((v) => v.judge);
      const text = r.empty[state.readout] || `not judged by ${state.judge}; there is ${others.join(", ")}`;
      why.set(text, [...(why.get(text) || []), r.name]);
    }
    return [...why].map(([text, names]) => el("p", { class: "note" }, `${names.join(", ")}: ${text}`));
  }
  const nothing = () => (!state.runs.size ? empty("No run is chosen.") : empty("Nothing to show for this readout in the chosen runs."));

  function overview() {
    const chosen = runs(), short = chosen.length > 2;
    const warned = (r) => new Set(Object.values(r.views).flatMap((v) => v.caveats));
    const shared = short ? [...warned(chosen[0])].filter((c) => chosen.every((r) => warned(r).has(c))) : [];
    const list = (items) => items.length > 0 && el("ul", { class: "caveats" }, items.map((c) => el("li", {}, c)));
    const cards = chosen.map((r) => {
      const views = Object.values(r.views);
      const facts = el("dl", { class: "facts" }, r.header.map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
      const more = views.map((v) => v.verdict[1] && el("p", { class: "more" }, short && v.judge ? `${v.judge}: ${v.verdict[1]}` : v.verdict[1]));
      return el("article", { class: "card" }, el("h3", {}, DATA.runs.length > 1 && swatch(r.i), r.name),
        views.map((v, k) => [el("p", { class: "verdict" }, v.verdict[0]), !short && more[k]]),
        Object.values(r.empty).map((text) => el("p", { class: "more" }, text)),
        list([...warned(r)].filter((c) => !shared.includes(c))),
        r.notes.map((n) => el("p", { class: "note" }, n)),
        short ? el("details", {}, el("summary", {}, "Details"), more, facts) : facts);
    });
    return el("div", { id: "overview" }, el("div", { class: `runs ${["", "one", "two"][cards.length] || ""}` }, cards.length ? cards : empty("No run is chosen.")), list(shared));
  }

  function curves() {
    const answers = state.readout === "answers", shown = viewed(), mix = answers && state.mode === "mix";
    const bar = el("div", { class: "inline" });
    const lead = mix
      ? "Shares of answers that support, stay neutral on or oppose each topic's axis. All topics: the mean over the panel."
      : answers ? "Change of support minus oppose since the baseline, as judged." : "Change since the baseline of how likely openings for the axis are, against openings on the other side. Above zero: towards the axis.";
    if (answers) bar.append(segmented("What to draw", [["mix", "Stance mix"], ["shift", "Shift"]], state.mode, (v) => { state.mode = v; }));
    if (mix && shown.length > 2) {
      if (!shown.some((r) => r.i === state.mixRun)) state.mixRun = shown[0].i;
      bar.append(select("run", shown.map((r) => [r.i, r.name]), state.mixRun, (v) => { state.mixRun = Number(v); }));
    }
    if (!mix) {
      bar.append(checkbox("95% intervals", state.bands, (v) => { state.bands = v; }), checkbox("same scale for all topics", state.oneScale, (v) => { state.oneScale = v; }));
    }
    const s = section("curves", "Stances over the run", lead, bar);
    if (!shown.length) { s.append(nothing(), ...missing()); return s; }
    s.append(el("div", { class: "legend" }, ...(mix ? mixLegend() : shiftLegend(shown, answers))));
    const grid = el("div", { class: "grid" });
    const mixed = shown.length > 2 ? shown.filter((r) => r.i === state.mixRun) : shown;
    const range = state.oneScale ? extent(shown) : null;
    for (const topic of topics()) {
      const axis = topic === "all" ? "mean over the panel" : `towards ${axisOf(topic)}`;
      if (!mix) grid.append(figure(topicName(topic), axis, shiftPlot(topic, shown, range)));
      else for (const r of mixed) if (r.view.levels[topic]) grid.append(figure(topicName(topic), mixed.length > 1 ? `${axis} · ${r.name}` : axis, mixPlot(topic, r)));
    }
    s.append(grid, ...missing());
    return s;
  }
  function extent(shown) {
    const each = shown.flatMap((r) => topics().flatMap((t) => (r.view.curves[t] ? [...(state.bands ? [...r.view.curves[t].low, ...r.view.curves[t].high] : []), ...r.view.curves[t].mean] : [])));
    const known = each.filter((v) => v != null);
    if (!known.length) return null;
    const low = Math.min(0, ...known), high = Math.max(0, ...known), pad = 0.05 * (high - low || 1);
    return [low - pad, high + pad];
  }
  const keyed = (cls, text, style) => el("span", {}, el("i", { class: `key ${cls}`, style }), text);
  const mixLegend = () => [
    keyed("", "support", { background: css("--support") }), keyed("", "neutral", { background: css("--neutral") }),
    keyed("", "oppose (striped)", { background: `repeating-linear-gradient(45deg, ${css("--oppose")} 0 4px, ${css("--card")} 4px 5px)` }),
    el("span", {}, "○ fresh answers; between them weighted ones"), keyed("", "95% interval", { background: faint(css("--ink"), 0.55) }),
    keyed("blank", "nothing drawn: the weights do not reach"),
  ];
  function shiftLegend(shown, answers) {
    const out = shown.map((r) => el("span", {}, swatch(r.i), r.name));
    if (answers) out.push(el("span", {}, "large marks: fresh answers; small: weighted ones; gaps: the weights do not reach"));
    if (state.bands) out.push(el("span", {}, "band: 95% interval"));
    return out;
  }

  function magnitudes() {
    const shown = viewed(), many = shown.length > 1;
    const s = section("magnitudes", "How far each topic moved",
      `Last sample minus baseline, ${state.readout === "openings" ? UNIT.openings : "in support minus oppose"}; plus is towards the axis. ${many ? "" : "The first column is the stance; the others are for checking it. "}Point at or tap a cell for its interval.`);
    if (!shown.length) { s.append(nothing()); return s; }
    const columns = many ? shown.map((r) => [r.name, (t) => (r.view.drifts[t] || {})[r.view.primary], r]) : shown[0].view.channels
      .slice().sort((a, b) => (b === shown[0].view.primary) - (a === shown[0].view.primary))
      .map((c) => [CHANNELS[c] || c, (t) => (shown[0].view.drifts[t] || {})[c], shown[0]]);
    const rows = [...topics(false), "all"];
    const largest = (get) => Math.max(...rows.map((t) => Math.abs((get(t) || {}).mean || 0)), 1e-9);
    const top = Math.max(...columns.map(([, get]) => largest(get)));
    const detail = el("p", { class: "detail", "aria-live": "polite" });
    const why = [];
    const body = rows.map((t) => el("tr", {}, el("th", { scope: "row" }, topicName(t), el("small", {}, t === "all" ? "mean over the panel" : axisOf(t))),
      columns.map(([name, get, r]) => {
        const d = get(t);
        if (!d || d.mean == null) return el("td", { class: "num" }, "–");
        if (d.why) why.push(`${t}${many ? `, ${r.name}` : ""}: ${d.why}`);
        const strength = Math.min(Math.abs(d.mean) / (many || state.readout === "answers" ? top : largest(get)), 1);
        const said = `${topicName(t)}, ${name}: ${signed(d.mean)} ${interval(d)}, p ${pvalue(d.p)}, after Holm ${pvalue(d.adjusted)}, ${d.n} probes${d.few ? `, fewer than ${DATA.few}` : ""}${d.why ? `; hard to read: ${d.why}` : ""}`;
        const show = () => { detail.textContent = said; };
        return el("td", {
          class: `num ${d.sure ? "sure" : ""}`, tabindex: 0, title: said, onfocus: show, onmouseenter: show, onclick: show,
          style: { background: `rgba(${css(d.mean > 0 ? "--up" : "--down")},${(0.06 + 0.5 * strength).toFixed(3)})` },
        }, `${signed(d.mean)}${d.sure ? " ●" : ""}${d.why ? " ?" : ""}`, el("small", {}, `n ${d.n}${d.few ? " few" : ""}`));
      })));
    s.append(
      el("div", { class: "legend" }, keyed("", "towards the axis", { background: `rgba(${css("--up")},0.5)` }), keyed("", "away from it", { background: `rgba(${css("--down")},0.5)` }),
        el("span", {}, "● bold: significant after Holm's correction"), el("span", {}, "? hard to read"), el("span", {}, `n: probes; few: under ${DATA.few}`)),
      el("div", { class: "scroll" }, el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("th", {}, "topic"), columns.map(([n]) => el("th", { scope: "col", class: "num" }, n)))), el("tbody", {}, body))),
      detail);
    if (why.length) s.append(el("details", { open: why.length < 5 }, el("summary", {}, `Hard to read (${why.length})`), el("ul", { class: "caveats" }, why.map((w) => el("li", {}, w)))));
    return s;
  }

  /** Points with intervals both ways: [{r, x: [v, low, high], y: [v, low, high], text, label}]. */
  function points(found, xaxis, yaxis, more = {}) {
    const by = new Map();
    labels(found);
    for (const p of found) by.set(p.r.i, [...(by.get(p.r.i) || []), p]);
    const error = (each, axis) => ({
      type: "data", symmetric: false, thickness: 1, width: 0,
      array: each.map((p) => (p[axis][2] == null ? 0 : Math.max(p[axis][2] - p[axis][0], 0))),
      arrayminus: each.map((p) => (p[axis][1] == null ? 0 : Math.max(p[axis][0] - p[axis][1], 0))),
    });
    const traces = [...by].map(([i, each]) => ({
      x: each.map((p) => p.x[0]), y: each.map((p) => p.y[0]), type: "scatter", cliponaxis: false,
      mode: "markers+text", text: each.map((p) => (p.place ? esc(p.label) : "")), textposition: each.map((p) => p.place || "top center"),
      textfont: { size: 11, color: css("--soft") },
      marker: { color: each.map((p) => (p.hollow ? css("--card") : colour(i))), symbol: symbol(i), size: 10, line: { color: colour(i), width: 2 } },
      error_x: { ...error(each, "x"), color: faint(colour(i), 0.6) }, error_y: { ...error(each, "y"), color: faint(colour(i), 0.6) },
      hoverinfo: "text", hovertext: each.map((p) => p.text),
    }));
    return el("figure", {}, plot(traces, { xaxis, yaxis, ...more }, "tall"));
  }
  /** Give each point's name a side where it covers no other; without one it has its name only under the pointer. */
  function labels(found) {
    const width = Math.max(Math.min(window.innerWidth, 1560) / (window.innerWidth > 1240 ? 2 : 1) - 140, 180), height = 360;
    const ends = (axis) => { const all = found.flatMap((p) => p[axis]).filter((v) => v != null); return [Math.min(...all), Math.max(...all)]; };
    const [x0, x1] = ends("x"), [y0, y1] = ends("y");
    const at = (p) => [(width * (p.x[0] - x0)) / (x1 - x0 || 1), (height * (p.y[0] - y0)) / (y1 - y0 || 1)];
    const taken = found.map((p) => { const [x, y] = at(p); return [x - 7, x + 7, y - 7, y + 7]; });
    const sides = { "top center": [-0.5, 6], "bottom center": [-0.5, -22], "middle right": [0, -8], "middle left": [-1, -8] };
    const named = new Set();
    for (const p of found) {
      if (named.has(p.label)) continue; // once is enough: a topic's points mostly lie together
      const [x, y] = at(p), wide = 6.4 * p.label.length;
      for (const [side, [shift, up]] of Object.entries(sides)) {
        const left = x + shift * wide + (shift === 0 ? 9 : shift === -1 ? -9 : 0), box = [left, left + wide, y + up, y + up + 15];
        if (box[0] < -20 || box[1] > width + 20 || taken.some((t) => t[0] < box[1] && box[0] < t[1] && t[2] < box[3] && box[2] < t[3])) continue;
        taken.push(box);
        p.place = side;
        named.add(p.label);
        break;
      }
    }
  }
  const upright = { type: "line", yref: "paper", y0: 0, y1: 1, x0: 0, x1: 0 };
  const zeroLine = (shape) => ({ ...shape, line: { color: css("--soft"), width: 1, dash: "dot" } });
  const driftUnit = () => (state.readout === "openings" ? `shift, ${UNIT.openings}` : "shift of support − oppose");

  function driftTimes() {
    const shown = viewed(), found = [], without = [];
    for (const r of shown) {
      const late = [];
      for (const t of topics(false)) {
        const d = (r.view.drifts[t] || {})[r.view.primary];
        if (!d) continue;
        const [step, fraction, low, high] = d.times[state.rule];
        if (step == null) { late.push(t); continue; }
        found.push({
          r, x: [d.mean, d.low, d.high], y: [fraction, low, high], label: t,
          text: `<b>${esc(t)}</b>, ${esc(r.name)}<br>shift ${signed(d.mean)} ${interval(d)}<br>by step ${step}, ${percent(fraction)} of the stage [${percent(low)}, ${percent(high)}]`,
        });
      }
      if (late.length) without.push(`${shown.length > 1 ? `${r.name}: ` : ""}${late.join(", ")}`);
    }
    const s = section("times", "When it moved, and how far",
      "Drift time is the share of the run after which a topic had moved; only topics with a significant shift have one. Crosses are 95% intervals.",
      el("div", { class: "inline" }, select("drift time", Object.entries(RULES), state.rule, (v) => { state.rule = v; })));
    if (found.length) {
      if (shown.length > 1) s.append(el("div", { class: "legend" }, shown.map((r) => el("span", {}, swatch(r.i), r.name))));
      s.append(points(found, { title: named(driftUnit()) }, { title: named("share of the run"), tickformat: ".0%", range: [-0.03, 1.08] }, { shapes: [zeroLine(upright)] }));
    } else s.append(shown.length ? empty("No topic has a significant shift, so none has a drift time.") : nothing());
    if (without.length) s.append(el("details", { open: without.length < 3 }, el("summary", {}, "No significant shift"), el("ul", { class: "caveats" }, without.map((w) => el("li", {}, w)))));
    return s;
  }

  function gaps() {
    const lead = "The gap is how much more chosen answers of the training data take the axis's side than rejected ones (−2 to 2). If drift follows the data, points lie in the lower left and upper right.";
    const s = section("gaps", "Value gap of the data, and the drift after it", lead);
    if (!DATA.gaps.length) {
      s.append(empty("No audit of the data was given. Make one: vdengine gap SOURCE --model MODEL --out gap.json. Then add --gap gap.json to this report's command."));
      return s;
    }
    const found = [], shown = viewed(), methods = [...new Set(DATA.gaps.map((g) => g.method))];
    for (const g of DATA.gaps) {
      const r = shown.find((x) => x.i === g.run);
      if (!r) continue;
      for (const t of topics(false)) {
        const d = (r.view.drifts[t] || {})[r.view.primary], e = g.topics[t];
        if (!d || !e || e.gap == null || d.mean == null) continue;
        found.push({
          r, x: [e.gap, e.low, e.high], y: [d.mean, d.low, d.high], label: t, hollow: !d.sure,
          text: `<b>${esc(t)}</b>, ${esc(r.name)}<br>gap ${signed(e.gap)} ${interval(e)}, ${e.rows} pairs${e.few ? " (few)" : ""}, by ${esc(g.method)}<br>drift ${signed(d.mean)} ${interval(d)}`,
        });
      }
    }
    if (!found.length) { s.append(empty("No chosen topic has both a gap and a drift in the chosen runs.")); return s; }
    s.append(el("div", { class: "legend" }, shown.length > 1 && shown.map((r) => el("span", {}, swatch(r.i), r.name)),
      el("span", {}, "filled: significant drift; hollow: not"), el("span", {}, `gap read by: ${methods.join(", ")}`)));
    s.append(points(found, { title: named("value gap of the data") }, { title: named(driftUnit()) },
      { shapes: [zeroLine(upright), zeroLine({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0 })] }));
    if (DATA.gaps.some((g) => g.other_panel)) s.append(el("p", { class: "note" }, "An audit was made with another panel than the runs': topics are matched by name."));
    return s;
  }

  function validity() {
    const shown = viewed();
    const s = section("validity", "Can it be believed?",
      "Checks of the last sample against the baseline. ! marks a side effect at least half as large as the largest clear shift, or an agreement that is low.");
    const names = [...new Map(shown.flatMap((r) => r.view.strip.map((c) => [c.name, c]))).values()];
    if (names.length && shown.length === 1) {
      s.append(el("div", { class: "tiles", id: "strip" }, names.map((c) => el("div", { class: `card ${c.warn ? "warned" : ""}` },
        el("h3", {}, c.label), el("p", { class: "value" }, `${c.warn ? "! " : ""}${c.ratio ? fixed(c.mean, 2) : signed(c.mean)} `, el("small", {}, c.ratio ? "correlation" : interval(c))),
        el("small", {}, c.what)))));
    } else if (names.length) {
      s.append(el("div", { class: "scroll" }, el("table", { id: "strip" },
        el("thead", {}, el("tr", {}, el("th", {}, "check"), shown.map((r) => el("th", { scope: "col", class: "num" }, r.name)))),
        el("tbody", {}, names.map((c) => el("tr", {}, el("th", { scope: "row" }, c.label, el("small", {}, c.what)),
          shown.map((r) => {
            const f = r.view.strip.find((x) => x.name === c.name);
            if (!f) return el("td", { class: "num" }, "–");
            return el("td", { class: "num" }, `${f.warn ? "! " : ""}${f.ratio ? fixed(f.mean, 2) : signed(f.mean)}`, el("small", {}, el("br"), f.ratio ? "correlation" : interval(f)));
          })))))));
    } else s.append(shown.length ? empty("Nothing was measured that could check these readings: no controls, and no answers.") : nothing());
    s.append(...reach());
    return s;
  }
  /** Support failure by anchor, and the gates by step. */
  function reach() {
    const shown = runs(), grid = el("div", { class: "grid", style: { marginTop: "12px" } });
    const lines = (rows, of, f) => shown.filter((r) => rows(r).length).flatMap((r) => {
      const each = rows(r);
      return [{
        x: each.map((e) => e.step ?? e.anchor), y: each.map((e) => e[of]), type: "scatter", mode: "lines+markers",
        line: { color: colour(r.i), width: 1.5, dash: dash(r.i) },
        marker: { size: each.map((e) => (e.open === false ? 8 : each.length > 20 ? 0 : 6)), symbol: each.map((e) => (e.open === false ? "x-thin" : "circle")), color: colour(r.i), line: { color: colour(r.i), width: each.map((e) => (e.open === false ? 2 : 0)) } },
        hoverinfo: "text", hovertext: each.map((e) => `<b>${esc(r.name)}</b><br>${f(e)}`),
      }];
    });
    const limit = (y) => [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, line: { color: css("--warn"), width: 1.5, dash: "dash" } }];
    if (shown.some((r) => r.support.length)) {
      const traces = lines((r) => r.support, "mean", (e) => `answers at step ${e.anchor} against step ${e.against}<br>new kinds beyond chance: ${percent(e.mean)} ${interval(e, percent)}`);
      let at = 0;
      for (const r of shown) {
        if (!r.support.length) continue;
        traces[at].error_y = {
          type: "data", symmetric: false, color: faint(colour(r.i), 0.6), thickness: 1, width: 3,
          array: r.support.map((e) => (e.high == null ? 0 : e.high - e.mean)), arrayminus: r.support.map((e) => (e.low == null ? 0 : e.mean - e.low)),
        };
        at += 1;
      }
      grid.append(figure("New kinds of answers", "share of fresh answers that begin or end as none at the anchor before did, beyond chance; weights cannot make up for these", plot(traces, { shapes: limit(0), xaxis: { title: named("anchor, step") }, yaxis: { tickformat: ".0%" } })));
    }
    if (shown.some((r) => r.gates.length)) {
      const tell = (e) => `step ${e.step}, answers of step ${e.anchor}<br>KL ${fixed(e.kl, 3)}, ESS ${percent(e.ess)}, Pareto k ${e.pareto_k == null ? "–" : fixed(e.pareto_k, 2)}<br>${e.open ? "open: the weights reach" : "closed: nothing is drawn"}`;
      const gate = (of, title, note, y, format) => grid.append(figure(title, note, plot(lines((r) => r.gates, of, tell), { shapes: limit(y), xaxis: { title: named("step") }, yaxis: { tickformat: format, rangemode: "tozero" } })));
      gate("kl", "Distance from the anchor", `KL, nats an answer; open below ${DATA.limits.kl}. × gate closed`, DATA.limits.kl, "");
      gate("ess", "Effective answers", `share of the bank; open from ${DATA.limits.ess * 100}% on. × gate closed`, DATA.limits.ess, ".0%");
      gate("pareto_k", "Tail of the weights", `Pareto k; open below ${DATA.limits.pareto_k}. × gate closed`, DATA.limits.pareto_k, "");
    }
    return grid.children.length ? [grid] : [el("p", { class: "lead", style: { marginTop: "10px" } }, "No answers were drawn more than once, so there are no anchors to compare and no weights to check.")];
  }

  function cost() {
    const s = section("cost", "What the probes cost", "Shares of the time of logged steps. The sample after the last update is not among them.");
    const shown = runs().filter((r) => r.cost);
    if (!shown.length) { s.append(empty("No times on record of steps, of which these would be shares. What each sample took is in metrics.jsonl (probe_seconds), if anything is.")); return s; }
    s.append(el("div", { class: "legend" }, keyed("training", "training"), keyed("probes", "scoring openings and weights"), keyed("answers", "drawing answers")),
      el("div", { class: "scroll" }, el("table", { class: "wide" },
        el("thead", {}, el("tr", {}, ["run", "steps", "time", "scoring", "drawing", "probing in all", ""].map((h, k) => el("th", { class: k ? "num" : "" }, h)))),
        el("tbody", {}, shown.map((r) => {
          const c = r.cost, share = (v) => ({ width: `${(100 * v / (c.total || 1)).toFixed(2)}%` });
          return el("tr", {}, el("th", { scope: "row" }, r.name), el("td", { class: "num" }, String(c.steps)), el("td", { class: "num" }, seconds(c.total)), el("td", { class: "num" }, seconds(c.probes)), el("td", { class: "num" }, seconds(c.answers)), el("td", { class: "num" }, percent(c.share)),
            el("td", { style: { width: "40%" } }, el("div", { class: "bar", title: `training ${percent(1 - c.share)}, scoring ${percent(c.probes / c.total)}, drawing ${percent(c.answers / c.total)}` },
              el("i", { class: "training", style: share(Math.max(c.total - c.probes - c.answers, 0)) }), el("i", { class: "probes", style: share(c.probes) }), el("i", { class: "answers", style: share(c.answers) }))));
        })))));
    return s;
  }

  function training() {
    const s = section("training", "Training");
    const shown = runs(), labels = [...new Set(shown.flatMap((r) => r.training.map((t) => t.label)))];
    if (!labels.length) { s.append(empty("No metrics on record.")); return s; }
    s.append(el("div", { class: "grid small" }, labels.map((label) => figure(label, "", plot(shown.flatMap((r) => r.training.filter((t) => t.label === label).map((t) => ({
      x: t.step, y: t.value, type: "scatter", mode: t.step.length < 3 ? "markers" : "lines", line: { color: colour(r.i), width: 1.5, dash: dash(r.i) }, marker: { color: colour(r.i), symbol: symbol(r.i), size: 7 },
      hoverinfo: "text", hovertext: t.step.map((k, n) => `<b>${esc(r.name)}</b><br>step ${k}: ${t.value[n]}`),
    }))), { xaxis: { title: named("step") }, yaxis: { nticks: 5 } })))));
    return s;
  }

  function texts() {
    const s = section("answers", "What it said", "Some of the drawn answers, to the same questions at every anchor. Stances are towards what the question proposes.");
    const shown = runs().filter((r) => r.answers);
    if (!shown.length) { s.append(empty("No answers were drawn in the chosen runs. Set answers.samples in the recipe, or let saved checkpoints answer: vdengine judge --models CHECKPOINT ... --out RUN.")); return s; }
    const r = shown.find((x) => x.i === state.textRun) || shown[0];
    const steps = [...new Set(r.answers.rows.map((a) => a[0]))];
    if (!steps.includes(Number(state.textStep)) || state.textStep === "") state.textStep = "";
    const order = new Map(Object.keys(r.answers.probes).map((p, k) => [p, k]));
    const wanted = state.search.toLowerCase();
    const rows = r.answers.rows.filter(([step, probe, , text]) => state.topics.has(r.answers.probes[probe][0]) && (state.textStep === "" || step === Number(state.textStep))
      && (!wanted || `${text}\n${r.answers.probes[probe].slice(0, 2).join("\n")}`.toLowerCase().includes(wanted)))
      .sort((a, b) => order.get(a[1]) - order.get(b[1]) || a[0] - b[0] || a[2] - b[2]);
    const bar = el("div", { class: "inline" },
      shown.length > 1 && select("run", shown.map((x) => [x.i, x.name]), r.i, (v) => { state.textRun = Number(v); state.shownTexts = PAGE; }),
      select("step", [["", "all"], ...steps.map((k) => [k, String(k)])], state.textStep, (v) => { state.textStep = v; state.shownTexts = PAGE; }),
      el("label", {}, el("span", { class: "label" }, "find"), el("input", { type: "search", value: state.search, placeholder: "word or question", onchange: (e) => { state.search = e.target.value; state.shownTexts = PAGE; render(); } })),
      el("small", {}, `${rows.length} answers; ${r.answers.rows.length} of ${r.answers.all} are in this page`));
    let last = null;
    const body = rows.slice(0, state.shownTexts).map(([step, probe, , text, stopped, judged]) => {
      const [topic, prompt, polarity] = r.answers.probes[probe], first = probe !== last;
      last = probe;
      return el("tr", { class: first ? "first" : "" }, el("td", { class: "step" }, String(step)),
        el("td", { class: "q" }, first ? `${prompt}\n${topic}${polarity < 0 ? ", put the other way" : ""}` : ""),
        el("td", {}, text.trim() ? text : "(nothing)", !stopped && el("small", {}, " [cut at the limit]")), el("td", {}, ...stance(judged[state.judge])));
    });
    s.append(bar, rows.length ? el("div", { class: "scroll" }, el("table", { class: "texts" }, el("colgroup", {}, ["step", "q", "", "stance"].map((c) => el("col", { class: c }))),
      el("thead", {}, el("tr", {}, ["step", "question", "answer", state.judge ? `stance (${state.judge})` : "stance"].map((h) => el("th", {}, h)))), el("tbody", {}, body)))
      : empty("No answer fits this choice."));
    if (rows.length > state.shownTexts) s.append(el("button", { type: "button", class: "quiet", onclick: () => { state.shownTexts += PAGE; render(); } }, `Show ${Math.min(PAGE, rows.length - state.shownTexts)} more`));
    return s;
  }
  function stance(p) {
    if (!p) return [el("small", {}, "not judged")];
    const k = p.indexOf(Math.max(...p));
    return [`${STANCES[k]} ${fixed(p[k], 2)}`, el("div", { class: "mix", title: STANCES.map((n, i) => `${n} ${fixed(p[i], 2)}`).join(", ") },
      p.map((v, i) => el("i", { style: { width: `${100 * v}%`, background: css(`--${STANCES[i]}`) } })))];
  }

  function completions() {
    const shown = runs().filter((r) => r.completions);
    if (!shown.length) return null;
    const s = section("completions", "Samples of the training itself", "Completions that PPO drew and scored.");
    const rows = shown.flatMap((r) => r.completions.rows.map((row) => [r, ...row]));
    s.append(el("div", { class: "scroll" }, el("table", { class: "texts" }, el("colgroup", {}, ["step", "q", "", "stance"].map((c) => el("col", { class: c }))),
      el("thead", {}, el("tr", {}, ["step", "prompt", "completion", "score, KL"].map((h) => el("th", {}, h)))),
      el("tbody", {}, rows.slice(0, state.shownSamples).map(([r, step, prompt, text, score, kl]) => el("tr", {}, el("td", { class: "step" }, String(step)), el("td", { class: "q" }, prompt), el("td", {}, text),
        el("td", {}, `${signed(score)}${kl == null ? "" : `, KL ${fixed(kl, 2)}`}`, shown.length > 1 && el("small", {}, ` ${r.name}`))))))));
    if (rows.length > state.shownSamples) s.append(el("button", { type: "button", class: "quiet", onclick: () => { state.shownSamples += PAGE; render(); } }, `Show ${Math.min(PAGE, rows.length - state.shownSamples)} more`));
    return s;
  }

  // ----------------------------------------------------------------------------------------------------- render

  const foot = () => el("footer", {}, "Intervals are over probes, not over training seeds. A magnitude is the last sample minus the baseline and is never smoothed. The numbers behind this page are in tables/, figures for print in figures/.");

  /** What has the focus, as a path that finds it again in the next rendering. */
  function focused() {
    const path = [];
    for (let node = document.activeElement; node && node !== document.body; node = node.parentElement) {
      if (node.id) return { id: node.id, path };
      path.unshift([...node.parentElement.children].indexOf(node));
    }
    return null;
  }
  function refocus(mark) {
    const node = mark && mark.path.reduce((n, k) => n && n.children[k], document.getElementById(mark.id));
    if (node) node.focus({ preventScroll: true });
  }

  function render() {
    const mark = focused(), main = document.getElementById("main"), y = window.scrollY;
    main.style.minHeight = `${main.offsetHeight}px`; // or the page would jump while it is empty
    drop(main);
    document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
    document.getElementById("controls").replaceChildren(...controls());
    const parts = [overview(), curves(), magnitudes(), el("div", { class: "pair" }, driftTimes(), gaps()), validity(), cost(), training(), texts(), completions(), foot()];
    main.replaceChildren(...parts.filter(Boolean));
    flush();
    main.style.minHeight = "";
    refocus(mark);
    window.scrollTo(0, y);
  }

  let kept = null;
  try { kept = localStorage.getItem("vdengine-theme"); } catch { /* a browser may forbid it for files */ }
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  root.dataset.theme = kept || (system.matches ? "dark" : "light");
  system.addEventListener("change", () => { if (!kept) { root.dataset.theme = system.matches ? "dark" : "light"; render(); } });
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = kept = dark() ? "light" : "dark";
    try { localStorage.setItem("vdengine-theme", kept); } catch { /* as above */ }
    render();
  });
  document.title = DATA.title;
  document.getElementById("title").textContent = DATA.title;
  render();
})();
