// What moved, when, and whether it can be believed.

/** Why some chosen runs have nothing in this readout; runs with the same reason together. */
function missing() {
  const why = new Map();
  for (const r of runs().filter((x) => !x.view)) {
    const others = judgesOf(r);
    const text = r.empty[reading().kind] || (others.includes(state.judge) ? `${state.judge} has read whole answers only` : `not judged by ${state.judge}; there is ${others.join(", ")}`);
    why.set(text, [...(why.get(text) || []), r.name]);
  }
  return [...why].map(([text, names]) => el("p", { class: "note" }, `${names.join(", ")}: ${text}`));
}
const nothing = () => (!state.runs.size ? empty("No run is chosen.") : empty("Nothing to show for this readout in the chosen runs."));
const judgesOf = (r) => [...new Set(Object.values(r.views).map((v) => v.judge).filter(Boolean))];

/** A run's readouts in their order, [reading, view]; answers as the chosen judge reads them, or else its first one. */
function viewsOf(r) {
  const judges = judgesOf(r), judge = judges.includes(state.judge) ? state.judge : judges[0];
  return MAIN.map((reading) => [reading, r.views[keyOf(reading, judge)]]).filter(([, view]) => view);
}
/** What limits the reading of a run, each said once, with the readouts that it is about where it is not about all. */
function caveatsOf(r) {
  const about = new Map(), views = viewsOf(r);
  for (const [reading, view] of views) for (const c of view.caveats) about.set(c, [...(about.get(c) || []), reading.label]);
  return [...about].map(([c, labels]) => (labels.length === views.length ? c : `${labels.join(", ")}: ${c}`));
}
function overview() {
  const chosen = runs(), short = chosen.length > 2;
  const shared = short ? caveatsOf(chosen[0]).filter((c) => chosen.every((r) => caveatsOf(r).includes(c))) : [];
  const list = (items) => items.length > 0 && el("ul", { class: "caveats" }, items.map((c) => el("li", {}, c)));
  const cards = chosen.map((r) => {
    const views = viewsOf(r);
    const facts = el("dl", { class: "facts" }, r.header.map(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]));
    const more = views.map(([reading, v]) => v.verdict[1] && el("p", { class: "more" }, short ? `${reading.label}: ${v.verdict[1]}` : v.verdict[1]));
    return el("article", { class: "card" }, el("h3", {}, DATA.runs.length > 1 && swatch(r.i), r.name),
      views.map(([, v], k) => [el("p", { class: "verdict" }, v.verdict[0]), !short && more[k]]),
      Object.values(r.empty).map((text) => el("p", { class: "more" }, text)),
      list(caveatsOf(r).filter((c) => !shared.includes(c))),
      r.notes.map((n) => el("p", { class: "note" }, n)),
      short ? el("details", {}, el("summary", {}, "Details"), more, facts) : facts);
  });
  return el("div", { id: "overview" },
    el("dl", { class: "facts readings" }, MAIN.filter((m) => m.there).map((m) => [el("dt", {}, m.label), el("dd", {}, m.sentence)])),
    el("div", { class: `runs ${["", "one", "two"][cards.length] || ""}` }, cards.length ? cards : empty("No run is chosen.")), list(shared));
}

