// Plots: their layout, and the kinds that several sections draw.

function layout(more) {
  const axis = {
    gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, ticks: "outside", ticklen: 4,
    tickcolor: css("--line"), automargin: true, fixedrange: touch, exponentformat: "e", minexponent: 3,
  };
  const { xaxis, yaxis, yaxis2, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest",
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif", size: 12, color: css("--ink") },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--soft"), font: { color: css("--ink"), size: 13 }, align: "left" },
    margin: { l: 46, r: 12, t: 10, b: 38 }, dragmode: touch ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--ink") },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...(yaxis2 ? { yaxis2: { ...axis, ...yaxis2 } } : {}), ...rest,
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
/** The axis of steps. */
const stepAxis = (more = {}) => ({ title: named("step"), tickformat: ",.7~g", nticks: 6, ...more });
/** A plot over steps with the edges of the runs' stages: a line where each begins, and its name at the top; of saved
 * models, which are the steps, the name of each below. */
function staged(more, shown) {
  const begins = new Map();
  for (const r of shown) for (const [step, name] of r.edges) begins.set(step, [...new Set([...(begins.get(step) || []), name])]);
  const line = { color: css("--soft"), width: 1, dash: "dash" };
  const shapes = [...begins.keys()].filter((step) => step > 0).map((step) => ({ type: "line", yref: "paper", x0: step, x1: step, y0: 0, y1: 1, line }));
  const annotations = [...begins].map(([step, names]) => ({
    text: esc(names.join(" / ")), x: step, yref: "paper", y: 1, xanchor: "left", yanchor: "bottom", xshift: step > 0 ? -4 : 0, showarrow: false, font: { size: 11, color: css("--soft") },
  }));
  const models = shown.length && shown.every((r) => r.models.length && String(r.models) === String(shown[0].models)) ? shown[0].models : [];
  const ticks = models.length ? { title: "", tickmode: "array", tickvals: models.map(([step]) => step), ticktext: models.map(([, name]) => esc(name)) } : {};
  return {
    ...more, shapes: [...(more.shapes || []), ...shapes], annotations: [...(more.annotations || []), ...annotations],
    xaxis: { ...more.xaxis, ...ticks }, ...(annotations.length ? { margin: { l: 46, r: 12, t: 22, b: 38 } } : {}),
  };
}
/** The lowest and the highest of values, null left out; [Infinity, -Infinity] of none. */
const bounds = (values) => values.reduce(([low, high], v) => (v == null ? [low, high] : [Math.min(low, v), Math.max(high, v)]), [Infinity, -Infinity]);
/** A range and tick labels for values where Plotly's own hide their size: it draws a constant from 1 below to 1 above. */
function rangeOf(values) {
  const [low, high] = bounds(values), size = Math.max(Math.abs(low), Math.abs(high));
  if (low > high) return {};
  const ticks = size >= 1e3 && size < 1e8 ? { tickformat: ",.6~g" } : {};
  if (high - low > 1e-9 * size) return ticks;
  return { ...ticks, range: low === 0 ? [-1, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)] };
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

