"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("chart-data").textContent);
  const root = document.documentElement;
  const hidden = new Set(); // the contestants that the legends have switched off, in all charts
  const PRINTED_WIDTH = 680; // of a chart on paper, in pixels

  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  // A figure names its colours as CSS variables, so that it follows light and dark.
  const resolved = (value) => {
    if (typeof value === "string") {
      const match = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return match ? colour(match[1]) : value;
    }
    if (Array.isArray(value)) return value.map(resolved);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolved(one)]));
    return value;
  };

  const axis = (own) => ({
    gridcolor: "var(--line)", linecolor: "var(--line)", zeroline: false, automargin: true, fixedrange: true,
    ticks: "", ...own, title: { standoff: 12, font: { size: 13 }, ...(own && own.title) },
  });

  const shown = (marks) => (marks || []).filter(({ meta }) => !hidden.has(meta));

  const layoutOf = (own) => resolved({
    height: 420, width: root.dataset.theme === "paper" ? PRINTED_WIDTH : undefined,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "var(--muted)" },
    hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--line)", font: { color: "var(--ink)", size: 13 } },
    hovermode: "closest", dragmode: false, showlegend: false,
    ...own, xaxis: axis(own.xaxis), yaxis: axis(own.yaxis),
    margin: { l: 8, r: 12, t: 16, b: 8, pad: 6, ...own.margin },
    shapes: shown(own.shapes), annotations: shown(own.annotations),
  });

  const same = (one, other) => one.every((value, index) => value === other[index]);

  const start = (figure) => {
    const id = figure.dataset.chart;
    const variants = charts[id];
    const plot = figure.querySelector(".plot");
    const caption = figure.querySelector("[data-caption]");
    let chosen = variants[0].choice.slice();

    // What was chosen first decides what can be chosen after it: not every contestant has every layer.
    const reachable = (index, value) => variants.some(
      ({ choice }) => choice[index] === value && same(chosen.slice(0, index), choice));

    const settle = () => {
      chosen.forEach((value, index) => {
        if (!reachable(index, value))
          chosen[index] = variants.find(({ choice }) => same(chosen.slice(0, index), choice)).choice[index];
      });
      figure.querySelectorAll("button[data-choice]").forEach((button) => {
        const index = Number(button.dataset.choice);
        button.setAttribute("aria-pressed", String(chosen[index] === button.dataset.value));
        button.disabled = !reachable(index, button.dataset.value);
      });
      figure.querySelectorAll("select[data-choice]").forEach((select) => {
        const index = Number(select.dataset.choice);
        for (const option of select.options) option.disabled = !reachable(index, option.value);
        select.value = chosen[index];
      });
    };

    const draw = () => {
      const variant = variants.find(({ choice }) => same(chosen, choice));
      const data = resolved(variant.figure.data).map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
      caption.textContent = variant.caption;
      figure.querySelectorAll("button[data-trace]").forEach((button) =>
        button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.trace)))));
      return Plotly.react(plot, data, layoutOf(variant.figure.layout), { displayModeBar: false, responsive: true });
    };

    const choose = (index, value) => {
      chosen[index] = value;
      settle();
      draw();
    };

    figure.querySelectorAll("button[data-choice]").forEach((button) =>
      button.addEventListener("click", () => choose(Number(button.dataset.choice), button.dataset.value)));
    figure.querySelectorAll("select[data-choice]").forEach((select) =>
      select.addEventListener("change", () => choose(Number(select.dataset.choice), select.value)));
    figure.querySelectorAll("button[data-trace]").forEach((button) => {
      const trace = Number(button.dataset.trace);
      if (!variants.some(({ figure: one }) => one.data.some(({ meta }) => meta === trace))) {
        button.hidden = true;
        return;
      }
      button.addEventListener("click", () => {
        if (!hidden.delete(trace)) hidden.add(trace);
        redraw();
      });
    });
    settle();
    draw();
    return draw;
  };

  const draws = [...document.querySelectorAll("[data-chart]")].map(start);
  const redraw = () => draws.forEach((draw) => draw());
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // On paper everything is light, as wide as the paper, and open.
  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = closed();
    opened.forEach((one) => { one.open = true; });
    root.dataset.theme = "paper";
    redraw();
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((one) => { one.open = false; });
    delete root.dataset.theme;
    redraw();
  });
})();