/** What can be drawn of this readout, and how each is explained. */
function modes(shown) {
  const kind = reading().kind, said = { argument: "what they argue", answers: "all they say", drawn_lead: "their first word" }[state.readout];
  const beside = state.readout !== "drawn_lead" && shown.some((r) => besideSeries(r, "all").length > 1);
  const all = {
    mix: ["Stance mix", `Shares of answers that support, stay neutral on or oppose each topic's axis, by ${said}. All topics: the mean over the panel.`],
    shift: ["Shift", {
      lead: "Change since the baseline of p(yes) − p(no) as an answer's first word, turned to the topic's side: above zero, towards the axis. Below each curve its coverage, how many answers begin with either.",
      answers: "Change of support minus oppose since the baseline, as judged.",
      text_likelihood: "Change since the baseline of how likely texts for the axis are as answers to its questions, against texts on the other side, less the same after no question. Above zero: towards the axis.",
    }[kind]],
    level: ["Level", "p(yes) − p(no) as an answer's first word, turned to the topic's side: 1 where every answer begins on the axis's side, −1 where every one begins against it. Below each curve its coverage, how many answers begin with either."],
    beside: ["Lead beside argument", `What answers begin with, what they argue and what they say as a whole, on one axis: support minus oppose as ${state.judge} reads it. The lead is in this judge's units: a bare yes or no counts for what the judge makes of it.`],
  };
  const names = { lead: ["shift", "level"], answers: ["mix", "shift"], text_likelihood: ["shift"] }[kind];
  return [...names, ...(beside && kind !== "text_likelihood" ? ["beside"] : [])].map((name) => [name, ...all[name]]);
}
function curves() {
  const shown = viewed(), choices = modes(shown), kind = reading().kind;
  const [mode, , lead] = choices.find(([name]) => name === state.mode[kind]) || choices[0];
  const single = mode === "mix" || mode === "beside"; // charts of one run each
  const bar = el("div", { class: "inline" });
  if (choices.length > 1) bar.append(segmented("What to draw", choices.map(([name, text]) => [name, text]), mode, (v) => { state.mode[kind] = v; }));
  if (single && shown.length > 2) {
    if (!shown.some((r) => r.i === state.mixRun)) state.mixRun = shown[0].i;
    bar.append(select("run", shown.map((r) => [r.i, r.name]), state.mixRun, (v) => { state.mixRun = Number(v); }));
  }
  if (mode !== "mix") bar.append(checkbox("95% intervals", state.bands, (v) => { state.bands = v; }));
  if (mode === "shift") bar.append(checkbox("same scale for all topics", state.oneScale, (v) => { state.oneScale = v; }));
  if (kind === "text_likelihood" && shown.length === 1) bar.append(checkbox("its two parts", state.parts, (v) => { state.parts = v; }));
  const s = section("curves", `${reading().label} over the run`, lead, bar);
  if (!shown.length) { s.append(nothing(), ...missing()); return s; }
  s.append(el("div", { class: "legend" }, ...{ mix: mixLegend, beside: besideLegend, shift: shiftLegend, level: shiftLegend }[mode](shown)));
  const grid = el("div", { class: "grid" });
  const chosen = shown.length > 2 ? shown.filter((r) => r.i === state.mixRun) : shown;
  const range = mode === "shift" && state.oneScale ? extent(shown) : null;
  const drawn = topics().slice(0, MAX_CHARTS);
  const make = { mix: mixPlot, beside: besidePlot }[mode];
  for (const topic of drawn) {
    const axis = topic === "all" ? "mean over the panel" : `towards ${axisOf(topic)}`;
    if (!single) grid.append(figure(topicName(topic), axis + uncovered(topic, shown), curvePlot(topic, shown, range, mode === "level")));
    else for (const r of chosen) if (r.view.levels[topic]) grid.append(figure(topicName(topic), chosen.length > 1 ? `${axis} · ${r.name}` : axis, make(topic, r)));
  }
  s.append(grid);
  if (drawn.length < topics().length) s.append(el("p", { class: "note" }, `Drawn are ${drawn.length} of ${topics().length} topics; choose others above.`));
  const thinned = shown.filter((r) => r.view.samples > r.view.steps.length);
  if (thinned.length) s.append(el("p", { class: "note" }, `${thinned.map((r) => `${r.name}: ${num(r.view.steps.length)} of ${num(r.view.samples)} steps are drawn`).join("; ")}. tables/curves.* have all.`));
  if (mode === "beside") for (const r of chosen) if ((r.beside[state.judge] || {}).why) s.append(el("p", { class: "note" }, `${r.name}: the lead is not drawn: ${r.beside[state.judge].why}`));
  s.append(...missing());
  return s;
}
/** The last number of a series. */
const lastOf = (series) => series.filter((v) => v != null).pop();
/** A word on a topic whose leads say nothing, as few answers begin with one. */
function uncovered(topic, shown) {
  if (reading().kind !== "lead") return "";
  const few = shown.map((r) => [r.name, r.view.levels[topic] && lastOf(r.view.levels[topic].coverage.mean)]).filter(([, c]) => c != null && c < DATA.limits.coverage);
  return few.length ? ` · says nothing${shown.length > 1 ? ` of ${few.map(([name]) => name).join(", ")}` : ""}: coverage ${few.map(([, c]) => percent(c)).join(", ")}` : "";
}
function extent(shown) {
  const parts = drawnParts(shown);
  const each = shown.flatMap((r) => topics().flatMap((t) => {
    const c = r.view.curves[t];
    return c ? [...c.mean, ...(state.bands ? [...c.low, ...c.high] : []), ...(r.view.points ? r.view.points.curves[t].mean : []), ...parts.flatMap(([part]) => r.view.parts[t][part].mean)] : [];
  }));
  const known = bounds(each), [low, high] = [Math.min(0, known[0]), Math.max(0, known[1])], pad = 0.05 * (high - low || 1);
  if (known[0] > known[1]) return null;
  return [low - pad, high + pad];
}
const keyed = (cls, text, style) => el("span", {}, el("i", { class: `key ${cls}`, style }), text);
/** Whether old answers are weighted between the steps at which they were drawn. */
const weighted = (shown) => shown.some((r) => Object.values(r.views).some((v) => (v.kinds || []).includes("weighted")));
/** What marks of answers are, and how the curve goes on between the steps at which they were drawn. */
function between(shown) {
  const views = shown.flatMap((r) => Object.values(r.views)).filter((v) => v.judge), fitted = views.find((v) => v.points);
  if (fitted) return `hollow marks: fresh answers of one step; the curve: ${fitted.smoothing.startsWith("ema") ? "a moving average" : "a local linear fit"} over these steps`;
  if (!views.length || weighted(shown)) return "";
  return `marks: fresh answers of one step${views.every((v) => ["none", "local-linear"].includes(v.smoothing)) ? ", joined by lines" : ""}`;
}
const mixLegend = (shown) => [
  keyed("", "support", { background: css("--support") }), keyed("", "neutral", { background: css("--neutral") }),
  keyed("", "oppose (striped)", { background: `repeating-linear-gradient(45deg, ${css("--oppose")} 0 4px, ${css("--card")} 4px 5px)` }),
  between(shown) && el("span", {}, between(shown)), weighted(shown) && el("span", {}, "○ fresh answers; between them weighted ones"), keyed("", "95% interval", { background: faint(css("--ink"), 0.55) }),
  weighted(shown) && keyed("blank", "nothing drawn: the weights do not reach"),
].filter(Boolean);
function shiftLegend(shown) {
  const out = shown.map((r) => el("span", {}, swatch(r.i), r.name));
  if (isAnswers() && weighted(shown)) out.push(el("span", {}, "large marks: fresh answers; small: weighted ones; gaps: the weights do not reach"));
  if (isAnswers() && between(shown)) out.push(el("span", {}, between(shown)));
  if (state.bands) out.push(el("span", {}, "band: 95% interval"));
  if (drawnParts(shown).length) out.push(el("span", {}, "grey, dashed: after the question; dotted: after no question. The curve is the one less the other"));
  if (reading().kind === "lead") out.push(el("span", {}, `below ${percent(DATA.limits.coverage)} of coverage, the dashed line, nothing is said`));
  return out;
}
const besideLegend = (shown) => [
  ...BESIDE.map(([, label], k) => el("span", {}, swatchOf(colour(k), DASHES[k]), label)),
  between(shown) && el("span", {}, between(shown)), weighted(shown) && el("span", {}, "large marks: fresh answers; small: weighted ones"), state.bands && el("span", {}, "band: 95% interval"),
].filter(Boolean);

