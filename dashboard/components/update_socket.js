// Updates the elements of the page through a WebSocket. (A rerun by Streamlit costs the browser some tenths of a second each time, which
// a job on the same machine loses.)
//
// data: address (of the socket), milliseconds (until the first question), layout (version key of the view as drawn).
//
// The data of an updated element contains rendering, which identifies one rendering by Streamlit, and key, its key in
// window.updatedElements (see apply_update.js). The element has data, update(data), and text, the JSON of its last update.

const [ALL, NEW] = ["all", "new"]; // prefixes of a question (see updates/socket.py)
const AGAIN = 5000; // milliseconds after which an unanswered question is repeated
const HURRY = 100; // milliseconds between two questions while an element waits for something ("studio:hurry")
const LONGEST = 5000; // milliseconds for which it is waited for

export default function ({ data, parentElement, setTriggerValue }) {
  let updates = parentElement.updates;
  if (!updates) updates = parentElement.updates = create();
  updates.redraw = (layout) => setTriggerValue("changed", layout);
  updates.update(data);
  // Streamlit also cleans up after calls that were superseded by newer ones
  return () => setTimeout(() => { if (!parentElement.isConnected) updates.end(); });
}

function create() {
  const elements = (window.updatedElements ??= new Map());
  let data, socket, timer, ended;
  let askedAt = 0;
  let question; // query of the address in the last question
  let redrawnAt = -AGAIN; // when Streamlit was last asked to redraw the view
  let hurry = null; // {done, until} while an element waits

  function wait(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(next, milliseconds);
  }

  function next() {
    if (ended || document.hidden) return; // resumes when the page becomes visible
    if (socket?.readyState === WebSocket.OPEN) {
      askedAt = performance.now();
      question = location.search;
      // elements rendered since the last update may show older data: then ask for all values
      const all = [...elements.values()].some((element) => element.text === undefined);
      socket.send((all ? ALL : NEW) + question);
      wait(AGAIN);
    } else if (socket?.readyState !== WebSocket.CONNECTING) {
      connect();
    }
  }

  function connect() {
    const address = new URL(data.address, location.href);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    const opened = (socket = new WebSocket(address));
    opened.onopen = next;
    opened.onmessage = (message) => apply(JSON.parse(message.data));
    opened.onclose = () => { if (!ended && socket === opened) wait(AGAIN); };
  }

  function apply(answer) {
    if (ended) return;
    // the address has changed since the question, for example to another iteration
    if (question !== location.search) return wait(0);
    for (const [name, text] of Object.entries(answer.values)) {
      const element = elements.get(name);
      if (!element || element.text === text) continue;
      element.text = text;
      element.data = { ...element.data, ...JSON.parse(text) };
      element.update(element.data);
    }
    const now = performance.now();
    if (answer.layout !== data.layout && now - redrawnAt > AGAIN) {
      redrawnAt = now;
      updates.redraw(answer.layout);
    }
    if (hurry && (hurry.done() || now > hurry.until)) hurry = null;
    wait(Math.max((hurry ? HURRY : answer.again) - (now - askedAt), 50));
  }

  // detail: a function that says whether what the element waits for has arrived
  const onHurry = (event) => {
    hurry = { done: event.detail, until: performance.now() + LONGEST };
    wait(HURRY);
  };
  window.addEventListener("studio:hurry", onHurry);
  const onVisible = () => { if (!document.hidden) wait(0); };
  document.addEventListener("visibilitychange", onVisible);

  const updates = {
    update(next) {
      const first = !data;
      const changed = data?.layout !== next.layout;
      data = next;
      if (changed) redrawnAt = -AGAIN;
      if (first || changed) wait(data.milliseconds);
    },
    end() {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", onVisible);
      window.removeEventListener("studio:hurry", onHurry);
      socket?.close();
    },
  };
  return updates;
}
