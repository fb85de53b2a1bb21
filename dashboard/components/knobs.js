// The live knobs of a generation: for each a slider, the course of its value over the iterations, undo, and back to the start.
//
// data: groups ([id, title] of all methods together and of each), knobs (id of a group -> its knobs), total (iterations), iterations (per
// batch), group (what a batch is called), ended (whether nothing can be changed any more), refusal (why the user may not change anything,
// or empty), paused, and the data of an updated element (see update_socket.js). A knob has name, title, symbol, help, options (values of
// the slider in order), value, start (at the start of the run), previous (before the last change, or null), since (the first iteration with
// the value, or null), and lines ([color, [[step, value], ...]] of each method).
//
// A change is marked on the curves at once (window.studioPending), until the run has recorded it.

const UNDO = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M8 5 4 9l4 4M4 9h10a5 5 0 0 1 0 10h-3" /></svg>';
const START = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M5 5v14M19 6l-8 6 8 6z" /></svg>';
const NO_ANSWER = 10000; // milliseconds after which a change that was not recorded is no longer shown

export default function ({ data, parentElement, setTriggerValue }) {
  let panel = parentElement.panel;
  if (!panel) panel = parentElement.panel = create(parentElement);
  panel.send = (change) => setTriggerValue("changed", change);
  return applyRendering(panel, data, parentElement);
}

const written = (value) => String(Number(value.toPrecision(3)));

