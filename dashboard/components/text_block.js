// A few lines of text, optionally with a title and a progress bar.
//
// data: title, lines, progress (length of the bar, 0 to 1, or null for no bar), clipped (whether lines do not wrap), color (of a square
// before the title, which the lines then follow; or empty), and the data of an updated element (see update_socket.js).

export default function ({ data, parentElement }) {
  let block = parentElement.block;
  if (!block) block = parentElement.block = create(parentElement);
  return applyRendering(block, data, parentElement);
}

function create(root) {
  const find = (name) => root.querySelector("." + name);
  const [block, title, lines, bar] = ["text-block", "title", "lines", "bar"].map(find);

  return {
    update(data) {
      block.classList.toggle("clipped", data.clipped);
      block.classList.toggle("colored", !!data.color);
      block.style.setProperty("--color", data.color);
      title.textContent = title.title = data.title;
      while (lines.children.length > data.lines.length) lines.lastChild.remove();
      while (lines.children.length < data.lines.length) lines.append(document.createElement("div"));
      data.lines.forEach((line, index) => {
        lines.children[index].textContent = line;
        lines.children[index].title = data.clipped ? line : "";
      });
      bar.hidden = data.progress === null;
      bar.firstElementChild.style.width = `${100 * data.progress}%`;
      bar.setAttribute("aria-valuenow", Math.round(100 * data.progress));
      bar.setAttribute("aria-label", data.lines[0] ?? "");
    },
  };
}
