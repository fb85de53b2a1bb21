// The active runs: a button in the header with the progress of the first one, and a list of all, with links and buttons that end them.
// The title of the window says the same. When a run ends, the browser notifies, if the user asked for it.
//
// data: address (of the update socket), values: {runs: [{id, name, href, state, words, short, percent, stoppable}], ended: [{id, name,
// state}] of those runs that the page has seen active, again (milliseconds until the next question)}.

const NOTIFY = "notify when a run ends"; // key in the browser's storage
const RETRY = 5000; // milliseconds

export default function ({ data, parentElement, setTriggerValue }) {
  const list = (parentElement.list ??= create(parentElement));
  list.stop = (id) => setTriggerValue("stopped", id);
  list.open = (id) => setTriggerValue("opened", id);
  list.update(data);
  return () => setTimeout(() => { if (!parentElement.isConnected) list.end(); });
}

function create(root) {
  const find = (name) => root.querySelector(name);
  const [whole, details, now, items, asking, note] = [".activity", "details", ".now", "ul", ".notify button", ".notify span"].map(find);
  const seen = new Map(); // id -> name of the runs that were active
  let data, socket, timer, closed;
  let usual = document.title; // the window's title without a run
  let set = ""; // the title that was set here

  function entitle(title) {
    if (document.title !== set) usual = document.title;
    set = title || usual;
    if (document.title !== set) document.title = set;
  }
  let title = "";
  // Streamlit sets the title with every page
  const titles = new MutationObserver(() => { if (document.title !== set) entitle(title); });
  titles.observe(document.head, { subtree: true, childList: true, characterData: true });

  const summary = (run) => [run.percent === null ? "" : `${run.percent} %`, run.state === "paused" ? "paused" : run.short, run.name].filter(Boolean).join(" · ");

  function item(run) {
    const line = document.createElement("li");
    const link = Object.assign(document.createElement("a"), { href: run.href, textContent: run.name });
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      details.open = false;
      list.open(run.id);
    });
    line.append(link, Object.assign(document.createElement("div"), { textContent: run.words }));
    if (run.stoppable) {
      const label = run.state === "queued" ? "Cancel" : "Stop";
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
      button.setAttribute("aria-label", `${label} ${run.name}`);
      button.addEventListener("click", () => { button.disabled = true; list.stop(run.id); });
      line.append(button);
    }
    if (run.percent !== null) {
      const bar = Object.assign(document.createElement("progress"), { max: 100, value: run.percent });
      bar.setAttribute("aria-label", `Progress of ${run.name}`);
      line.append(bar);
    }
    return line;
  }

  function show(values) {
    for (const run of values.ended ?? []) {
      if (seen.delete(run.id)) notify(run);
    }
    for (const run of values.runs) seen.set(run.id, run.name);
    const waiting = values.runs.filter((run) => run.state === "queued").length;
    const first = values.runs[0];
    whole.hidden = !first;
    if (!first) details.open = false;
    else {
      whole.classList.toggle("resting", first.state !== "running");
      now.textContent = first.state === "queued" ? `${waiting} waiting` : summary(first) + (waiting ? ` · ${waiting} waiting` : "");
      const described = JSON.stringify(values.runs);
      if (items.dataset.described !== described) {
        items.dataset.described = described;
        items.replaceChildren(...values.runs.map(item));
      }
    }
    title = first && first.state !== "queued" ? summary(first) : "";
    entitle(title);
    wait(values.again);
  }

  function notify(run) {
    if (document.hidden) {
      // until the user looks
      title = "";
      set = document.title = `${run.state} · ${run.name}`;
      document.addEventListener("visibilitychange", () => entitle(title), { once: true });
    }
    if (!wanted()) return;
    const shown = new Notification(`Run ${run.state}`, { body: run.name, tag: run.id });
    shown.onclick = () => { window.focus(); list.open(run.id); shown.close(); };
  }

  // a page without encryption has no notifications
  const wanted = () => "Notification" in window && Notification.permission === "granted" && localStorage.getItem(NOTIFY) === "yes";
  function offer() {
    const known = "Notification" in window && window.isSecureContext;
    const refused = known && Notification.permission === "denied";
    asking.hidden = !known || refused;
    asking.textContent = wanted() ? "Do not notify" : "Notify me when a run ends";
    note.textContent = refused ? "Notifications are blocked in this browser's settings." : wanted() ? "A notification appears when a run ends." : "";
    asking.parentElement.hidden = !known;
  }
  asking.addEventListener("click", async () => {
    const on = wanted();
    if (!on && Notification.permission !== "granted") await Notification.requestPermission();
    localStorage.setItem(NOTIFY, on ? "no" : "yes");
    offer();
  });
  details.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { details.open = false; details.firstElementChild.focus(); }
  });
  const outside = (event) => { if (!event.composedPath().includes(details)) details.open = false; };
  document.addEventListener("pointerdown", outside);

  function wait(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(ask, milliseconds);
  }

  function ask() {
    if (closed) return;
    if (socket?.readyState === WebSocket.OPEN) {
      // all values, also when they are the same: the answer says when to ask again
      socket.send(`all?${[...seen.keys()].join()}`);
      wait(RETRY);
    } else if (socket?.readyState !== WebSocket.CONNECTING) {
      const address = new URL(data.address, location.href);
      address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
      const opened = (socket = new WebSocket(address));
      opened.onopen = ask;
      opened.onmessage = (message) => {
        const answer = JSON.parse(message.data);
        if (!closed && answer.values.activity) show({ ...JSON.parse(answer.values.activity), again: answer.again });
      };
      opened.onclose = () => { if (!closed && socket === opened) wait(RETRY); };
    }
  }

  const list = {
    update(next) {
      data = next;
      offer();
      show(data.values);
    },
    end() {
      closed = true;
      clearTimeout(timer);
      titles.disconnect();
      document.removeEventListener("pointerdown", outside);
      socket?.close();
    },
  };
  return list;
}
