// A plotly figure that is updated in place. (st.plotly_chart creates a new chart for each change: flicker, and zoom and hover are lost.)
//
// data: figure (JSON text with data and layout; without it, only plotly.js is loaded), config (plotly's), library (address of plotly.js),
// title (for screen readers), pressable (whether clicks are reported), and the data of an updated element (see update_socket.js).
// layout.meta may have cursor ([x axis, y axis] of each subplot over iterations), period (iterations of a batch where batches are
// overlaid, else 0 or absent), backed (whether annotations hide what is behind them), fill (whether a wide figure is as high as the rest of
// the window, if that is more than its own height) and narrow (layout changes for a narrow window).

const NARROW = 560; // pixels
const MARGIN = 28; // pixels below a figure that fills the window
const TALLEST = 700; // pixels of such a figure
const LATER = 2000; // milliseconds until a figure far outside the window is drawn

let library; // promise of plotly.js, which is loaded once per page

function load(address) {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  library ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = () => done(window.Plotly);
    script.onerror = () => { library = undefined; failed(new Error(`${address} cannot be loaded`)); };
    document.head.append(script);
  });
  return library;
}

export default function ({ data, parentElement, setTriggerValue }) {
  if (!data.figure) { // a page that will soon have figures
    parentElement.querySelector(".chart")?.remove();
    requestIdleCallback(() => load(data.library).catch(() => {}), { timeout: LATER });
    return;
  }
  let chart = parentElement.chart;
  if (!chart) chart = parentElement.chart = create(parentElement);
  chart.pick = (value) => setTriggerValue("picked", value);
  return applyRendering(chart, data, parentElement);
}

// The text of a title, which plotly treats as HTML. A parsed document is inert: it loads and runs nothing.
const plain = (markup) => new DOMParser().parseFromString(markup ?? "", "text/html").body.textContent;

