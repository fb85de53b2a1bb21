// The one iteration player of a page. It tells the server which moment to show, and every chart of the page where its cursor stands.
//
// data: run, moments (steps that were kept, oldest first, without the newest), latest (the newest step), at (a step of moments, or null
// for the newest), turn (changes when the page is to take over `at`), following (how often newer ones come, empty if there will be
// none), iterations (of a batch), batches, marks ([step, text] of live changes), and what an updated element has (see update_socket.js).

const GRACE = 3000; // milliseconds after which an answer of the server is no longer waited for
const PACE = 350; // milliseconds that a moment is seen at least while playing
const TYPING = "input, textarea, select, [contenteditable], [role=slider], [role=tab], [role=radio], [role=radiogroup], [role=combobox], " +
  "[role=listbox], [role=menu], [role=grid], [role=spinbutton], [role=dialog], .stDataFrame";

export default function ({ data, parentElement, setStateValue }) {
  let player = parentElement.player;
  if (!player) player = parentElement.player = create(parentElement);
  player.send = (at) => setStateValue("at", at);
  return hand(player, data, parentElement);
}

function create(root) {
  const find = (name) => root.querySelector("." + name);
  const [play, range, text, live, marks] = ["play", "range", "text", "live", "marks"].map(find);
  let data, at, timer;
  let asked; // what the server was asked to show and has not shown yet
  let waiting; // what it is to be asked next
  let askedSince = 0;

  const places = () => [...data.moments, null];
  const place = () => {
    const found = data.moments.indexOf(at);
    return found < 0 ? data.moments.length : found;
  };

  function named(step) {
    const batch = Math.floor((step - 1) / data.iterations) + 1;
    const within = ((step - 1) % data.iterations) + 1;
    const iteration = `iteration ${within} of ${data.iterations}`;
    return data.batches > 1 ? `${iteration}, batch ${batch} of ${data.batches}` : iteration;
  }

  function draw() {
    const last = data.moments.length;
    range.max = last;
    range.value = place();
    range.style.setProperty("--part", last ? place() / last : 1);
    const words = named(at ?? data.latest);
    const now = at === null ? (data.following ? "live" : "last") : "";
    range.setAttribute("aria-valuetext", now ? `${words}, ${now}` : words);
    text.textContent = words;
    live.textContent = data.following ? "Live" : "Last";
    live.setAttribute("aria-pressed", at === null);
    live.classList.toggle("running", !!data.following);
    live.title = data.following ? `Follow the run: ${data.following} (End)` : "The last iteration (End)";
    play.classList.toggle("playing", !!timer);
    play.setAttribute("aria-label", timer ? "Stop playing" : "Play");
    play.title = timer ? "Stop playing" : "Play the kept moments";
    play.disabled = range.disabled = last === 0;
    const span = marks.dataset.of;
    const of = JSON.stringify([data.marks, data.moments, data.latest]);
    if (span !== of) {
      marks.dataset.of = of;
      marks.replaceChildren(...data.marks.map(([step, label]) => {
        const mark = document.createElement("i");
        const after = data.moments.findIndex((moment) => moment > step);
        mark.style.left = `${(100 * (after < 0 ? last : after)) / Math.max(last, 1)}%`;
        mark.title = label;
        return mark;
      }));
    }
    if (window.studioCursor?.run === data.run && window.studioCursor.at === at) return;
    window.studioCursor = { run: data.run, at };
    window.dispatchEvent(new CustomEvent("studio:cursor"));
  }

  function ask() {
    if (asked !== undefined && Date.now() - askedSince < GRACE) return;
    if (waiting === undefined) return;
    asked = waiting;
    waiting = undefined;
    askedSince = Date.now();
    // the same address as the server will set: so it finds nothing to add to the history
    const query = new URLSearchParams(location.search);
    if (asked === null) query.delete("at");
    else query.set("at", asked);
    const search = query.toString();
    history.replaceState(history.state, "", location.pathname + (search ? "?" + search : ""));
    player.send(asked);
    setTimeout(ask, GRACE + 50); // should no answer come
  }

  function go(to) {
    if (to === at) return;
    at = to;
    draw();
    waiting = to;
    ask();
  }

  const goTo = (index) => go(places()[Math.min(Math.max(index, 0), data.moments.length)]);

  function stop() {
    clearInterval(timer);
    timer = undefined;
    draw();
  }

  function start() {
    if (at === null) goTo(0);
    timer = setInterval(() => {
      if (asked !== undefined && Date.now() - askedSince < GRACE) return; // the server has not yet drawn the last one
      if (at === null) return stop();
      goTo(place() + 1);
    }, PACE);
    draw();
  }

  const onKey = (event) => {
    const keys = { ArrowLeft: place() - 1, ArrowRight: place() + 1, Home: 0, End: data.moments.length };
    if (!(event.key in keys) || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const target = event.composedPath()[0];
    if (target !== range && target instanceof Element && target.closest(TYPING)) return;
    event.preventDefault();
    if (timer) stop();
    goTo(keys[event.key]);
  };
  const onClick = (event) => {
    const found = event.composedPath().find((one) => one.dataset && one.dataset.moment);
    if (!found) return;
    const step = Number(found.dataset.moment);
    if (timer) stop();
    go(data.moments.includes(step) ? step : null);
  };
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", onClick);
  play.addEventListener("click", () => (timer ? stop() : start()));
  live.addEventListener("click", () => { if (timer) stop(); go(null); });
  range.addEventListener("input", () => { if (timer) stop(); goTo(Number(range.value)); });

  const player = {
    update(next) {
      const other = data?.run !== next.run || data.turn !== next.turn;
      if (data && data.latest !== next.latest) live.classList.toggle("beat");
      data = next;
      if (other) {
        at = data.at;
        asked = waiting = undefined;
        clearInterval(timer);
        timer = undefined;
      }
      if (at !== null && !data.moments.includes(at)) at = at === data.latest ? null : data.at;
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