function create(root) {
  const panel = root.querySelector(".panel");
  const [group, select, list] = [".group", "select", ".knobs"].map((name) => panel.querySelector(name));
  const pending = new Map(); // name of a knob -> {value, lines (as JSON, before the change), at (when)}
  let data, chosen, built;
  let rows = new Map(); // name -> {knob, elements}

  const knobs = () => data.knobs[chosen];
  const latest = () => window.studioCursor?.latest ?? 0;

  // An iteration, counted over all batches, as within its batch
  function place(step) {
    const within = ((step - 1) % data.iterations) + 1;
    return data.iterations < data.total ? `${within}, ${data.group} ${Math.floor((step - 1) / data.iterations) + 1}` : `${within}`;
  }

  function element(kind, name, text = "") {
    const made = document.createElement(kind);
    made.className = name;
    made.textContent = text;
    return made;
  }

  function button(name, label, picture, act) {
    const made = element("button", name);
    made.type = "button";
    made.innerHTML = picture;
    made.title = made.ariaLabel = label;
    made.addEventListener("click", act);
    return made;
  }

  // what differs needs other elements; anything else is written into those that are there
  const shape = () => JSON.stringify([chosen, data.ended, data.refusal, knobs().map((knob) => [knob.name, knob.options.length])]);

  function build() {
    built = shape();
    panel.classList.toggle("ended", data.ended);
    group.hidden = data.groups.length < 2;
    group.querySelector("span").textContent = data.ended ? "Values of" : "Apply to";
    select.replaceChildren(...data.groups.map(([id, title]) => new Option(title, id, false, id === chosen)));
    rows = new Map();
    list.replaceChildren(...knobs().map((knob) => {
      const row = element("div", "knob");
      const words = element("div", "words");
      const name = element("span", "name", knob.title);
      name.title = knob.title;
      const value = element("output", "value");
      const help = element("div", "help", knob.help);
      help.hidden = true;
      const why = button("why", `Help for ${knob.title}`, "?", () => {
        help.hidden = !help.hidden;
        why.ariaExpanded = String(!help.hidden);
      });
      why.ariaExpanded = "false";
      const range = element("input", "range");
      Object.assign(range, { type: "range", min: 0, max: knob.options.length - 1, step: 1, ariaLabel: knob.title });
      range.disabled = !!data.refusal;
      const now = () => rows.get(knob.name).knob;
      range.addEventListener("input", () => write(knob.name));
      range.addEventListener("change", () => change(knob.name, now().options[range.value]));
      range.addEventListener("dblclick", () => change(knob.name, now().start));
      const trace = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      trace.setAttribute("class", "trace");
      trace.setAttribute("viewBox", "0 0 100 100");
      trace.setAttribute("preserveAspectRatio", "none");
      trace.setAttribute("role", "img");
      const undo = button("undo", `Undo the last change of ${knob.title}`, UNDO, () => change(knob.name, now().previous));
      const start = button("start", "", START, () => change(knob.name, now().start));
      words.append(name, why, value);
      row.append(...(data.ended ? [words, trace, help] : [words, range, trace, undo, start, help]));
      rows.set(knob.name, { knob, value, range, trace, undo, start });
      return row;
    }));
  }

  // The value of a row: where the thumb is, and from when it applies
  function write(name) {
    const { knob, value, range } = rows.get(name);
    const shown = knob.options[range.value];
    const small = element("small", "");
    if (pending.has(name)) small.textContent = data.paused ? ` from ${place(latest() + 1)}` : " next iteration";
    else if (knob.since !== null && shown === knob.value) small.textContent = ` since ${place(knob.since)}`;
    small.title = "The iteration from which the value applies";
    value.replaceChildren(written(shown), small);
    range.setAttribute("aria-valuetext", written(shown));
  }

  function draw() {
    if (built !== shape()) build();
    for (const knob of knobs()) {
      const row = rows.get(knob.name);
      row.knob = knob;
      const sent = pending.get(knob.name);
      if (sent && (sent.lines !== JSON.stringify(knob.lines) || performance.now() - sent.at > NO_ANSWER)) pending.delete(knob.name);
      const now = pending.get(knob.name)?.value ?? knob.value;
      if (root.activeElement !== row.range || !row.range.matches(":active")) row.range.value = knob.options.indexOf(now);
      write(knob.name);
      row.undo.disabled = !!data.refusal || knob.previous === null || pending.has(knob.name);
      row.start.disabled = !!data.refusal || now === knob.start;
      row.start.title = row.start.ariaLabel = `Back to ${written(knob.start)}, the value of ${knob.title} at the start of the run`;
      drawTrace(row);
    }
    mark();
  }

  function drawTrace({ knob, trace }) {
    const at = (value) => Math.max(knob.options.indexOf(value), 0);
    // the range that it has had, but at least a tenth of the slider
    const all = knob.lines.flatMap(([, points]) => points.map(([, value]) => at(value)));
    const [low, high] = [Math.min(...all), Math.max(...all)];
    const span = Math.max(high - low, knob.options.length / 10);
    const height = (value) => 50 - (100 * (at(value) - (low + high) / 2)) / span;
    const along = (step) => (100 * Math.min(step, data.total)) / Math.max(data.total, 1);
    const text = JSON.stringify([knob.lines, latest()]);
    if (trace.drawn === text) return;
    trace.drawn = text;
    trace.replaceChildren(...knob.lines.map(([color, points]) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      const corners = points.flatMap(([step, value], index) => [
        ...(index ? [[along(step), height(points[index - 1][1])]] : []), [along(step), height(value)],
      ]);
      const last = points.at(-1);
      corners.push([along(Math.max(latest(), last[0], 1)), height(last[1])]);
      line.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
      line.style.stroke = color;
      return line;
    }));
    const changes = Math.max(...knob.lines.map(([, points]) => points.length - 1), 0);
    trace.ariaLabel = `${knob.title} over the iterations: ${changes === 1 ? "1 change" : `${changes} changes`}`;
  }

  function change(name, value) {
    const { knob, range } = rows.get(name);
    if (value === null || (value === knob.value && !pending.has(name))) return write(name);
    range.value = knob.options.indexOf(value);
    pending.set(name, { value, lines: JSON.stringify(knob.lines), at: performance.now() });
    write(name);
    mark();
    // until the change is recorded and images made with it are shown; a paused run has none
    const arrived = () => !pending.has(name) && latest() >= Math.max(...rows.get(name).knob.lines.map(([, points]) => points.at(-1)[0])) + 1;
    window.dispatchEvent(new CustomEvent("studio:hurry", { detail: () => data.paused || arrived() }));
    knobsPanel.send({ group: chosen, name, value });
  }

  // Where the curves show changes that the run has not recorded yet
  function mark() {
    const words = knobs().filter((knob) => pending.has(knob.name)).map((knob) => `${knob.symbol} = ${written(pending.get(knob.name).value)}`);
    const next = words.length ? { step: latest(), text: words.join(", ") } : null;
    if (JSON.stringify(next) === JSON.stringify(window.studioPending ?? null)) return;
    window.studioPending = next;
    window.dispatchEvent(new CustomEvent("studio:cursor"));
  }

  select.addEventListener("change", () => { chosen = select.value; pending.clear(); draw(); });
  const onLatest = () => { if (data && built) rows.forEach(drawTrace); };
  window.addEventListener("studio:latest", onLatest);

  const knobsPanel = {
    update(next) {
      data = next;
      if (!(chosen in data.knobs)) chosen = data.groups[0][0];
      draw();
    },
    end() {
      window.studioPending = null;
      window.removeEventListener("studio:latest", onLatest);
    },
  };
  return knobsPanel;
}