function magnitudes() {
  const shown = viewed(), many = shown.length > 1, kind = reading().kind;
  const s = section("magnitudes", "How far each topic moved",
    `Last sample minus baseline, in ${reading().unit}; plus is towards the axis. ${many ? "" : "The first column is the readout; the others are for checking it. "}Point at or tap a cell for its interval, which is about these weights: other questions might have given another number. What another seed of the recipe might give is not in it.`);
  if (!shown.length) { s.append(nothing()); return s; }
  const columns = many ? shown.map((r) => [r.name, (t) => (r.view.drifts[t] || {})[r.view.primary], r]) : shown[0].view.channels
    .filter((c) => c !== "coverage").sort((a, b) => (b === shown[0].view.primary) - (a === shown[0].view.primary))
    .map((c) => [CHANNELS[c] || c, (t) => (shown[0].view.drifts[t] || {})[c], shown[0]]);
  /** How many answers begin with yes or no, at the start and now. */
  const coverage = (r, t) => (kind === "lead" && r.view.levels[t] ? r.view.levels[t].coverage.mean.filter((v) => v != null) : []);
  const rows = [...topics(false), "all"];
  const largest = (get) => Math.max(...rows.map((t) => Math.abs((get(t) || {}).mean || 0)), 1e-9);
  const digits = decimals({ mean: Math.max(...columns.map(([, get]) => Math.max(...rows.map((t) => Math.abs((get(t) || {}).mean || 0))))) });
  const top = Math.max(...columns.map(([, get]) => largest(get)));
  const detail = el("p", { class: "detail", "aria-live": "polite" });
  const why = [], lost = [];
  const body = rows.map((t) => el("tr", {}, el("th", { scope: "row" }, topicName(t), el("small", {}, t === "all" ? "mean over the panel" : axisOf(t))),
    columns.map(([name, get, r]) => {
      const d = get(t);
      if (!d) return el("td", { class: "num" }, "–");
      if (d.unknown) {
        lost.push(`${topicName(t)}${many ? `, ${r.name}` : `, ${name}`}: ${d.unknown}`);
        return el("td", { class: "num unknown", title: d.unknown, tabindex: 0 }, d.mean == null ? "not known" : `${plain(d.mean, digits)} not known`);
      }
      if (d.why) why.push(`${t}${many ? `, ${r.name}` : ""}: ${d.why}`);
      const strength = Math.min(Math.abs(d.mean) / (many || kind !== "text_likelihood" ? top : largest(get)), 1);
      const said = `${topicName(t)}, ${name}: ${shiftOf(d)} ${interval(d)}, p ${pvalue(d.p)}, after Holm ${pvalue(d.adjusted)}, ${d.n} probes${d.few ? `, fewer than ${DATA.few}` : ""}${d.why ? `; hard to read: ${d.why}` : ""}`;
      const show = () => { detail.textContent = said; };
      return el("td", {
        class: `num ${d.sure ? "sure" : ""}`, tabindex: 0, title: said, onfocus: show, onmouseenter: show, onclick: show,
        style: { background: `rgba(${css(d.mean > 0 ? "--up" : "--down")},${(0.06 + 0.5 * strength).toFixed(3)})` },
      }, `${plain(d.mean, digits)}${d.sure ? " ●" : ""}${d.why ? " ?" : ""}`, el("small", {}, `n ${d.n}${d.few ? " few" : ""}${many && coverage(r, t).length ? `, cov. ${percent(lastOf(coverage(r, t)))}` : ""}`));
    }),
    !many && kind === "lead" && el("td", { class: "num" }, coverage(shown[0], t).length ? `${percent(coverage(shown[0], t)[0])} → ${percent(lastOf(coverage(shown[0], t)))}` : "–")));
  s.append(
    el("div", { class: "legend" }, keyed("", "towards the axis", { background: `rgba(${css("--up")},0.5)` }), keyed("", "away from it", { background: `rgba(${css("--down")},0.5)` }),
      el("span", {}, "● bold: significant after Holm's correction"), el("span", {}, "? hard to read"), el("span", {}, `n: probes; few: under ${DATA.few}`)),
    scroll(el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("th", {}, "topic"), columns.map(([n]) => el("th", { scope: "col", class: "num" }, n)),
      !many && kind === "lead" && el("th", { scope: "col", class: "num" }, "coverage, start → now"))), el("tbody", {}, body))),
    detail);
  if (lost.length) s.append(el("details", { open: lost.length < 5 }, el("summary", {}, `Not known (${lost.length})`), el("ul", { class: "caveats" }, lost.map((w) => el("li", {}, w)))));
  if (why.length) s.append(el("details", { open: why.length < 5 }, el("summary", {}, `Hard to read (${why.length})`), el("ul", { class: "caveats" }, why.map((w) => el("li", {}, w)))));
  return s;
}

