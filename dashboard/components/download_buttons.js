// Puts PNG, SVG and CSV into the bar of every plotly chart in the document. In the dashboard and in the report alike.
//
// All is made in the browser, of what the chart shows at that moment: nothing waits in the server's memory for somebody to want it.
// PNG and SVG come from plotly's own button, which is hidden behind them, as it can have but one format.
(() => {
  if (window.takeAlong) return;

  // Text of a chart is HTML to plotly; a parsed document is dead: nothing in it is loaded or run. (Nothing in this file may look like a
  // tag: Streamlit would throw the script away.)
  const plain = (markup) =>
    new DOMParser().parseFromString(String(markup ?? "").replace(/\x3cbr\s*\/?>/gi, " "), "text/html").body.textContent;

  // As the number was written: a float32 has eight digits, not the seventeen of the double that holds it.
  function digits(number, single) {
    if (!single) return String(number);
    for (let precision = 6; precision < 9; precision++) {
      const short = Number(number.toPrecision(precision));
      if (Math.fround(short) === number) return String(short);
    }
    return String(number);
  }

  // One cell. A text that a spreadsheet would compute (= + - @, also behind a tab, and their wide forms) gets an apostrophe before it,
  // unless it is but a number.
  function cell(value, single = false) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return Number.isFinite(value) ? digits(value, single) : "";
    let text = plain(value);
    if (/^[\s\u0000]*[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text) && !/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text)) text = "'" + text;
    return /[",\r\n\t]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  const columnOf = (values, index) => cell(values?.[index], values instanceof Float32Array);

  // What stands above a chart among several: the annotation on the top of its axes, else the name of its axis.
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

  // One heatmap: a matrix, x in the first line and y in the first column. What its colours stand for is in customdata, where it differs.
  function matrix({ x, y, z, customdata }) {
    const values = customdata?.length === z.length && customdata[0]?.length === z[0]?.length ? customdata : z;
    const columns = Array.from(values[0] ?? [], (_, j) => (x ? columnOf(x, j) : String(j)));
    return [["y \\ x", ...columns], ...Array.from(values, (row, i) => [y ? columnOf(y, i) : String(i), ...Array.from(row, (_, j) => columnOf(row, j))])];
  }

  // Curves, bars and points: a line for each point. Several heatmaps, or one among curves: the same, with z.
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

  // The data of a chart as CSV, curves that were hidden included. traces, layout: plotly's own, full of defaults.
  function csv(traces, layout) {
    const shown = traces.filter((t) => t.visible !== false);
    const lines = shown.length === 1 && shown[0].z?.length ? matrix(shown[0]) : long(shown, layout);
    return lines.map((line) => line.join(",") + "\r\n").join("");
  }

  function save(text, type, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  // A file cannot use the font of the page: texts would be of other widths than the places left for them.
  const PIXELS = 2; // of a PNG for each on the page, so that it is sharp in print
  const FONT = "Arial, Helvetica, Liberation Sans, sans-serif";
  const withFont = (value) =>
    Array.isArray(value) || ArrayBuffer.isView(value) || value === null || typeof value !== "object"
      ? value
      : Object.fromEntries(Object.entries(value).map(([key, one]) => [key, key === "family" ? FONT : withFont(one)]));

  // What is seen behind a chart: its texts are made for it.
  function background(chart) {
    const transparent = (colour) => !colour || colour === "transparent" || /,\s*0\)$/.test(colour);
    if (!transparent(chart._fullLayout.paper_bgcolor)) return chart._fullLayout.paper_bgcolor;
    for (let element = chart; element; element = element.parentElement) {
      const colour = getComputedStyle(element).backgroundColor;
      if (!transparent(colour)) return colour;
    }
    return "white";
  }

  // Of its files, without an ending.
  function nameOf(chart) {
    const { meta, title } = chart._fullLayout;
    const name = chart._context.toImageButtonOptions.filename || meta?.name || plain(title?.text) || "chart";
    return name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chart";
  }

  function image(chart, camera, format) {
    const [layout, options] = [chart.layout, chart._context.toImageButtonOptions];
    // plotly copies all that it needs before the click returns
    chart.layout = withFont({ ...layout, font: { family: FONT, ...layout.font }, paper_bgcolor: background(chart) });
    chart._context.toImageButtonOptions = { ...options, filename: nameOf(chart), format, scale: format === "svg" ? 1 : PIXELS };
    try {
      camera.click();
    } finally {
      chart.layout = layout;
      chart._context.toImageButtonOptions = options;
    }
  }

  function addButtons(chart) {
    const camera = [...chart.querySelectorAll(".modebar-btn")].find((button) => /download plot/i.test(button.dataset.title));
    if (!camera || camera.parentElement.querySelector(".take-along")) return;
    const add = (title, help, click) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "modebar-btn take-along";
      button.rel = "tooltip";
      button.dataset.title = help;
      button.setAttribute("aria-label", help);
      button.textContent = title;
      button.addEventListener("click", click);
      camera.before(button);
    };
    add("PNG", "Picture of this chart (PNG)", () => image(chart, camera, "png"));
    add("SVG", "Drawing of this chart (SVG)", () => image(chart, camera, "svg"));
    add("CSV", "Numbers of this chart (CSV)", () => {
      // with a byte order mark, by which spreadsheets know UTF-8
      save("\ufeff" + csv(chart._fullData, chart._fullLayout), "text/csv;charset=utf-8", `${nameOf(chart)}.csv`);
    });
    camera.style.display = "none";
    // a long title goes on below
    chart.querySelector(".modebar").style.background = background(chart);
  }

  const style = document.createElement("style");
  style.textContent =
    ".js-plotly-plot .modebar-btn.take-along { font: 600 10px/1 sans-serif !important; color: inherit; opacity: 0.7; padding: 4px; vertical-align: middle }" +
    ".js-plotly-plot .modebar-btn.take-along:is(:hover, :focus-visible) { opacity: 1; text-decoration: underline }" +
    // a browser tells of a file that was saved, and in a place of its own
    ".plotly-notifier { display: none }" +
    ".js-plotly-plot .modebar:focus-within { opacity: 1 !important }";
  document.head.append(style);
  // plotly makes its bar anew now and then: looked at when somebody comes near (the dashboard's own element also does when it has drawn)
  for (const event of ["pointerover", "focusin", "pointerdown"]) {
    document.addEventListener(event, ({ target }) => {
      const chart = target.closest?.(".js-plotly-plot");
      if (chart) addButtons(chart);
    });
  }
  window.takeAlong = { csv, addButtons };
})();
