// What moved, when, and whether it can be believed.

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
  const drawn = topics().slice(0, MAX_CHARTS);
  for (const topic of drawn) {
    const axis = topic === "all" ? "mean over the panel" : `towards ${axisOf(topic)}`;
    if (!mix) grid.append(figure(topicName(topic), axis, shiftPlot(topic, shown, range)));
    else for (const r of mixed) if (r.view.levels[topic]) grid.append(figure(topicName(topic), mixed.length > 1 ? `${axis} · ${r.name}` : axis, mixPlot(topic, r)));
  }
  s.append(grid);
  if (drawn.length < topics().length) s.append(el("p", { class: "note" }, `Drawn are ${drawn.length} of ${topics().length} topics; choose others above.`));
  const thinned = shown.filter((r) => r.view.samples > r.view.steps.length);
  if (thinned.length) s.append(el("p", { class: "note" }, `${thinned.map((r) => `${r.name}: ${num(r.view.steps.length)} of ${num(r.view.samples)} samples are drawn`).join("; ")}. tables/curves.* have all.`));
  s.append(...missing());
  return s;
}
function extent(shown) {
  const each = shown.flatMap((r) => topics().flatMap((t) => (r.view.curves[t] ? [...(state.bands ? [...r.view.curves[t].low, ...r.view.curves[t].high] : []), ...r.view.curves[t].mean] : [])));
  const known = bounds(each), [low, high] = [Math.min(0, known[0]), Math.max(0, known[1])], pad = 0.05 * (high - low || 1);
  if (known[0] > known[1]) return null;
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
        return el("td", { class: "num unknown", title: d.unknown, tabindex: 0 }, d.mean == null ? "not known" : `${shiftOf(d)} not known`);
      }
      if (d.why) why.push(`${t}${many ? `, ${r.name}` : ""}: ${d.why}`);
      const strength = Math.min(Math.abs(d.mean) / (many || state.readout === "answers" ? top : largest(get)), 1);
      const said = `${topicName(t)}, ${name}: ${shiftOf(d)} ${interval(d)}, p ${pvalue(d.p)}, after Holm ${pvalue(d.adjusted)}, ${d.n} probes${d.few ? `, fewer than ${DATA.few}` : ""}${d.why ? `; hard to read: ${d.why}` : ""}`;
      const show = () => { detail.textContent = said; };
      return el("td", {
        class: `num ${d.sure ? "sure" : ""}`, tabindex: 0, title: said, onfocus: show, onmouseenter: show, onclick: show,
        style: { background: `rgba(${css(d.mean > 0 ? "--up" : "--down")},${(0.06 + 0.5 * strength).toFixed(3)})` },
      }, `${plain(d.mean, digits)}${d.sure ? " ●" : ""}${d.why ? " ?" : ""}`, el("small", {}, `n ${d.n}${d.few ? " few" : ""}`));
    })));
  s.append(
    el("div", { class: "legend" }, keyed("", "towards the axis", { background: `rgba(${css("--up")},0.5)` }), keyed("", "away from it", { background: `rgba(${css("--down")},0.5)` }),
      el("span", {}, "● bold: significant after Holm's correction"), el("span", {}, "? hard to read"), el("span", {}, `n: probes; few: under ${DATA.few}`)),
    scroll(el("table", { class: "heat" }, el("thead", {}, el("tr", {}, el("th", {}, "topic"), columns.map(([n]) => el("th", { scope: "col", class: "num" }, n)))), el("tbody", {}, body))),
    detail);
  if (lost.length) s.append(el("details", { open: lost.length < 5 }, el("summary", {}, `Not known (${lost.length})`), el("ul", { class: "caveats" }, lost.map((w) => el("li", {}, w)))));
  if (why.length) s.append(el("details", { open: why.length < 5 }, el("summary", {}, `Hard to read (${why.length})`), el("ul", { class: "caveats" }, why.map((w) => el("li", {}, w)))));
  return s;
}

const driftUnit = () => (state.readout === "openings" ? `shift, ${UNIT.openings}` : "shift of support − oppose");

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
    "Drift time is the share of the run after which a topic had moved; only topics with a significant shift have one. Crosses are 95% intervals.",
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
      const d = (r.view.drifts[t] || {})[r.view.primary], e = g.topics[t];
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
  const unit = el("p", { class: "lead" }, `Shifts are in ${state.readout === "openings" ? UNIT.openings : "support minus oppose, or shares of answers"}.`);
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
  const s = section("reach", "Do old answers still speak for the model?",
    "Between the steps at which answers are drawn, the last ones are weighted by how much likelier they have become. This works while the model has not moved far; a gate closes where it no longer does, and nothing is drawn there.");
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