/** What the recipe does, where runs repeat it with other seeds. */
function seeds() {
  const groups = DATA.repeats.filter((g) => g.runs.some((i) => state.runs.has(i)));
  if (!groups.length) return null;
  const s = section("seeds", "What the recipe does, whatever its seed",
    "Runs of one recipe that differ in their seed, taken together. The interval is about the recipe: it holds other seeds and other questions. Those above are about the weights of one run each.");
  const key = keyOf(reading(), state.judge);
  for (const g of groups) {
    const names = `${g.runs.map((i) => DATA.runs[i].name).join(", ")} (seeds ${g.seeds.join(", ")})`;
    const found = g.shifts[key];
    if (!found) { s.append(empty(`${names}: ${g.refused[key] || "none of these runs has this readout"}.`)); continue; }
    const digits = decimals({ mean: Math.max(...Object.values(found).map((e) => Math.abs(e.mean || 0))) });
    const shownTopics = [...topics(false), "all"].filter((t) => found[t]);
    s.append(el("h3", {}, names), scroll(el("table", { class: "recipe-shifts" },
      el("thead", {}, el("tr", {}, ["topic", `shift, ${reading().unit}`, "95% interval", "each run", "spread of seeds", "seeds", "probes"].map((h, k) => el("th", { scope: "col", class: k ? "num" : "" }, h)))),
      el("tbody", {}, shownTopics.map((t) => {
        const e = found[t];
        return el("tr", {}, el("th", { scope: "row" }, topicName(t), el("small", {}, t === "all" ? "mean over the panel" : axisOf(t))),
          e.unknown ? el("td", { class: "num unknown", colspan: 2, title: e.unknown }, "not known") : [
            el("td", { class: `num ${e.significant ? "sure" : ""}` }, `${plain(e.mean || 0, digits)}${e.significant ? " ●" : ""}`),
            el("td", { class: "num" }, e.low == null ? "no interval" : `[${plain(e.low, digits)}, ${plain(e.high, digits)}]`)],
          el("td", { class: "num" }, e.by_run.map((v) => (v == null ? "–" : plain(v, digits))).join(", ")),
          el("td", { class: "num" }, e.seed_deviation == null ? "–" : fixed(e.seed_deviation, digits)),
          el("td", { class: "num" }, num(e.num_seeds)), el("td", { class: "num" }, `${num(e.num_probes)}${e.few ? " few" : ""}`));
      })))));
  }
  s.append(el("p", { class: "detail" }, el("small", {}, "● the interval excludes 0; of many topics some will by chance. Spread of seeds: the standard deviation of runs around the recipe, what probes alone give taken off.")));
  return s;
}