const zero = () => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: css("--soft"), width: 1, dash: "dot" } });
/** The parts of text likelihood that are drawn, with their dashes: of one run alone, or lines hide each other. */
const drawnParts = (shown) => (reading().kind === "text_likelihood" && state.parts && shown.length === 1 ? [["question", "dash"], ["null", "dot"]] : []);
/** What the answers of each step say by themselves, as marks, where the curve goes on between those steps. */
const ownAnswers = (points, c, color, symbol, label) => (points ? [{
  x: points.steps, y: c.mean, type: "scatter", mode: "markers", hoverinfo: "text",
  marker: { color: css("--card"), symbol, size: 6, line: { color: faint(color, 0.75), width: 1.5 } },
  hovertext: points.steps.map((s, k) => `<b>${label}</b><br>step ${s}, its ${c.n[k]} probes' fresh answers alone<br>${signed(c.mean[k])} ${interval({ low: c.low[k], high: c.high[k] }, signed)}`),
}] : []);
/** Curves of a topic, a line a run: shifts, or levels of leads. Of leads with their coverage below. */
function curvePlot(topic, shown, range, level) {
  const traces = [], covered = [], kind = reading().kind, parts = drawnParts(shown);
  for (const r of shown) {
    const c = level ? (r.view.levels[topic] || {}).lead : r.view.curves[topic];
    if (!c) continue;
    const x = r.view.steps, kinds = r.view.kinds, points = r.view.points, coverage = kind === "lead" ? r.view.levels[topic].coverage.mean : null;
    if (state.bands) traces.push(area(x, c.low, c.high, faint(colour(r.i), 0.16)));
    const line = { x, type: "scatter", connectgaps: false };
    for (const [part, style] of parts) traces.push({ ...line, y: r.view.parts[topic][part].mean, mode: "lines", line: { color: css("--soft"), width: 1.2, dash: style }, hoverinfo: "skip" });
    const told = (k) => (parts.length ? parts.map(([part]) => `<br>${CHANNELS[part]} ${moved(r.view.parts[topic][part].mean[k], decimals({ mean: c.mean[k] }))}`).join("") : "")
      + (coverage ? `<br>coverage ${percent(coverage[k])}` : "");
    traces.push({
      ...line, y: c.mean, mode: points || (x.length > 40 && !kinds) ? "lines" : "lines+markers", line: { color: colour(r.i), width: 2, dash: dash(r.i) },
      marker: { color: colour(r.i), symbol: symbol(r.i), size: kinds ? kinds.map((k) => (k === "anchor" ? 8 : 3)) : 4 },
      ...(kinds && state.bands ? { error_y: bars(c, faint(colour(r.i), 0.8)) } : {}), hoverinfo: "text",
      hovertext: x.map((s, k) => `<b>${esc(r.name)}</b><br>${esc(topicName(topic))}, step ${s}<br>${shiftOf({ mean: c.mean[k], low: c.low[k], high: c.high[k] })} `
        + `${interval({ low: c.low[k], high: c.high[k] })}${told(k)}<br>${c.n[k]} probes${kinds ? (kinds[k] === "anchor" ? ", fresh answers" : ", weighted answers") : ""}${points ? ", the curve" : ""}`),
    }, ...ownAnswers(points, points && points.curves[topic], colour(r.i), symbol(r.i), esc(r.name)));
    if (coverage) covered.push({ ...line, y: coverage, yaxis: "y2", mode: x.length > 1 ? "lines" : "markers", line: { color: colour(r.i), width: 1.5, dash: dash(r.i) }, hoverinfo: "skip" });
  }
  const yaxis = { title: named(level ? reading().unit : `shift, ${brief(reading().unit)}`), ...(level ? { range: [-1, 1], tickvals: [-1, -0.5, 0, 0.5, 1] } : range ? { range } : {}) };
  if (!covered.length) return plot(traces, staged({ shapes: [zero()], xaxis: stepAxis(), yaxis }, shown));
  const low = bounds(covered.flatMap((t) => t.y))[1] < 0.5; // the word stands where no line is
  const limit = { ...zero(), yref: "y2", y0: DATA.limits.coverage, y1: DATA.limits.coverage, line: { color: css("--warn"), width: 1, dash: "dash" } };
  return plot([...traces, ...covered], staged({
    shapes: [zero(), limit], xaxis: stepAxis({ anchor: "y2" }), yaxis: { ...yaxis, domain: [0.32, 1] },
    yaxis2: { domain: [0, 0.2], range: [0, 1.02], tickvals: [0, 1], tickformat: ".0%", fixedrange: true, showgrid: false },
    annotations: [{ text: "coverage", xref: "paper", yref: "y2", x: 0.01, y: low ? 1 : 0, xanchor: "left", yanchor: low ? "top" : "bottom", showarrow: false, font: { size: 11, color: css("--soft") } }],
  }, shown), "strip");
}
/** Intervals of samples without a neighbour as bars: a band there cannot be seen. */
const bars = (c, color) => {
  const size = (end, sign) => c.mean.map((v, k) => (v == null || c[end][k] == null || c.mean[k - 1] != null || c.mean[k + 1] != null ? 0 : sign * (c[end][k] - v)));
  return { type: "data", symmetric: false, color, thickness: 1.2, width: 3, array: size("high", 1), arrayminus: size("low", -1) };
};
/** The lead, the argument and whole answers of a run on one axis: support minus oppose in the judge's units. */
const BESIDE = [["lead", "lead"], ["argument", "argument"], ["answers", "whole answers"]];
const besideSeries = (r, topic) => BESIDE.flatMap(([name, label], k) => {
  const lead = r.beside[state.judge], view = r.views[keyOf(READINGS.find((x) => x.name === name), state.judge)];
  const [c, x] = name === "lead" ? [((lead || {}).levels || {})[topic], (lead || {}).steps] : view ? [(view.levels[topic] || {}).graded, view.steps] : [];
  return c ? [{ k, label, c, x, ...(name === "lead" ? {} : { kinds: view.kinds, points: view.points }) }] : [];
});
function besidePlot(topic, r) {
  const traces = besideSeries(r, topic).flatMap(({ k, label, c, x, kinds, points }) => [
    ...(state.bands ? [area(x, c.low, c.high, faint(colour(k), 0.14))] : []),
    {
      ...(kinds && state.bands ? { error_y: bars(c, faint(colour(k), 0.8)) } : {}),
      x, y: c.mean, type: "scatter", mode: kinds || (x.length < 3 && !points) ? "lines+markers" : "lines", connectgaps: false, line: { color: colour(k), width: 2, dash: DASHES[k] },
      marker: { color: colour(k), symbol: symbol(k), size: kinds ? kinds.map((kind) => (kind === "anchor" ? 8 : 3)) : 5 }, hoverinfo: "text",
      hovertext: x.map((s, n) => `<b>${label}</b>, ${esc(r.name)}<br>${esc(topicName(topic))}, step ${s}<br>${signed(c.mean[n])} ${interval({ low: c.low[n], high: c.high[n] }, signed)}<br>${c.n[n]} probes${points ? ", the curve" : ""}`),
    },
    ...ownAnswers(points, points && points.levels[topic].graded, colour(k), symbol(k), `${label}, ${esc(r.name)}`),
  ]);
  return plot(traces, staged({ shapes: [zero()], xaxis: stepAxis(), yaxis: { title: named("support − oppose"), range: [-1, 1], tickvals: [-1, -0.5, 0, 0.5, 1] } }, [r]));
}

