// How training went, what it cost, how the recipes differ, and what the model said.

/** What fits beside a low plot. */
const brief = (text) => (text.length > 22 ? `${text.slice(0, 20)}…` : text);
/** Charts of metrics: those of the objective and the optimizer, or further ones. */
function charts(shown, other) {
  return DATA.charts.flatMap((chart, k) => {
    const lines = shown.filter((r) => r.training[k]);
    if (chart.other !== other || !lines.length) return [];
    const traces = lines.map((r) => {
      const t = r.training[k];
      return {
        x: t.step, y: t.value, type: "scatter", mode: t.step.length < 3 ? "markers" : "lines", connectgaps: false, line: { color: colour(r.i), width: 1.5, dash: dash(r.i) },
        marker: { color: colour(r.i), symbol: symbol(r.i), size: 7 }, hoverinfo: "text", hovertext: t.step.map((step, n) => `<b>${esc(r.name)}</b><br>step ${step.toLocaleString("en-US")}: ${num(t.value[n])}`),
      };
    });
    const last = lines.length === 1 && lines[0].training[k].last != null ? `last ${num(lines[0].training[k].last)}` : "";
    const values = lines.flatMap((r) => r.training[k].value);
    return figure(chart.title, last, plot(traces, staged({ xaxis: stepAxis(), yaxis: { title: named(esc(brief(chart.quantity))), nticks: 5, ...rangeOf(values) } }, shown), "low"));
  });
}

function training() {
  const s = section("training", "How training went");
  const shown = runs(), figures = charts(shown, false);
  if (!figures.length) { s.append(empty("No metrics on record: metrics.jsonl is missing, or has no number that is charted here.")); return s; }
  if (shown.length > 1) s.append(el("div", { class: "legend" }, shown.map((r) => el("span", {}, swatch(r.i), r.name))));
  s.append(el("div", { class: "grid small" }, figures));
  const thinned = shown.filter((r) => r.training.some((t) => t && t.all > t.step.length));
  if (thinned.length) s.append(el("p", { class: "lead" }, `Lines of ${thinned.map((r) => r.name).join(", ")} are thinned: of each stretch of steps the lowest and the highest value are drawn.`));
  return s;
}
function otherMetrics() {
  const figures = charts(runs(), true);
  return figures.length ? section("metrics", "Further metrics", "As the trainer names them.", el("div", { class: "grid small" }, figures)) : null;
}

/** Tasks beside drift: a curve for each with its standard error, and what has changed since the first check. */
function capability() {
  const shown = runs().filter((r) => r.capability.length);
  if (!shown.length) return null;
  const s = section("capability", "What the model still can", "Tasks of multiple choice at the same steps. Bars are standard errors of a value; a change is paired over the same rows, so its interval is narrower than two bars suggest.");
  if (shown.length > 1) s.append(el("div", { class: "legend" }, shown.map((r) => el("span", {}, swatch(r.i), r.name))));
  const keys = [...new Map(shown.flatMap((r) => r.capability.map((c) => [`${c.task}, ${c.metric}`, c]))).keys()];
  const of = (r, key) => r.capability.find((c) => `${c.task}, ${c.metric}` === key);
  s.append(el("div", { class: "grid small" }, keys.map((key) => {
    const traces = shown.filter((r) => of(r, key)).map((r) => {
      const c = of(r, key);
      return {
        x: c.step, y: c.value, error_y: { type: "data", array: c.stderr, thickness: 1, width: 2 }, type: "scatter", mode: "lines+markers", line: { color: colour(r.i), width: 1.5, dash: dash(r.i) },
        marker: { color: colour(r.i), symbol: symbol(r.i), size: 5 }, hoverinfo: "text", hovertext: c.step.map((step, n) => `<b>${esc(r.name)}</b><br>step ${step.toLocaleString("en-US")}: ${num(c.value[n])} ± ${num(c.stderr[n])}`),
      };
    });
    return figure(key, `${num(of(shown.find((r) => of(r, key)), key).rows)} rows`, plot(traces, staged({ xaxis: stepAxis(), yaxis: { title: named("share right"), nticks: 5 } }, shown.filter((r) => of(r, key))), "low"));
  })));
  const changed = shown.flatMap((r) => r.capability.filter((c) => c.change).map((c) => [r, c]));
  if (changed.length) {
    s.append(scroll(el("table", { class: "wide" },
      el("thead", {}, el("tr", {}, ["run", "task", "first", "last", "change", "95% interval", "lost", "gained", "p (McNemar)"].map((h, k) => el("th", { class: k > 1 ? "num" : "" }, h)))),
      el("tbody", {}, changed.map(([r, c]) => el("tr", {}, el("th", { scope: "row" }, r.name), el("td", {}, `${c.task}, ${c.metric}`),
        [num(c.value[0]), num(c.value[c.value.length - 1]), num(c.change.mean), `[${num(c.change.low)}, ${num(c.change.high)}]`, num(c.change.lost), num(c.change.gained), num(c.change.p)].map((text) => el("td", { class: "num" }, text))))))));
  }
  return s;
}