/** Each stage of the histories by itself, since its own start; a stage that several share is shown once. */
function byStage() {
  const shown = viewed().filter((r) => r.stages.length);
  if (!shown.length) return null;
  const key = keyOf(reading(), state.judge), columns = new Map();
  for (const r of shown) {
    for (const stage of r.stages) {
      const view = stage.views[key], id = JSON.stringify([stage.name, stage.first, view]);
      if (view && !columns.has(id)) columns.set(id, [stage.name, `steps ${num(stage.first)} to ${num(stage.last)}`, (t) => (view.drifts[t] || {})[r.view.primary], stage.first]);
    }
    columns.set(`whole ${r.i}`, [shown.length > 1 ? `whole of ${r.name}` : "whole", `steps 0 to ${num(r.total)}`, (t) => (r.view.drifts[t] || {})[r.view.primary], 0]);
  }
  const each = [...columns.values()], rows = [...topics(false), "all"];
  const largest = Math.max(...each.flatMap(([, , get]) => rows.map((t) => Math.abs((get(t) || {}).mean || 0))), 1e-9), digits = decimals({ mean: largest });
  const cell = ([name, , get, first], t) => {
    const d = get(t);
    if (!d || d.mean == null) return el("td", { class: "num unknown", title: (d || {}).unknown }, d ? "not known" : "–");
    const [step, fraction] = d.times[state.rule], when = step == null ? "" : `, by step ${num(first + step)} (${percent(fraction)})`;
    return el("td", {
      class: `num ${d.sure ? "sure" : ""}`, title: `${topicName(t)}, ${name}: ${shiftOf(d)} ${interval(d)}${d.unknown ? `, not known: ${d.unknown}` : ""}`,
      style: { background: `rgba(${css(d.mean > 0 ? "--up" : "--down")},${d.unknown ? 0 : (0.06 + 0.5 * Math.min(Math.abs(d.mean) / largest, 1)).toFixed(3)})` },
    }, d.unknown ? `${plain(d.mean, digits)} not known` : `${plain(d.mean, digits)}${d.sure ? " ●" : ""}`, el("small", {}, `${interval(d, (x) => plain(x, digits))}${when}`));
  };
  const s = section("stages", "Stage by stage",
    `What each stage did since its own start, and all of them together, in ${reading().unit}, with 95% intervals; in brackets the share of the stretch after which a topic had moved. Stages that cancel out leave no shift of the whole.`);
  s.append(scroll(el("table", { class: "heat" },
    el("thead", {}, el("tr", {}, el("th", {}, "topic"), each.map(([name, steps]) => el("th", { scope: "col", class: "num" }, name, el("br"), el("small", {}, steps))))),
    el("tbody", {}, rows.map((t) => el("tr", {}, el("th", { scope: "row" }, topicName(t), el("small", {}, t === "all" ? "mean over the panel" : axisOf(t))), each.map((c) => cell(c, t))))))));
  return s;
}

