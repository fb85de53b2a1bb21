// A few lines of text, with a title and a bar where they have one.
//
// data: title, lines, part (how full the bar is, from 0 to 1, or null for no bar), clipped (whether each line stays one line), and what
// an updated element has (see update_socket.js).

export default function ({ data, parentElement }) {
  let block = parentElement.block;
  if (!block) block = parentElement.block = create(parentElement);
  return hand(block, data, parentElement);
}

function create(root) {
  const find = (name) => root.querySelector("." + name);
  const [block, title, lines, bar] = ["text-block", "title", "lines", "bar"].map(find);

  return {
    update(data) {
      block.classList.toggle("clipped", data.clipped);
      title.textContent = title.title = data.title;
      while (lines.children.length > data.lines.length) lines.lastChild.remove();
      while (lines.children.length < data.lines.length) lines.append(document.createElement("div"));
      data.lines.forEach((line, index) => {
        lines.children[index].textContent = line;
        lines.children[index].title = data.clipped ? line : "";
      });
      bar.hidden = data.part === null;
      bar.firstElementChild.style.width = `${100 * data.part}%`;
      bar.setAttribute("aria-valuenow", Math.round(100 * data.part));
      bar.setAttribute("aria-label", data.lines[0] ?? "");
    },
  };
}