function cost() {
  const s = section("cost", "What the probes cost", "Shares of the time of logged steps. The sample after the last update is not among them.");
  const shown = runs().filter((r) => r.cost);
  if (!shown.length) { s.append(empty("No times on record of steps, of which these would be shares. What each sample took is in metrics.jsonl (probe_seconds), if anything is.")); return s; }
  s.append(el("div", { class: "legend" }, keyed("training", "training"), keyed("probes", "scoring leads, texts and weights"), keyed("answers", "drawing answers")),
    scroll(el("table", { class: "wide" },
      el("thead", {}, el("tr", {}, ["run", "steps", "time", "scoring", "drawing", "probing in all", ""].map((h, k) => el("th", { class: k ? "num" : "" }, h)))),
      el("tbody", {}, shown.map((r) => {
        const c = r.cost, share = (v) => ({ width: `${(100 * v / (c.total || 1)).toFixed(2)}%` });
        return el("tr", {}, el("th", { scope: "row" }, r.name), el("td", { class: "num" }, num(c.steps)), el("td", { class: "num" }, seconds(c.total)), el("td", { class: "num" }, seconds(c.probes)), el("td", { class: "num" }, seconds(c.answers)), el("td", { class: "num" }, percent(c.share)),
          el("td", { style: { width: "40%" } }, el("div", { class: "bar", title: `training ${percent(1 - c.share)}, scoring ${percent(c.probes / c.total)}, drawing ${percent(c.answers / c.total)}` },
            el("i", { class: "training", style: share(Math.max(c.total - c.probes - c.answers, 0)) }), el("i", { class: "probes", style: share(c.probes) }), el("i", { class: "answers", style: share(c.answers) }))));
      })))));
  return s;
}

/** Keys of the recipes in which the chosen runs differ. */
function recipes() {
  if (DATA.runs.length < 2) return null;
  const s = section("recipes", "How the runs differ", "Keys of the recipes whose values differ.");
  const { differing, without } = DATA.recipes, shown = runs();
  const rows = Object.entries(differing).filter(([, values]) => new Set(shown.map((r) => values[r.i])).size > 1);
  if (rows.length && shown.length) {
    s.append(scroll(el("table", { class: "diff" },
      el("thead", {}, el("tr", {}, el("th", {}, "key"), shown.map((r) => el("th", { scope: "col" }, swatch(r.i), " ", r.name)))),
      el("tbody", {}, rows.map(([name, values]) => el("tr", {}, el("th", { scope: "row" }, name), shown.map((r) => el("td", {}, values[r.i] ?? el("small", {}, "not set")))))))));
  } else if (shown.length > 1) s.append(empty("No key differs between the chosen runs, apart from run.folder."));
  else s.append(empty("Choose two runs or more to compare them."));
  if (without.length) s.append(el("p", { class: "note" }, `${without.join(", ")}: without a recipe, so not compared.`));
  return s;
}
/** What all the recipes say. */
function recipe() {
  const rows = Object.entries(DATA.recipes.alike);
  if (!rows.length) return null;
  return section("recipe", DATA.runs.length > 1 ? "What the recipes have in common" : "The recipe", "",
    el("dl", { class: "facts keys" }, rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value || el("small", {}, "empty"))))));
}

