// Prepended to the JavaScript of every element; above all for those that can be updated through the socket (see update_socket.js).

// From now on, an element has its own height, no longer the one that held its place (page.css).
function freeHeight(parentElement) {
  const container = (parentElement.host ?? parentElement).closest("[data-testid=stElementContainer]");
  if (container) container.dataset.drawn = "";
}

// Passes the data of a rendering by Streamlit to an element; returns the function that Streamlit calls to clean up. element: has
// update(data), and end() if it needs cleaning up. If the element already has this rendering, updates may be newer: then it keeps its data.
function applyRendering(element, data, parentElement) {
  const elements = (window.updatedElements ??= new Map());
  if (data.rendering && data.rendering === element.rendering) element.redraw?.();
  else {
    element.rendering = data.rendering;
    element.data = data;
    delete element.text;
    if (data.rendering) elements.set(data.key, element);
    element.update(data);
    freeHeight(parentElement);
  }
  // Streamlit also cleans up after calls that were superseded by newer ones
  return () => setTimeout(() => {
    if (parentElement.isConnected) return;
    if (elements.get(element.data.key) === element) elements.delete(element.data.key);
    element.end?.();
  });
}
