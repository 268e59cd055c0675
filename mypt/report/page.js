"use strict";
// What a pointer, a finger or the arrow keys show of a chart: the values at one step. The page is whole without it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const data = JSON.parse(figure.querySelector("script").textContent);
  const plot = figure.querySelector(".plot");
  const [left, right] = data.range;
  const steps = [...new Set([...data.curves.flatMap((curve) => curve.x), ...data.marks.map((mark) => mark[0])])];
  steps.sort((a, b) => a - b);
  const places = data.curves.map((curve) => new Map(curve.x.map((x, index) => [x, index])));
  let at = -1;
  let cursor = null;
  let tip = null;

  const written = (value) => {
    if (data.form === "count") return Math.round(value).toLocaleString("en-US");
    if (data.form === "rate") return value.toExponential(2);
    const text = Math.abs(value) < 1e5 ? value.toFixed(4) : value.toPrecision(6);
    return data.form === "signed" && value >= 0 ? "+" + text : text;
  };
  const row = (look, name, value) => {
    const line = document.createElement("div");
    if (look) line.append(Object.assign(document.createElement("i"), { className: "key " + look }));
    line.append(name + " ");
    if (value) line.append(Object.assign(document.createElement("b"), { textContent: value }));
    return line;
  };
  const show = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at];
    if (!tip) {
      cursor = Object.assign(document.createElement("div"), { className: "cursor" });
      tip = Object.assign(document.createElement("div"), { className: "tip" });
      tip.setAttribute("role", "status");
      plot.append(cursor, tip);
    }
    const unit = data.x.replace("optimizer ", "");
    tip.replaceChildren(row("", unit, Number(step.toFixed(4)).toLocaleString("en-US", { maximumFractionDigits: 4 })));
    data.curves.forEach((curve, number) => {
      const place = places[number].get(step);
      if (place === undefined) return;
      const value = curve.y[place];
      const error = curve.error && curve.error[place] ? " ± " + curve.error[place].toFixed(4) : "";
      tip.append(row(curve.look, curve.name, value === null ? "NaN or infinite" : written(value) + error));
    });
    for (const [x, words] of data.marks) if (x === step) tip.append(row("", words, ""));
    const share = (step - left) / (right - left);
    cursor.style.left = 100 * share + "%";
    tip.style.left = share < 0.5 ? `calc(${100 * share}% + 10px)` : "auto";
    tip.style.right = share < 0.5 ? "auto" : `calc(${100 * (1 - share)}% + 10px)`;
  };
  const hide = () => {
    if (tip) {
      tip.remove();
      cursor.remove();
    }
    tip = cursor = null;
  };
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = left + ((event.clientX - box.left) / box.width) * (right - left);
    let best = 0;
    steps.forEach((step, index) => {
      if (Math.abs(step - wanted) < Math.abs(steps[best] - wanted)) best = index;
    });
    show(best);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
    if (event.key === "Escape") hide();
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(moves[event.key]);
  });
}
// On paper everything is open.
const closed = [...document.querySelectorAll("details:not([open])")];
addEventListener("beforeprint", () => closed.forEach((one) => (one.open = true)));
addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
