// The page's program, one of five files that are put together in one scope and one script element, whose hash the page's
// policy names (report/page.py): tools (data, state, formats, controls), plots, drift, run, and page.js, which renders.

const DATA = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const touch = window.matchMedia("(pointer: coarse)").matches;
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#b0568f", "#a87400", "#2a8fc4"];
const DARK = ["#4fa8e0", "#f0803c", "#2bc49a", "#e39bc5", "#f0b429", "#8cd0f5"];
const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"];
const MANY = 4; // with more runs than this, bands of intervals hide each other: off until asked for
const PAGE = 20; // texts at a time
const MAX_CHARTS = 40; // of topics
const STANCES = ["support", "neutral", "oppose"];
const CHANNELS = {
  lead: "lead", stance: "question less none", question: "after the question", null: "after no question", graded: "support − oppose",
  yes_bias: "yes-bias", neutral: "neutral", displacement: "displacement", support: "support", oppose: "oppose",
};
const RULES = {
  frac95: "at 95% of its extreme", ci95: "first within the interval of its extreme (sooner with fewer probes)",
  settled: "settled: stays within the interval of the last",
};

const READINGS = DATA.readings; // the readouts, in the order in which they are shown
const MAIN = READINGS.filter((r) => r.name !== "drawn_lead"); // it is a choice of whole answers
const state = {
  readout: DATA.readout || (READINGS.find((r) => r.there) || READINGS[0]).name,
  judge: DATA.judges[0] || "",
  topics: new Set(DATA.topics.map((t) => t.name)),
  runs: new Set(DATA.runs.map((_, i) => i)),
  mode: { lead: "shift", answers: "mix", text_likelihood: "shift" }, // what is drawn, by kind of readout
  mixRun: 0,
  rule: "frac95",
  parts: true, // of text likelihood
  bands: DATA.runs.length <= MANY,
  oneScale: true,
  textRun: null,
  textStep: "",
  compare: true, // answers: the first step's beside the last one's
  onlyChanged: false,
  open: new Set(), // folds, by id
  search: "",
  shownTexts: PAGE,
  shownSamples: PAGE,
};

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
/** A number to three significant digits. */
const num = (x) => {
  if (x == null) return "–";
  const size = Math.abs(x);
  if (size >= 100 && size < 1e9) return Math.round(x).toLocaleString("en-US").replace("-", "−");
  return (size > 0 && (size < 1e-3 || size >= 1e9) ? x.toExponential(2).replace(/\.?0+e/, "e") : String(Number(x.toPrecision(3)))).replaceAll("-", "−");
};
/** A number with its sign, to `d` decimals; a smaller one to two significant digits. */
const signed = (x, d = 2) => {
  if (x == null) return "–";
  if (x === 0) return fixed(0, d);
  const text = Math.abs(x) < 0.5 * 10 ** -d ? (Math.abs(x) < 1e-4 ? x.toExponential(1) : String(Number(x.toPrecision(2)))).replaceAll("-", "−") : fixed(x, d);
  return (x > 0 ? "+" : "") + text;
};
/** A shift of this readout: what rounding alone gives is 0. */
const moved = (x, d = 2) => signed(x != null && Math.abs(x) <= reading().rounding ? 0 : x, d);
/** Decimals that show two significant digits of the larger end of an interval; two at least, or all its numbers are 0. */
function decimals(e) {
  const size = Math.max(...[e.mean, e.low, e.high].map((v) => Math.abs(v || 0)));
  return size > reading().rounding ? Math.min(Math.max(2, 1 - Math.floor(Math.log10(size))), 5) : 2;
}
/** An estimate of a shift: its mean, to the digits that its interval leaves. */
const shiftOf = (e) => moved(e.mean, decimals(e));
/** A number with its sign, to `d` decimals, whatever its size: for columns of numbers, whose hover has the digits. */
const plain = (x, d) => (Number(x.toFixed(d)) === 0 ? fixed(0, d) : (x > 0 ? "+" : "") + fixed(x, d));
const percent = (x) => (x == null ? "–" : fixed(100 * x, x !== 0 && Math.abs(x) < 0.1 ? 1 : 0) + "%");
const interval = (e, f = (x) => moved(x, decimals(e))) => (e.low == null ? "no interval" : `[${f(e.low)}, ${f(e.high)}]`);
const pvalue = (p) => (p == null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const seconds = (s) => (s >= 3600 ? fixed(s / 3600, 1) + " h" : s >= 90 ? fixed(s / 60, 1) + " min" : fixed(s, s < 10 ? 1 : 0) + " s");
const topicName = (t) => (t === "all" ? "all topics" : t);
const axisOf = (t) => (DATA.topics.find((x) => x.name === t) || { axis: "" }).axis;
const colour = (i) => (dark() ? DARK : LIGHT)[i % LIGHT.length];
const dash = (i) => DASHES[Math.floor(i / LIGHT.length) % DASHES.length];
const symbol = (i) => SYMBOLS[(i + Math.floor(i / LIGHT.length)) % SYMBOLS.length];
const faint = (hex, a) => `rgba(${[1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)).join(",")},${a})`;
const reading = () => READINGS.find((r) => r.name === state.readout);
const isAnswers = () => reading().kind === "answers";
/** The name of a run's view: of a readout, and of answers by a judge. */
const keyOf = (reading, judge) => [reading.kind, ...(reading.part ? [judge] : []), ...(reading.part && reading.part !== "both" ? [reading.part] : [])].join(":");
const runs = () => DATA.runs.map((r, i) => ({ ...r, i, view: r.views[keyOf(reading(), state.judge)] })).filter((r) => state.runs.has(r.i));
const viewed = () => runs().filter((r) => r.view);
const topics = (all = true) => [...(all ? ["all"] : []), ...DATA.topics.map((t) => t.name).filter((t) => state.topics.has(t))];
const drop = (node) => node.querySelectorAll(".plot").forEach((p) => Plotly.purge(p));

const swatch = (i) => swatchOf(colour(i), dash(i));
function swatchOf(colour, dash) {
  const svg = document.getElementById("swatch").content.firstElementChild.cloneNode(true);
  const line = svg.querySelector("line");
  line.setAttribute("stroke", colour);
  line.setAttribute("stroke-dasharray", { solid: "none", dash: "6 3", dot: "2 3" }[dash]);
  return svg;
}

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
      segmented("Readout", MAIN.map((r) => [r.name, r.label, !r.there]), state.readout === "drawn_lead" ? "answers" : state.readout, (v) => { state.readout = v; }),
      DATA.judges.length > 1 && select("judge", DATA.judges.map((j) => [j, j]), state.judge, (v) => { state.judge = v; }),
      DATA.judges.length === 1 && isAnswers() && el("small", {}, `judge: ${state.judge}`),
      ["answers", "drawn_lead"].includes(state.readout) && segmented("Part", [["answers", "all of it"], ["drawn_lead", "first word"]], state.readout, (v) => { state.readout = v; })),
    el("span", { class: "label" }, "Topics"),
    chips("topics", DATA.topics.map((t) => t.name), state.topics, (v) => v),
  ];
  if (DATA.runs.length > 1) {
    out.push(el("span", { class: "label" }, "Runs"), chips("runs", DATA.runs.map((_, i) => i), state.runs, (i) => DATA.runs[i].name, swatch));
  }
  return out;
}

