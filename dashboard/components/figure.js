// A plotly figure that is changed in place. (st.plotly_chart makes a new chart for each change: it flickers, and zoom and hover are lost.)
//
// data: figure (JSON text with data and layout), config (plotly's), library (address of plotly.js), title (for screen readers). layout.meta may hold cursor
// ([x axis, y axis] of each part that is over iterations) and narrow (changes of the layout for a narrow window). And what an element has
// that is streamed to (see update_socket.js).

const NARROW = 560; // pixels

let library; // promise of plotly.js, loaded once for the page

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
  let chart = parentElement.chart;
  if (!chart) chart = parentElement.chart = create(parentElement);
  chart.pick = (value) => setTriggerValue("picked", value);
  return hand(chart, data, parentElement);
}

// Text of a figure is HTML to plotly; a parsed document is dead: nothing in it is loaded or run.
const plain = (markup) => new DOMParser().parseFromString(markup ?? "", "text/html").body.textContent;

function create(root) {
  const place = root.querySelector(".chart");
  let data, figure, plotly, frame, drawn, ended, drawing;
  let narrow = null;
  // what nobody sees is drawn once, when there is time, and again when somebody scrolls to it: a job may be using the processor
  let seen = false;
  const sight = new IntersectionObserver((entries) => {
    seen = entries.at(-1).isIntersecting;
    if (seen && stale) draw();
  });
  let stale = false;

  const isNarrow = () => place.clientWidth < NARROW;
  const sizes = new ResizeObserver(() => {
    if (!drawn || !place.clientWidth) return;
    if (isNarrow() !== narrow) draw();
    else plotly.Plots.resize(place);
  });

  function colours() {
    const style = getComputedStyle(place);
    const value = (name) => style.getPropertyValue(`--st-${name}`).trim();
    const axis = {
      gridcolor: value("border-color-light") || value("border-color"), linecolor: value("border-color"), zeroline: false,
      // labels are measured for whether they leave the figure: two fifths of a drawing, and all of ours have room
      automargin: true, ticklabeloverflow: "allow", title: { font: { size: 12 } }, tickfont: { size: 11 },
    };
    return {
      layout: {
        font: { family: value("font"), size: 12, color: value("text-color") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
        // or plotly makes them of the colour of the paper, which is black that cannot be seen
        modebar: { bgcolor: value("background-color"), color: value("text-color"), activecolor: value("primary-color") },
        hoverlabel: { bgcolor: value("background-color"), bordercolor: value("border-color"), font: { color: value("text-color") } },
        colorway: ["#888888"],
      },
    };
  }

  function shapes(layout) {
    const marks = layout.shapes ?? [];
    const cursor = window.studioCursor;
    if (!layout.meta?.cursor || !cursor || cursor.at === null) return marks;
    const style = getComputedStyle(place);
    // dark on light or light on dark, with a rim, as it also stands on heatmaps
    const lines = [["background-color", 4, 0.7], ["text-color", 1.5, 1]];
    return marks.concat(layout.meta.cursor.flatMap(([x, y]) => lines.map(([name, width, opacity]) => ({
      type: "line", xref: x, yref: `${y} domain`, x0: cursor.at, x1: cursor.at, y0: 0, y1: 1, name: "cursor", opacity,
      line: { color: style.getPropertyValue(`--st-${name}`).trim(), width },
    }))));
  }

  function layoutNow() {
    const wide = figure.layout;
    const layout = narrow ? { ...wide, ...(wide.meta?.narrow ?? {}) } : { ...wide };
    return { ...layout, template: colours(), shapes: shapes(layout), autosize: true };
  }

  async function draw() {
    stale = drawn && !seen;
    if (stale) return;
    // one drawing at a time, and then the newest
    if (drawing) { drawing = "again"; return; }
    drawing = "once";
    try {
      plotly = await load(data.library);
      do {
        drawing = "once";
        if (ended) return;
        narrow = isNarrow();
        const layout = layoutNow();
        place.style.height = `${layout.height}px`;
        await plotly.react(place, figure.data, layout, { ...data.config, responsive: false, displayModeBar: "hover" });
        if (!drawn) {
          drawn = true;
          place.on("plotly_click", (event) => chart.pick(event.points[0].customdata ?? event.points[0].pointNumber));
          sizes.observe(place);
        }
        // a new bar under a resting pointer has its buttons too
        window.takeAlong?.addButtons(place);
      } while (drawing === "again");
    } finally {
      drawing = undefined;
    }
  }

  const moveCursor = () => {
    if (!drawn || !figure.layout.meta?.cursor || frame) return;
    frame = requestAnimationFrame(() => {
      frame = undefined;
      if (!ended && !drawing) plotly.relayout(place, { shapes: layoutNow().shapes });
    });
  };
  window.addEventListener("studio:cursor", moveCursor);
  sight.observe(place);

  const chart = {
    again() { if (drawn) draw(); }, // perhaps in other colours
    update(next) {
      if (!data || data.figure !== next.figure) figure = JSON.parse(next.figure);
      data = next;
      place.setAttribute("aria-label", data.title || plain(figure.layout.title?.text));
      if (!drawn) place.style.height = `${(isNarrow() && figure.layout.meta?.narrow?.height) || figure.layout.height}px`;
      place.classList.toggle("pressable", data.pressable);
      if (drawn || seen) draw();
      else setTimeout(draw, 2000);
    },
    end() {
      ended = true;
      window.removeEventListener("studio:cursor", moveCursor);
      sizes.disconnect();
      sight.disconnect();
      cancelAnimationFrame(frame);
      if (drawn) plotly.purge(place);
    },
  };
  return chart;
}
