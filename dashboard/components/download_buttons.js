// Adds PNG, SVG and CSV buttons to the toolbar of every plotly chart in the document. Used by the dashboard and by the report.
//
// The browser creates the files from what the chart shows when the button is clicked, so the server stores none. PNG and SVG use plotly's
// own button, which supports only one format and is therefore hidden.
(() => {
  if (window.downloadButtons) return;

  // The text of a label, which plotly treats as HTML. A parsed document is inert: it loads and runs nothing. (Nothing in this file may look
  // like a tag, or Streamlit would discard the script.)
  const plain = (markup) =>
    new DOMParser().parseFromString(String(markup ?? "").replace(/\x3cbr\s*\/?>/gi, " "), "text/html").body.textContent;

  // The number with the digits of its type: a float32 needs at most nine significant digits, not the seventeen of a double.
  function digits(number, single) {
    if (!single) return String(number);
    for (let precision = 6; precision < 9; precision++) {
      const short = Number(number.toPrecision(precision));
      if (Math.fround(short) === number) return String(short);
    }
    return String(number);
  }

  // Patterns of dashboard/text.py, which dashboard/charts/files.py writes in place of the next line.
  // FORMULA and NUMBER
  const [formula, numeric] = [new RegExp(`^(?:${FORMULA})`), new RegExp(`^(?:${NUMBER})$`)];

  // One cell. Text that a spreadsheet would evaluate gets a leading apostrophe, unless it is a number.
  function cell(value, single = false) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return Number.isFinite(value) ? digits(value, single) : "";
    return guarded(plain(value));
  }

  function guarded(text) {
    if (formula.test(text) && !numeric.test(text)) text = "'" + text;
    return /[",\r\n\t]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  const columnOf = (values, index) => cell(values?.[index], values instanceof Float32Array);

  // Title of a subplot: the annotation above its axes, or the name of its axis if there is none.
  function panel(layout, trace) {
    const [x, y] = [trace.xaxis ?? "x", trace.yaxis ?? "y"].map((id) => layout[`${id[0]}axis${id.slice(1)}`]);
    const near = (a, b) => Math.abs(a - b) < 1e-3;
    const title = (layout.annotations ?? []).find(
      (a) =>
        a.xref === "paper" && a.yref === "paper" && a.yanchor === "bottom" && x && y && near(a.y, y.domain[1]) &&
        a.x > x.domain[0] - 1e-3 && x.domain[1] + 1e-3 > a.x,
    );
    return title ? title.text : (trace.xaxis ?? "x");
  }

  // A heatmap as a matrix, with x in the first row and y in the first column. customdata has the values if the colors show something else.
  function matrix({ x, y, z, customdata }) {
    const values = customdata?.length === z.length && customdata[0]?.length === z[0]?.length ? customdata : z;
    const columns = Array.from(values[0] ?? [], (_, j) => (x ? columnOf(x, j) : String(j)));
    return [["y \\ x", ...columns], ...Array.from(values, (row, i) => [y ? columnOf(y, i) : String(i), ...Array.from(row, (_, j) => columnOf(row, j))])];
  }

  // Curves, bars and points: a row for each point. Several heatmaps, or heatmaps among curves: the same, with z.
  function long(traces, layout) {
    const panels = new Set(traces.map((t) => `${t.xaxis ?? "x"}${t.yaxis ?? "y"}`)).size > 1;
    const error = traces.some((t) => t.error_y?.visible && t.error_y.array);
    const z = traces.some((t) => t.z);
    const lines = [[...(panels ? ["panel"] : []), "curve", "x", "y", ...(error ? ["error"] : []), ...(z ? ["z"] : [])]];
    for (const trace of traces) {
      const first = [...(panels ? [cell(panel(layout, trace))] : []), cell(trace.name)];
      const add = (x, y, i, value) =>
        lines.push([...first, x, y, ...(error ? [trace.error_y?.visible ? columnOf(trace.error_y.array, i) : ""] : []), ...(z ? [value] : [])]);
      if (trace.z) {
        const [head, ...rows] = matrix(trace);
        rows.forEach(([y, ...values]) => values.forEach((value, j) => add(head[j + 1], y, j, value)));
      } else {
        const length = Math.max(trace.x?.length ?? 0, trace.y?.length ?? 0);
        for (let i = 0; i < length; i++) add(trace.x ? columnOf(trace.x, i) : String(i), columnOf(trace.y, i), i, "");
      }
    }
    return lines;
  }

  // The data of a chart as CSV, including hidden curves. traces, layout: plotly's own, with defaults filled in.
  function csv(traces, layout) {
    const shown = traces.filter((t) => t.visible !== false);
    const lines = shown.length === 1 && shown[0].z?.length ? matrix(shown[0]) : long(shown, layout);
    return lines.map((line) => line.join(",") + "\r\n").join("");
  }

  const BYTE_ORDER = "\ufeff"; // at the beginning of CSV, so that spreadsheets recognize UTF-8

  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // Files cannot use the font of the page: text would not fit the space that was measured for it.
  const PIXELS = 2; // of a PNG per pixel of the page, so that it is sharp in print
  const FONT = "Arial, Helvetica, Liberation Sans, sans-serif";
  const withFont = (value) =>
    Array.isArray(value) || ArrayBuffer.isView(value) || value === null || typeof value !== "object"
      ? value
      : Object.fromEntries(Object.entries(value).map(([key, one]) => [key, key === "family" ? FONT : withFont(one)]));

  // The color behind a chart, for which its text colors were chosen.
  function background(chart) {
    const transparent = (color) => !color || color === "transparent" || /,\s*0\)$/.test(color);
    if (!transparent(chart._fullLayout.paper_bgcolor)) return chart._fullLayout.paper_bgcolor;
    for (let element = chart; element; element = element.parentElement) {
      const color = getComputedStyle(element).backgroundColor;
      if (!transparent(color)) return color;
    }
    return "white";
  }

  // Name of its files, without an extension.
  function nameOf(chart) {
    const { meta, title } = chart._fullLayout;
    const name = chart._context.toImageButtonOptions.filename || meta?.name || plain(title?.text) || "chart";
    return name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chart";
  }

  function image(chart, camera, format) {
    const [layout, options] = [chart.layout, chart._context.toImageButtonOptions];
    // plotly copies what it needs before click() returns
    chart.layout = withFont({ ...layout, font: { family: FONT, ...layout.font }, paper_bgcolor: background(chart) });
    chart._context.toImageButtonOptions = { ...options, filename: nameOf(chart), format, scale: format === "svg" ? 1 : PIXELS };
    try {
      camera.click();
    } finally {
      chart.layout = layout;
      chart._context.toImageButtonOptions = options;
    }
  }

  function add(chart) {
    const camera = [...chart.querySelectorAll(".modebar-btn")].find((button) => /download plot/i.test(button.dataset.title));
    if (!camera || camera.parentElement.querySelector(".download-button")) return;
    const addButton = (title, help, click) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "modebar-btn download-button";
      button.rel = "tooltip";
      button.dataset.title = help;
      button.setAttribute("aria-label", help);
      button.textContent = title;
      button.addEventListener("click", click);
      camera.before(button);
    };
    addButton("PNG", "Download this chart as PNG", () => image(chart, camera, "png"));
    addButton("SVG", "Download this chart as SVG", () => image(chart, camera, "svg"));
    addButton("CSV", "Download the data of this chart as CSV", () => {
      save(BYTE_ORDER + csv(chart._fullData, chart._fullLayout), "text/csv;charset=utf-8", `${nameOf(chart)}.csv`);
    });
    camera.style.display = "none";
    chart.querySelector(".modebar").style.setProperty("--behind-toolbar", background(chart));
  }

  const style = document.createElement("style");
  style.textContent =
    ".js-plotly-plot .modebar-btn.download-button { font: 600 10px/1 sans-serif !important; color: inherit; opacity: 0.7; padding: 4px; vertical-align: middle }" +
    ".js-plotly-plot .modebar-btn.download-button:is(:hover, :focus-visible) { opacity: 1; text-decoration: underline }" +
    // plotly's own message, because browsers show downloads themselves
    ".plotly-notifier { display: none }" +
    // opaque over a long title, but only while it is shown: plotly 7 hides the buttons of a toolbar, not the toolbar
    ".js-plotly-plot:is(:hover, :focus-within) .modebar { background: var(--behind-toolbar) }" +
    ".js-plotly-plot .modebar:focus-within { opacity: 1 !important }";
  document.head.append(style);
  // plotly recreates its toolbar sometimes, so buttons are added when a chart is about to be used (figure.js also adds them after drawing)
  for (const event of ["pointerover", "focusin", "pointerdown"]) {
    document.addEventListener(event, ({ target }) => {
      const chart = target.closest?.(".js-plotly-plot");
      if (chart) add(chart);
    });
  }
  // Saves lines of plain text, numbers and nulls as CSV. (Text in charts is HTML.)
  function table(lines, name) {
    const one = (value) => (typeof value === "string" ? guarded(value) : cell(value));
    save(BYTE_ORDER + lines.map((line) => line.map(one).join(",") + "\r\n").join(""), "text/csv;charset=utf-8", name);
  }

  window.downloadButtons = { csv, add, table };
})();