/** The first anchor's answers beside the last one's: [probe, [answer of the first, of the last]], an answer as in rows. */
function pairsOf(r) {
  const { anchors, rows, probes } = r.answers, ends = [anchors[0], anchors[anchors.length - 1]];
  const at = new Map(rows.map((a) => [`${a[0]}/${a[2]}/${a[1]}`, a]));
  return Object.keys(probes).flatMap((p) => [0, 1].map((k) => [p, ends.map((step) => at.get(`${step}/${k}/${p}`))])).filter(([, pair]) => pair[0] || pair[1]);
}
/** An answer's words; `before`: the other's, whose words at the start are shown faintly where they are the same. */
function words(answer, before) {
  if (!answer) return [el("small", {}, "no answer on record")];
  const [, , , text, stopped, judged] = answer;
  let same = 0;
  if (before) {
    const [a, b] = [text, before[3]];
    while (same < a.length && same < b.length && a[same] === b[same]) same += 1;
    if (same < text.length) same = text.lastIndexOf(" ", same) + 1;
  }
  return [same > 0 && el("span", { class: "same" }, text.slice(0, same)), text.trim() ? text.slice(same) : "(nothing)", !stopped && el("small", {}, " [cut at the limit]"),
    judged[state.judge] && el("div", { class: "judged" }, ...stance(judged[state.judge]))];
}

