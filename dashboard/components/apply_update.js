// Prepended to the JavaScript of every element that can be updated through the socket (see update_socket.js).

// Gives an element the data that Streamlit has drawn; returns what Streamlit calls to clean up. element: has update(data), and end() if it
// needs cleaning up. The same rendering drawn again brings nothing new, and updates since then are newer: then the element keeps its data.
function hand(element, data, parentElement) {
  const elements = (window.updatedElements ??= new Map());
  if (data.rendering && data.rendering === element.rendering) element.again?.();
  else {
    element.rendering = data.rendering;
    element.data = data;
    delete element.text;
    if (data.rendering) elements.set(data.key, element);
    element.update(data);
  }
  // Streamlit also cleans up after a call that a newer one has overtaken
  return () => setTimeout(() => {
    if (parentElement.isConnected) return;
    if (elements.get(element.data.key) === element) elements.delete(element.data.key);
    element.end?.();
  });
}