const driftUnit = () => `shift, ${reading().unit}`;

function driftTimes() {
  const shown = viewed(), found = [], without = [], unknown = [];
  for (const r of shown) {
    const late = [];
    for (const t of topics(false)) {
      const d = (r.view.drifts[t] || {})[r.view.primary];
      if (!d) continue;
      if (d.unknown) { unknown.push(`${shown.length > 1 ? `${r.name}: ` : ""}${t}: ${d.unknown}`); continue; }
      const [step, fraction, low, high] = d.times[state.rule];
      if (step == null) { late.push(t); continue; }
      found.push({
        r, x: [d.mean, d.low, d.high], y: [fraction, low, high], label: t,
        text: `<b>${esc(t)}</b>, ${esc(r.name)}<br>shift ${shiftOf(d)} ${interval(d)}<br>by step ${step}, ${percent(fraction)} of the stage [${percent(low)}, ${percent(high)}]`,
      });
    }
    if (late.length) without.push(`${shown.length > 1 ? `${r.name}: ` : ""}${late.join(", ")}`);
  }
  const s = section("times", "When it moved, and how far",
    `Drift time is the share of the run after which a topic had moved; only topics with a significant shift have one. Crosses are 95% intervals.${shown.some((r) => r.view.points) ? " The time is read off the curve, which goes on between the steps at which answers were drawn." : ""}`,
    el("div", { class: "inline" }, select("drift time", Object.entries(RULES), state.rule, (v) => { state.rule = v; })));
  if (found.length) {
    if (shown.length > 1) s.append(el("div", { class: "legend" }, shown.map((r) => el("span", {}, swatch(r.i), r.name))));
    s.append(points(found, { title: named(driftUnit()) }, { title: named("drift time, share of the run"), tickformat: ".0%", range: [-0.03, 1.08] }, { shapes: [zeroLine(upright)] }));
  } else s.append(shown.length ? empty(unknown.length && !without.length ? "Not known for any topic." : "No topic has a significant shift, so none has a drift time.") : nothing());
  if (without.length) s.append(el("details", { open: without.length < 3 }, el("summary", {}, "No significant shift"), el("ul", { class: "caveats" }, without.map((w) => el("li", {}, w)))));
  if (unknown.length) s.append(el("details", { open: unknown.length < 3 }, el("summary", {}, "Not known"), el("ul", { class: "caveats" }, unknown.map((w) => el("li", {}, w)))));
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
      const own = (r.edges.length ? r.stages[r.stages.length - 1].views[keyOf(reading(), state.judge)] : null) || r.view; // the data are of the last stage
      const d = (own.drifts[t] || {})[r.view.primary], e = g.topics[t];
      if (!d || !e || e.gap == null || d.mean == null) continue;
      found.push({
        r, x: [e.gap, e.low, e.high], y: [d.mean, d.low, d.high], label: t, hollow: !d.sure,
        text: `<b>${esc(t)}</b>, ${esc(r.name)}<br>gap ${signed(e.gap)} ${interval(e, signed)}, ${e.rows} pairs${e.few ? " (few)" : ""}, by ${esc(g.method)}<br>drift ${shiftOf(d)} ${interval(d)}`,
      });
    }
  }
  if (!found.length) { s.append(empty("No chosen topic has both a gap and a drift in the chosen runs.")); return s; }
  s.append(el("div", { class: "legend" }, shown.length > 1 && shown.map((r) => el("span", {}, swatch(r.i), r.name)),
    el("span", {}, "filled: significant drift; hollow: not"), el("span", {}, `gap read by: ${methods.join(", ")}`)));
  s.append(points(found, { title: named("value gap, chosen less rejected") }, { title: named(driftUnit()) },
    { shapes: [zeroLine(upright), zeroLine({ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0 })] }));
  if (DATA.gaps.some((g) => g.other_panel)) s.append(el("p", { class: "note" }, "An audit was made with another panel than the runs': topics are matched by name."));
  return s;
}