function mixPlot(topic, r) {
  const { steps: x, kinds, levels, points } = r.view;
  const l = levels[topic];
  const s = l.support, o = l.oppose, n = l.neutral;
  const top = from1(o.mean), floor = x.map(() => 0), ceiling = x.map(() => 1);
  // The marks: of fresh answers, with intervals where they are what the curve is made of and not what it runs between.
  const at = points ? points.steps : x, own = points ? points.levels[topic] : l;
  const anchors = at.map((_, k) => k).filter((k) => (points || kinds[k] === "anchor") && own.support.mean[k] != null);
  const pattern = (shape) => ({ shape, fgcolor: faint(css("--card"), 0.55), size: 7, solidity: 0.12, fillmode: "overlay" });
  const mark = (mean, high, low, colour) => ({
    x: anchors.map((k) => at[k]), y: anchors.map((k) => mean[k]), type: "scatter", mode: "markers", hoverinfo: "skip",
    marker: { color: css("--card"), size: points ? 5 : 7, line: { color: css("--ink"), width: points ? 1 : 1.5 } },
    error_y: points ? {} : {
      type: "data", symmetric: false, array: anchors.map((k) => (high[k] == null ? 0 : high[k] - mean[k])),
      arrayminus: anchors.map((k) => (low[k] == null ? 0 : mean[k] - low[k])), color: colour, thickness: 1.5, width: 3,
    },
  });
  const line = (y) => ({ x, y, type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: css("--ink"), width: 1 } });
  const text = x.map((step, k) => `<b>${esc(topicName(topic))}</b>, ${esc(r.name)}<br>step ${step}, `
    + `${points ? "the curve" : kinds[k] === "anchor" ? "fresh answers" : "weighted answers"}, ${s.n[k]} probes`
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
    line(s.mean), line(top), mark(own.support.mean, s.high, s.low, css("--ink")), mark(from1(own.oppose.mean), from1(o.low), from1(o.high), css("--ink")),
    {
      x, y: plus(s.mean, n.mean.map((v) => (v == null ? null : v / 2))), type: "scatter", mode: "markers",
      marker: { size: 14, opacity: 0, color: css("--ink") }, hoverinfo: "text", hovertext: text,
    },
  ], staged({
    shapes, annotations, hovermode: "x", xaxis: stepAxis({ showgrid: false }),
    yaxis: { title: named("share of answers"), range: [0, 1], tickformat: ".0%", tickvals: [0, 0.25, 0.5, 0.75, 1], showgrid: false },
  }, [r]));
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
