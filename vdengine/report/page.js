// Rendering: the whole page anew whenever the reader chooses something.

const foot = () => el("footer", {}, "Intervals are over probes: they are about these weights, not about what the recipe gives with another seed. A magnitude is the last sample minus the baseline and is never smoothed. The numbers behind this page are in tables/, figures for print in figures/.");

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
  const parts = [overview(), curves(), magnitudes(), byStage(), seeds(), el("div", { class: "pair" }, driftTimes(), gaps()), capability(), training(), texts(), completions(), recipes(), cost(), diagnostics(), foot()];
  main.replaceChildren(...parts.filter(Boolean));
  flush();
  watchScroll();
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
