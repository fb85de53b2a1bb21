// Brings updates of a run to the elements of the page, through a WebSocket of its own. (Streamlit's way to refresh them costs the browser some
// tenths of a second each time, which a job on the same machine loses.)
//
// data: address (of the socket), milliseconds (until the first question), layout (version of the view that the page was drawn for).
//
// An element that is updated has in its data rendering, which identifies one drawing by Streamlit, and key, its name in
// window.updatedElements (see apply_update.js): with data, update(data), and text, the last update.

const [ALL, NEW] = ["all", "new"]; // how a question begins (see updates/socket.py)
const AGAIN = 5000; // milliseconds after which a question without an answer is asked again

export default function ({ data, parentElement, setTriggerValue }) {
  let live = parentElement.live;
  if (!live) live = parentElement.live = create();
  live.draw = (layout) => setTriggerValue("changed", layout);
  live.update(data);
  // Streamlit also cleans up after a call that a newer one has overtaken
  return () => setTimeout(() => { if (!parentElement.isConnected) live.end(); });
}

function create() {
  const elements = (window.updatedElements ??= new Map());
  let data, socket, timer, ended;
  let askedAt = 0;
  let question; // the last: part of an address
  let drawnAt = -AGAIN; // when the page was last asked to be drawn anew

  function wait(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(next, milliseconds);
  }

  function next() {
    if (ended || document.hidden) return; // asked again when the page is visible
    if (socket?.readyState === WebSocket.OPEN) {
      askedAt = performance.now();
      question = location.search;
      // what was drawn since the last update may be older than it: then everything is asked for
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
    const own = (socket = new WebSocket(address));
    own.onopen = next;
    own.onmessage = (message) => heard(JSON.parse(message.data));
    own.onclose = () => { if (!ended && socket === own) wait(AGAIN); };
  }

  function heard(news) {
    if (ended) return;
    // another iteration was chosen meanwhile
    if (question !== location.search) return wait(0);
    for (const [name, text] of Object.entries(news.values)) {
      const element = elements.get(name);
      if (!element || element.text === text) continue;
      element.text = text;
      element.data = { ...element.data, ...JSON.parse(text) };
      element.update(element.data);
    }
    const now = performance.now();
    if (news.layout !== data.layout && now - drawnAt > AGAIN) {
      drawnAt = now;
      live.draw(news.layout);
    }
    wait(Math.max(news.again - (now - askedAt), 50));
  }

  const seen = () => { if (!document.hidden) wait(0); };
  document.addEventListener("visibilitychange", seen);

  const live = {
    update(next) {
      const first = !data;
      const other = data?.layout !== next.layout;
      data = next;
      if (other) drawnAt = -AGAIN;
      if (first || other) wait(data.milliseconds);
    },
    end() {
      ended = true;
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
      socket?.close();
    },
  };
  return live;
}