function create(root) {
  const container = root.querySelector(".chart");
  let data, figure, plotly, frame, drawn, ended, drawing;
  let narrow = null;
  // a figure outside the window is drawn once and not redrawn before it is visible, because a job may be using the processor
  let visible = false;
  const visibility = new IntersectionObserver((entries) => {
    visible = entries.at(-1).isIntersecting;
    if (visible && stale) draw();
  });
  let stale = false;
  // a figure up to a window's height below is drawn at once, so that none is empty when it is scrolled to
  const near = new IntersectionObserver((entries) => {
    if (!entries.at(-1).isIntersecting || !data) return;
    near.disconnect();
    // after the next frame, so that the images beside it are seen first
    requestAnimationFrame(() => setTimeout(() => { if (!drawn) draw(); }));
  }, { root: container.closest("[data-testid=stMain]"), rootMargin: "0px 0px 100% 0px" });

  const isNarrow = () => container.clientWidth < NARROW;
  const sizes = new ResizeObserver(() => {
    if (!drawn || !container.clientWidth) return;
    if (isNarrow() !== narrow) draw();
    else plotly.Plots.resize(container);
  });

  function template() {
    const style = getComputedStyle(container);
    const value = (name) => style.getPropertyValue(`--st-${name}`).trim();
    const axis = {
      gridcolor: value("border-color-light") || value("border-color"), linecolor: value("border-color"), zeroline: false,
      // "allow": measuring whether labels overflow takes 40 % of the drawing time, and our figures have room for them
      automargin: true, ticklabeloverflow: "allow", title: { font: { size: 12 } }, tickfont: { size: 11 },
    };
    return {
      layout: {
        font: { family: value("font"), size: 12, color: value("text-color") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
        // by default plotly derives these from the paper color, here transparent black
        modebar: { bgcolor: value("background-color"), color: value("text-color"), activecolor: value("primary-color") },
        hoverlabel: { bgcolor: value("background-color"), bordercolor: value("border-color"), font: { color: value("text-color") } },
        colorway: ["#888888"],
        ...(figure.layout.meta?.backed ? { annotationdefaults: { bgcolor: value("background-color") } } : {}),
      },
    };
  }

  // Where the cursor and a change that the run has not recorded yet are on the axes over iterations
  function marks(layout) {
    const [cursor, pending, period] = [window.studioCursor, window.studioPending, layout.meta?.period];
    const found = { shapes: layout.shapes ?? [], annotations: layout.annotations ?? [] };
    if (!layout.meta?.cursor) return found;
    const style = getComputedStyle(container);
    const draw = (at, name, lines) => layout.meta.cursor.flatMap(([x, y]) => lines.map(([color, width, opacity, dash]) => ({
      type: "line", xref: x, yref: `${y} domain`, x0: at, x1: at, y0: 0, y1: 1, name, opacity,
      line: { color: style.getPropertyValue(`--st-${color}`).trim(), width, dash },
    })));
    if (pending) {
      const at = period ? pending.step % period : pending.step;
      found.shapes = found.shapes.concat(draw(at, "pending", [["text-color", 1, 1, "dot"]]));
      found.annotations = found.annotations.concat(layout.meta.cursor.map(([x, y]) => ({
        xref: x, yref: `${y} domain`, x: at, y: 1, text: pending.text, showarrow: false, yanchor: "top", font: { size: 11 },
        xanchor: period && at >= 0.7 * period ? "right" : "left",
      })));
    }
    if (cursor && cursor.at !== null) {
      const at = period ? ((cursor.at - 1) % period) + 1 : cursor.at;
      // a dark line with a light outline or the reverse, because it also crosses heatmaps
      found.shapes = found.shapes.concat(draw(at, "cursor", [["background-color", 4, 0.7], ["text-color", 1.5, 1]]));
    }
    return found;
  }

  // In pixels
  function height(layout) {
    const page = container.closest("[data-testid=stMain]");
    if (!layout.meta?.fill || narrow || !page) return layout.height;
    const top = container.getBoundingClientRect().top + page.scrollTop;
    return Math.max(layout.height, Math.min(TALLEST, Math.floor(innerHeight - top - MARGIN)));
  }

  function layoutNow() {
    const wide = figure.layout;
    const layout = narrow ? { ...wide, ...(wide.meta?.narrow ?? {}) } : { ...wide };
    return { ...layout, height: height(layout), template: template(), ...marks(layout), autosize: true };
  }

  async function draw() {
    stale = drawn && !visible;
    if (stale) return;
    // one drawing at a time, then the newest data
    if (drawing) { drawing = "again"; return; }
    drawing = "once";
    try {
      plotly = await load(data.library);
      do {
        drawing = "once";
        if (ended) return;
        const switched = drawn && isNarrow() !== narrow;
        narrow = isNarrow();
        const layout = layoutNow();
        container.style.height = `${layout.height}px`;
        await plotly.react(container, figure.data, layout, { ...data.config, responsive: false, displayModeBar: "hover" });
        if (switched) await plotly.redraw(container); // react places the legend by the margins of the other layout
        if (!drawn) {
          drawn = true;
          container.classList.remove("empty");
          container.on("plotly_click", (event) => chart.pick(event.points[0].customdata ?? event.points[0].pointNumber));
          sizes.observe(container);
        }
        // a new toolbar under a resting pointer needs its buttons, too
        window.downloadButtons?.add(container);
      } while (drawing === "again");
    } finally {
      drawing = undefined;
    }
  }

  const moveCursor = () => {
    if (!drawn || !figure.layout.meta?.cursor || frame) return;
    frame = requestAnimationFrame(() => {
      frame = undefined;
      if (ended || drawing) return;
      const { shapes, annotations } = layoutNow();
      plotly.relayout(container, { shapes, annotations });
    });
  };
  window.addEventListener("studio:cursor", moveCursor);
  const onResize = () => { if (drawn && figure.layout.meta?.fill) draw(); };
  window.addEventListener("resize", onResize);
  visibility.observe(container);

  const chart = {
    redraw() { if (drawn) draw(); }, // the theme may have changed
    update(next) {
      if (!data || data.figure !== next.figure) figure = JSON.parse(next.figure);
      data = next;
      container.setAttribute("aria-label", data.title || plain(figure.layout.title?.text));
      if (!drawn) {
        narrow = isNarrow();
        container.style.height = `${(narrow && figure.layout.meta?.narrow?.height) || height(figure.layout)}px`;
        container.dataset.title = plain(figure.layout.title?.text);
      }
      container.classList.toggle("pressable", data.pressable);
      if (drawn || visible) draw();
      else {
        near.observe(container);
        setTimeout(draw, LATER);
      }
    },
    end() {
      ended = true;
      window.removeEventListener("studio:cursor", moveCursor);
      window.removeEventListener("resize", onResize);
      sizes.disconnect();
      visibility.disconnect();
      near.disconnect();
      cancelAnimationFrame(frame);
      if (drawn) plotly.purge(container);
    },
  };
  return chart;
}