function texts() {
  const s = section("answers", "What it said");
  const shown = runs().filter((r) => r.answers);
  if (!shown.length) { s.append(empty("No answers were drawn in the chosen runs. Set answers.samples in the recipe, or let saved checkpoints answer: vdengine judge --models CHECKPOINT ... --out RUN.")); return s; }
  const r = shown.find((x) => x.i === state.textRun) || shown[0], anchors = r.answers.anchors;
  const [first, last] = [anchors[0], anchors[anchors.length - 1]], compare = state.compare && first !== last;
  const chance = r.answers.temperature ? ` They are drawn at temperature ${num(r.answers.temperature)}, so some of the difference is chance.` : "";
  s.append(el("p", { class: "lead" }, (compare ? `The same questions, answered at step ${num(first)} and at step ${num(last)}. What both answers begin with is faint in the second.${chance}` : "Some of the drawn answers, to the same questions at every anchor.")
    + (state.judge ? " Stances are of whole answers, towards what the question proposes." : " No judge has read them yet.")));
  if (first === last) s.append(el("p", { class: "note" }, `Answers were drawn at step ${num(first)} only: the model's words cannot be compared yet.`));
  const steps = [...new Set(r.answers.rows.map((a) => a[0]))];
  if (!steps.includes(Number(state.textStep))) state.textStep = "";
  const wanted = state.search.toLowerCase();
  const fits = (probe, said) => state.topics.has(r.answers.probes[probe][0]) && (!wanted || [...r.answers.probes[probe].slice(0, 2), ...said].join("\n").toLowerCase().includes(wanted));
  const again = () => { state.shownTexts = PAGE; };
  const bar = el("div", { class: "inline" },
    shown.length > 1 && select("run", shown.map((x) => [x.i, x.name]), r.i, (v) => { state.textRun = Number(v); again(); }),
    first !== last && segmented("Which answers", [["compare", "First and last"], ["all", "Every anchor"]], compare ? "compare" : "all", (v) => { state.compare = v === "compare"; again(); }),
    compare ? checkbox("only those that changed", state.onlyChanged, (v) => { state.onlyChanged = v; again(); })
      : select("step", [["", "all"], ...steps.map((k) => [k, String(k)])], state.textStep, (v) => { state.textStep = v; again(); }),
    el("label", {}, el("span", { class: "label" }, "find"), el("input", { type: "search", value: state.search, placeholder: "word or question", onchange: (e) => { state.search = e.target.value; again(); render(); } })));
  s.append(bar);
  const question = (probe) => { const [topic, prompt, polarity] = r.answers.probes[probe]; return `${prompt}\n${topic}${polarity < 0 ? ", put the other way" : ""}`; };
  let rows, head, columns, cells;
  if (compare) {
    rows = pairsOf(r).filter(([probe, pair]) => fits(probe, pair.map((a) => (a ? a[3] : ""))) && !(state.onlyChanged && pair[0] && pair[1] && pair[0][3] === pair[1][3]));
    [head, columns] = [["question", `step ${num(first)}, first`, `step ${num(last)}, last`], ["third", "third", "third"]];
    cells = ([probe, [a, b]], isFirst) => [
      el("td", { class: "q" }, isFirst ? question(probe) : ""), el("td", { "data-at": `step ${first}` }, words(a)),
      el("td", { "data-at": `step ${last}` }, a && b && a[3] === b[3] ? [el("small", { class: "word" }, "word for word the same"), b[5][state.judge] && el("div", { class: "judged" }, ...stance(b[5][state.judge]))] : words(b, a)),
    ];
  } else {
    const order = new Map(Object.keys(r.answers.probes).map((p, k) => [p, k]));
    rows = r.answers.rows.filter(([step, probe, , text]) => fits(probe, [text]) && (state.textStep === "" || step === Number(state.textStep)))
      .sort((a, b) => order.get(a[1]) - order.get(b[1]) || a[0] - b[0] || a[2] - b[2]).map((a) => [a[1], a]);
    [head, columns] = [["step", "question", "answer", state.judge ? `stance (${state.judge})` : "stance"], ["step", "q", "", "stance"]];
    cells = ([probe, [step, , , text, stopped, judged]], isFirst) => [
      el("td", { class: "step" }, String(step)), el("td", { class: "q" }, isFirst ? question(probe) : ""),
      el("td", {}, text.trim() ? text : "(nothing)", !stopped && el("small", {}, " [cut at the limit]")), el("td", {}, ...stance(judged[state.judge])),
    ];
  }
  bar.append(el("small", {}, `${num(rows.length)} ${compare ? "pairs" : "answers"}; ${num(r.answers.rows.length)} of ${num(r.answers.all)} answers are in this page`));
  let before = null;
  const body = rows.slice(0, state.shownTexts).map((row) => {
    const isFirst = row[0] !== before;
    before = row[0];
    return el("tr", { class: isFirst ? "first" : "" }, cells(row, isFirst));
  });
  s.append(rows.length ? scroll(el("table", { class: `texts ${compare ? "compare" : ""}` }, el("colgroup", {}, columns.map((c) => el("col", { class: c }))),
    el("thead", {}, el("tr", {}, head.map((h) => el("th", {}, h)))), el("tbody", {}, body)))
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
  s.append(scroll(el("table", { class: "texts" }, el("colgroup", {}, ["step", "q", "", "stance"].map((c) => el("col", { class: c }))),
    el("thead", {}, el("tr", {}, ["step", "prompt", "completion", "score, KL"].map((h) => el("th", {}, h)))),
    el("tbody", {}, rows.slice(0, state.shownSamples).map(([r, step, prompt, text, score, kl]) => el("tr", {}, el("td", { class: "step" }, num(step)), el("td", { class: "q" }, prompt), el("td", {}, text),
      el("td", {}, `${signed(score)}${kl == null ? "" : `, KL ${num(kl)}`}`, shown.length > 1 && el("small", {}, ` ${r.name}`))))))));
  if (rows.length > state.shownSamples) s.append(el("button", { type: "button", class: "quiet", onclick: () => { state.shownSamples += PAGE; render(); } }, `Show ${Math.min(PAGE, rows.length - state.shownSamples)} more`));
  return s;
}
