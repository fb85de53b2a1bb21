// Brings what is new of a run to the elements of the page that are streamed to, by a socket of its own. (Streamlit's way to refresh them costs
// the browser some tenths of a second each time, which a job on the same machine loses.)
//
// data: address (of the socket), milliseconds (until the first question), phase (of the run, as the page was drawn for), redraw (whether
// the page is to be drawn anew each time instead).
//
// An element that is streamed to has in its data made, which is another with each drawing by Streamlit, and piece, the name under which it is
// in window.studioPieces (see streamed.js): with data, update(data), and text, the last that came so.

const [ALL, NEW] = ["all", "new"]; // what a question begins with (see stream.py)
const AGAIN = 5000; // milliseconds after which something without an answer is tried again

export default function ({ data, parentElement, setTriggerValue }) {
  let live = parentElement.live;
  if (!live) live = parentElement.live = create();
  live.draw = (phase) => setTriggerValue("changed", phase);
  live.update(data);
  // Streamlit also cleans up after a call that a newer one has overtaken
  return () => setTimeout(() => { if (!parentElement.isConnected) live.end(); });
}

function create() {
  const pieces = (window.studioPieces ??= new Map());
  let data, socket, timer, ended;
  let askedAt = 0;
  let question; // the last: part of an address
  let drawnAt = -AGAIN; // when the page was last asked to be drawn anew

  function wait(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(next, milliseconds);
  }

  function next() {
    if (ended || document.hidden) return; // nobody looks: asked again when somebody does
    if (data.redraw) {
      live.draw(`${Date.now()}`);
      wait(AGAIN); // sooner when it is drawn
    } else if (socket?.readyState === WebSocket.OPEN) {
      askedAt = performance.now();
      question = location.search;
      // what was drawn since may be older than what came before: then all of it again
      const all = [...pieces.values()].some((piece) => piece.text === undefined);
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
    if (ended || data.redraw) return;
    // somebody has gone to another moment meanwhile
    if (question !== location.search) return wait(0);
    for (const [name, text] of Object.entries(news.pieces)) {
      const piece = pieces.get(name);
      if (!piece || piece.text === text) continue;
      piece.text = text;
      piece.data = { ...piece.data, ...JSON.parse(text) };
      piece.update(piece.data);
    }
    const now = performance.now();
    if (news.phase !== data.phase && now - drawnAt > AGAIN) {
      drawnAt = now;
      live.draw(news.phase);
    }
    wait(Math.max(news.again - (now - askedAt), 50));
  }

  const seen = () => { if (!document.hidden) wait(0); };
  document.addEventListener("visibilitychange", seen);

  const live = {
    update(next) {
      const first = !data;
      const other = data?.phase !== next.phase;
      data = next;
      if (other) drawnAt = -AGAIN;
      if (first || other || data.redraw) wait(data.milliseconds);
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
