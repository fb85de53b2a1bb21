// Stands before the JavaScript of every element that can be streamed to (see live.js).

// Gives an element what Streamlit has drawn; returns what Streamlit calls to clean up. element: has update(data), and end() if it has to
// leave something. A drawing that comes again says nothing new, and what was streamed since is newer: then the element keeps what it has.
function hand(element, data, parentElement) {
  const pieces = (window.studioPieces ??= new Map());
  if (data.made && data.made === element.made) element.again?.();
  else {
    element.made = data.made;
    element.data = data;
    delete element.text;
    if (data.made) pieces.set(data.piece, element);
    element.update(data);
  }
  // Streamlit also cleans up after a call that a newer one has overtaken
  return () => setTimeout(() => {
    if (parentElement.isConnected) return;
    if (pieces.get(element.data.piece) === element) pieces.delete(element.data.piece);
    element.end?.();
  });
}
