// The iteration player, one per page. It tells the server which step to show, and the charts of the page where to draw their cursor.
//
// data: run, steps (with recorded images, oldest first, without the newest), latest (the newest step), at (one of steps, or null for the
// newest), jump (when it changes, the player moves to `at`), following (how often newer images arrive, empty if none will), iterations
// (per batch), batches, marks ([step, text] of live changes), and the data of an updated element (see update_socket.js).

const GRACE = 3000; // milliseconds to wait for an answer of the server
const PACE = 350; // minimum milliseconds per step while playing
const TYPING = "input, textarea, select, [contenteditable], [role=slider], [role=tab], [role=radio], [role=radiogroup], [role=combobox], " +
  "[role=listbox], [role=menu], [role=grid], [role=spinbutton], [role=dialog], .stDataFrame";

export default function ({ data, parentElement, setStateValue }) {
  let player = parentElement.player;
  if (!player) player = parentElement.player = create(parentElement);
  player.send = (at) => setStateValue("at", at);
  return applyRendering(player, data, parentElement);
}

function create(root) {
  const find = (name) => root.querySelector("." + name);
  const [play, range, text, live, marks] = ["play", "range", "text", "live", "marks"].map(find);
  let data, at, timer;
  let asked; // the step that the server was asked to show and does not show yet
  let waiting; // the step to ask for next
  let askedSince = 0;

  const positions = () => [...data.steps, null];
  const position = () => {
    const found = data.steps.indexOf(at);
    return found < 0 ? data.steps.length : found;
  };

  function label(step) {
    const batch = Math.floor((step - 1) / data.iterations) + 1;
    const within = ((step - 1) % data.iterations) + 1;
    const iteration = `iteration ${within} of ${data.iterations}`;
    return data.batches > 1 ? `${iteration}, ${data.group} ${batch} of ${data.batches}` : iteration;
  }

  function draw() {
    const last = data.steps.length;
    range.max = last;
    range.value = position();
    range.style.setProperty("--part", last ? position() / last : 1);
    const words = label(at ?? data.latest);
    const now = at === null ? (data.following ? "live" : "last") : "";
    range.setAttribute("aria-valuetext", now ? `${words}, ${now}` : words);
    text.textContent = words;
    live.textContent = data.following ? "Live" : "Last";
    live.setAttribute("aria-pressed", at === null);
    live.classList.toggle("running", !!data.following);
    live.title = data.following ? `Follow the run: ${data.following} (End)` : "The last iteration (End)";
    play.classList.toggle("playing", !!timer);
    play.setAttribute("aria-label", timer ? "Stop playing" : "Play");
    play.title = timer ? "Stop playing" : "Play the recorded iterations";
    play.disabled = range.disabled = last === 0;
    const drawn = JSON.stringify([data.marks, data.steps, data.latest]);
    if (marks.dataset.drawn !== drawn) {
      marks.dataset.drawn = drawn;
      marks.replaceChildren(...data.marks.map(([step, title]) => {
        const mark = document.createElement("i");
        const after = data.steps.findIndex((other) => other > step);
        mark.style.left = `${(100 * (after < 0 ? last : after)) / Math.max(last, 1)}%`;
        mark.title = title;
        return mark;
      }));
    }
    const { run, at: before, latest } = window.studioCursor ?? {};
    window.studioCursor = { run: data.run, at, latest: data.latest };
    if (latest !== data.latest) window.dispatchEvent(new CustomEvent("studio:latest"));
    if (run !== data.run || before !== at) window.dispatchEvent(new CustomEvent("studio:cursor"));
  }

  function ask() {
    if (asked !== undefined && Date.now() - askedSince < GRACE) return;
    if (waiting === undefined) return;
    asked = waiting;
    waiting = undefined;
    askedSince = Date.now();
    // sets the address that the server will set, so that Streamlit adds nothing to the browser history
    const query = new URLSearchParams(location.search);
    if (asked === null) query.delete("at");
    else query.set("at", asked);
    const search = query.toString();
    history.replaceState(history.state, "", location.pathname + (search ? "?" + search : ""));
    player.send(asked);
    setTimeout(ask, GRACE + 50); // in case no answer arrives
  }

  function go(to) {
    if (to === at) return;
    at = to;
    draw();
    waiting = to;
    ask();
  }

  const goTo = (index) => go(positions()[Math.min(Math.max(index, 0), data.steps.length)]);

  function stop() {
    clearInterval(timer);
    timer = undefined;
    draw();
  }

  function start() {
    if (at === null) goTo(0);
    timer = setInterval(() => {
      if (asked !== undefined && Date.now() - askedSince < GRACE) return; // the server has not drawn the last step yet
      if (at === null) return stop();
      goTo(position() + 1);
    }, PACE);
    draw();
  }

  const onKey = (event) => {
    const keys = { ArrowLeft: position() - 1, ArrowRight: position() + 1, Home: 0, End: data.steps.length };
    if (!(event.key in keys) || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const target = event.composedPath()[0];
    if (target !== range && target instanceof Element && target.closest(TYPING)) return;
    event.preventDefault();
    if (timer) stop();
    goTo(keys[event.key]);
  };
  const onClick = (event) => {
    const found = event.composedPath().find((one) => one.dataset && one.dataset.step);
    if (!found) return;
    const step = Number(found.dataset.step);
    if (timer) stop();
    go(data.steps.includes(step) ? step : null);
  };
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  play.addEventListener("click", () => (timer ? stop() : start()));
  live.addEventListener("click", () => { if (timer) stop(); go(null); });
  range.addEventListener("input", () => { if (timer) stop(); goTo(Number(range.value)); });

  const player = {
    update(next) {
      const moved = data?.run !== next.run || data.jump !== next.jump;
      if (data && data.latest !== next.latest) live.classList.toggle("beat");
      data = next;
      if (moved) {
        at = data.at;
        asked = waiting = undefined;
        clearInterval(timer);
        timer = undefined;
      }
      if (at !== null && !data.steps.includes(at)) at = at === data.latest ? null : data.at;
      if (asked !== undefined && data.at === asked) asked = undefined;
      draw();
      ask();
    },
    end() {
      clearInterval(timer);
      document.removeEventListener("keydown", onKey);
      document.removeEventListener("click", onClick);
      window.studioCursor = undefined;
    },
  };
  return player;
}