const section = (id, title, lead, ...body) =>
  el("section", { id }, el("h2", {}, title), lead && el("p", { class: "lead" }, lead), ...body);
const empty = (text) => el("p", { class: "empty" }, text);
/** A wide thing that scrolls sideways in a box of its own, with a shadow and a word where there is more of it. */
function scroll(child) {
  const box = el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "a wide table" }, child);
  return el("div", { class: "scrollbox" }, box, el("small", { class: "hint" }, "scroll sideways for more →"));
}
/** Say of each such box whether there is more of it on either side. */
function watchScroll() {
  for (const box of document.querySelectorAll(".scroll")) {
    const look = () => {
      const rest = box.scrollWidth - box.clientWidth;
      box.parentElement.classList.toggle("more-right", box.scrollLeft < rest - 2);
      box.parentElement.classList.toggle("more-left", box.scrollLeft > 2);
      box.parentElement.classList.toggle("is-wide", rest > 2);
    };
    box.onscroll = look;
    look();
  }
}
/** A fold whose body is made when it is opened: a closed one has no width to draw plots in. */
function fold(id, title, make) {
  const body = el("div", {});
  const fill = () => { if (!body.hasChildNodes()) { body.append(...make().flat(Infinity).filter(Boolean)); flush(); watchScroll(); } };
  const node = el("details", { id, class: "fold", open: state.open.has(id), ontoggle: () => {
    if (node.open) { state.open.add(id); fill(); } else state.open.delete(id);
  } }, el("summary", {}, title), body);
  if (state.open.has(id)) body.append(...make().flat(Infinity).filter(Boolean)); // it is drawn with the rest
  return node;
}
