// Under the pointer: the step, and the values of every curve there.
"use strict";

function nearest(points, step) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < step) low = middle; else high = middle;
  }
  return step - points[low][0] < points[high][0] - step ? points[low] : points[high];
}

function shown(value) {
  if (value === null) return "not finite";
  if (Math.abs(value) >= 1000) return value.toLocaleString("en");
  return value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : String(value);
}

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const { first, last, curves } = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor");
  const output = figure.querySelector("output"), latest = output.textContent;

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const part = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const found = curves.map(({ name, points }) => [name, nearest(points, first + part * (last - first))]);
    const step = found[0][1][0];
    const values = found.map(([name, [at, value]]) =>
      `${name} ${shown(value)}${at === step ? "" : ` (at ${at.toLocaleString("en")})`}`);
    output.textContent = `step ${step.toLocaleString("en")}: ${values.join(" · ")}`;
    cursor.style.left = `${100 * (last > first ? (step - first) / (last - first) : 0.5)}%`;
    cursor.hidden = false;
  });
  plot.addEventListener("pointerleave", () => {
    output.textContent = latest;
    cursor.hidden = true;
  });
}
