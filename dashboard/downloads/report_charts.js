// Draws the charts of a report: each div.chart from the JSON in the script element after it. Follows the color scheme, and print.
const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".chart")];
const PAPER = 680; // pixels: the width of a printed page

function template(isDark) {
  const [background, text, line] = isDark ? ["#11161D", "#E6EAF0", "#323C49"] : ["#FFFFFF", "#1B2430", "#D5DAE1"];
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  const font = { color: text, family: "Arial, Helvetica, Liberation Sans, sans-serif", size: 12 };
  return { layout: { paper_bgcolor: background, plot_bgcolor: background, font, xaxis: axis, yaxis: axis, coloraxis: { colorbar: { outlinewidth: 0 } } } };
}

function paint(isDark, width) {
  for (const chart of charts) Plotly.relayout(chart, { template: template(isDark), width: width ?? null, autosize: !width });
}

for (const chart of charts) {
  const { data, layout, config } = JSON.parse(chart.nextElementSibling.textContent);
  // below the title of the axis, however many lines the legend has
  if (0 > layout.legend?.y) Object.assign(layout.legend, { y: 0, yref: "container", yanchor: "bottom" });
  Plotly.newPlot(chart, data, { ...layout, template: template(dark.matches), autosize: true }, config);
}
dark.addEventListener("change", () => paint(dark.matches));
addEventListener("beforeprint", () => paint(false, PAPER));
addEventListener("afterprint", () => paint(dark.matches));