/** Checks of the last sample that are marked, by name. */
const marked = (shown) => [...new Set(shown.flatMap((r) => r.view.strip.filter((c) => c.warn).map((c) => c.label)))];
/** All that one needs to doubt these numbers, in one fold; what is marked is named on it. */
function diagnostics() {
  const shown = viewed(), warned = marked(shown);
  const title = [el("strong", {}, "Can it be believed? Checks and diagnostics"), el("small", {}, warned.length ? ` ! marked: ${warned.join(", ")}` : " nothing is marked")];
  return el("section", { id: "diagnostics" }, fold("checks", title, () => [validity(shown), reach(), recipe(), otherMetrics()]));
}
function validity(shown) {
  const s = section("validity", "What else moved, and do parts of the panel agree?",
    "The last sample against the baseline. ! marks a side effect at least half as large as the largest clear shift, or an agreement that is low; “not known” is what has no number, as where nothing moved.");
  const value = (c) => (c.mean == null ? "not known" : `${c.warn ? "! " : ""}${c.ratio ? fixed(c.mean, 2) : shiftOf(c)}`);
  const range = (c) => (c.mean == null ? "" : c.ratio ? "correlation" : interval(c));
  const names = [...new Map(shown.flatMap((r) => r.view.strip.map((c) => [c.name, c]))).values()];
  const unit = el("p", { class: "lead" }, `Shifts are in ${reading().unit}${isAnswers() ? ", or shares of answers" : ""}.`);
  if (names.length && shown.length === 1) {
    s.append(unit, el("div", { class: "tiles", id: "strip" }, names.map((c) => el("div", { class: `card ${c.warn ? "warned" : ""}` },
      el("h3", {}, c.label), el("p", { class: "value" }, `${value(c)} `, el("small", {}, range(c))),
      el("small", {}, c.what)))));
  } else if (names.length) {
    s.append(unit, scroll(el("table", { id: "strip" },
      el("thead", {}, el("tr", {}, el("th", {}, "check"), shown.map((r) => el("th", { scope: "col", class: "num" }, r.name)))),
      el("tbody", {}, names.map((c) => el("tr", {}, el("th", { scope: "row" }, c.label, el("small", {}, c.what)),
        shown.map((r) => {
          const f = r.view.strip.find((x) => x.name === c.name);
          return f ? el("td", { class: "num" }, value(f), el("small", {}, el("br"), range(f))) : el("td", { class: "num" }, "–");
        })))))));
  } else s.append(shown.length ? empty("Nothing was measured that could check these readings: no controls, and no answers.") : nothing());
  return s;
}
/** Whether drawn answers still speak for the model later: new kinds of answers by anchor, and the gates by step. */
function reach() {
  const shown = runs(), grid = el("div", { class: "grid" });
  const s = section("reach", "Do old answers still speak for the model?", shown.some((r) => r.gates.length)
    ? "Between the steps at which answers are drawn, the last ones are weighted by how much likelier they have become. This works while the model has not moved far; a gate closes where it no longer does, and nothing is drawn there."
    : "Answers of each step against those of the step before. Nothing here is weighted: every curve is made of fresh answers.");
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
    grid.append(figure("New kinds of answers", "fresh answers that begin or end as none at the anchor before did, beyond chance; weights cannot make up for these", plot(traces, { shapes: limit(0), xaxis: stepAxis({ title: named("anchor, step") }), yaxis: { title: named("share of answers"), tickformat: ".0%" } })));
  }
  if (shown.some((r) => r.gates.length)) {
    const tell = (e) => `step ${e.step}, answers of step ${e.anchor}<br>KL ${e.kl == null ? "not known" : e.kl < 0 ? `about 0 (estimated as ${num(e.kl)}, from few answers)` : num(e.kl)}, ESS ${percent(e.ess)}, Pareto k ${e.pareto_k == null ? "not computed: too few answers" : num(e.pareto_k)}<br>${e.open ? "open: the weights reach" : `closed: ${esc(e.why)}`}`;
    const gate = (of, title, note, quantity, y, format) => {
      if (!shown.some((r) => r.gates.some((e) => e[of] != null))) { grid.append(figure(title, note, empty(`Not computed: ${shown.flatMap((r) => r.gates).map((e) => e.why)[0]}.`))); return; }
      grid.append(figure(title, note, plot(lines((r) => r.gates, of, tell), { shapes: limit(y), xaxis: stepAxis(), yaxis: { title: named(quantity), tickformat: format, rangemode: "tozero" } })));
    };
    gate("kl", "Distance from the anchor", `open below ${DATA.limits.kl}. × gate closed`, "KL, nats an answer", DATA.limits.kl, "");
    gate("ess", "Effective answers", `open from ${DATA.limits.ess * 100}% on. × gate closed`, "ESS, share of the bank", DATA.limits.ess, ".0%");
    gate("pareto_k", "Tail of the weights", `open below ${DATA.limits.pareto_k}. × gate closed`, "Pareto k", DATA.limits.pareto_k, "");
    const closed = new Map();
    for (const r of shown) for (const e of r.gates) if (!e.open) closed.set(e.why, (closed.get(e.why) || 0) + 1);
    const blind = shown.flatMap((r) => r.gates).filter((e) => e.pareto_k == null).length;
    if (blind) s.append(el("p", { class: "note" }, `In ${blind} readings Pareto k could not be computed, as there are too few answers: the gate is closed there whatever KL says. Draw more of them (answers.samples, answers.probes).`));
  }
  s.append(grid.children.length ? grid : el("p", { class: "lead" }, "No answers were drawn more than once, so there are no anchors to compare and no weights to check."));
  return s;
}
