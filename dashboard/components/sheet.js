// A contact sheet: one picture of many images, and over it a grid of cells that can be hovered over, focused and clicked.
//
// data: picture (data URI), width and height (of the picture in pixels), columns, header (names above the columns, or empty), cells
// (null or [index, text, whether it is marked] for each cell of the grid), chosen (an index or null), alt, and the data of an updated
// element (see update_socket.js).

export default function ({ data, parentElement, setTriggerValue }) {
  let sheet = parentElement.sheet;
  if (!sheet) sheet = parentElement.sheet = create(parentElement);
  sheet.pick = (index) => setTriggerValue("picked", index);
  return applyRendering(sheet, data, parentElement);
}

function create(root) {
  const find = (name) => root.querySelector("." + name);
  const box = find("sheet");
  const [header, frame, picture, grid, tip] = ["header", "frame", "picture", "grid", "tip"].map(find);
  let data;
  let cells = [];
  let current = 0; // the cell that the tab key focuses

  function build() {
    const rows = Math.ceil(data.cells.length / data.columns);
    cells = [];
    grid.style.setProperty("--columns", data.columns);
    grid.style.setProperty("--rows", rows);
    grid.replaceChildren(...Array.from({ length: rows }, (_, row) => {
      const line = document.createElement("div");
      line.setAttribute("role", "row");
      for (let column = 0; column < data.columns; column++) {
        const cell = document.createElement("div");
        cell.setAttribute("role", "gridcell");
        cell.dataset.cell = row * data.columns + column;
        cells.push(cell);
        line.append(cell);
      }
      return line;
    }));
  }

  function describe(index) {
    const known = data.cells[index];
    if (!known) return hide();
    tip.textContent = known[1];
    tip.hidden = false;
    const left = ((index % data.columns) + 0.5) / data.columns;
    const row = Math.floor(index / data.columns);
    const rows = Math.ceil(data.cells.length / data.columns);
    tip.style.left = `${100 * left}%`;
    tip.style.transform = `translateX(${-100 * left}%)`;
    const above = row > 0;
    tip.style.top = above ? "" : `${(100 * (row + 1)) / rows}%`;
    tip.style.bottom = above ? `${100 * (1 - row / rows)}%` : "";
  }
  const hide = () => { tip.hidden = true; };

  function focusOn(index) {
    cells[current]?.setAttribute("tabindex", "-1");
    current = index;
    cells[index].setAttribute("tabindex", "0");
    cells[index].focus();
  }

  const cellAt = (event) => {
    const cell = event.target.closest?.("[data-cell]");
    return cell ? Number(cell.dataset.cell) : -1;
  };
  let pointed = -1;
  grid.addEventListener("mousemove", (event) => { pointed = cellAt(event); describe(pointed); });
  grid.addEventListener("mouseleave", () => { pointed = -1; hide(); });
  grid.addEventListener("focusin", (event) => { if (event.target.matches(":focus-visible")) describe(cellAt(event)); });
  grid.addEventListener("focusout", hide);
  grid.addEventListener("click", (event) => { const known = data.cells[cellAt(event)]; if (known) sheet.pick(known[0]); });
  grid.addEventListener("keydown", (event) => {
    const index = cellAt(event);
    const known = data.cells[index];
    const row = index - (index % data.columns);
    const to = {
      ArrowLeft: index - 1, ArrowRight: index + 1, ArrowUp: index - data.columns, ArrowDown: index + data.columns,
      Home: row, End: row + data.columns - 1,
    }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      event.stopPropagation();
      if (data.cells[to]) focusOn(to);
    } else if (known && (event.key === "Enter" || event.key === " ")) {
      event.preventDefault();
      sheet.pick(known[0]);
    } else if (event.key === "Escape") hide();
  });

  const sheet = {
    update(next) {
      const before = data;
      data = next;
      if (!before || before.columns !== data.columns || before.cells.length !== data.cells.length) build();
      frame.style.aspectRatio = `${data.width} / ${data.height}`;
      box.style.setProperty("--ratio", data.width / data.height);
      grid.setAttribute("aria-label", data.alt);
      picture.alt = data.alt;
      if (!before || before.header.join("\n") !== data.header.join("\n")) {
        header.replaceChildren(...data.header.map((name) => {
          const title = document.createElement("span");
          title.textContent = name;
          return title;
        }));
        header.hidden = !data.header.length;
      }
      const show = (uri) => { if (uri === data.picture) picture.src = uri; };
      if (!before) show(data.picture);
      else if (before.picture !== data.picture) {
        // replaced when the new picture is decoded, so that nothing flickers
        const ready = new Image();
        ready.src = data.picture;
        ready.decode().then(() => show(ready.src), () => show(data.picture));
      }
      if (!data.cells[current]) current = Math.max(data.cells.findIndex(Boolean), 0);
      cells.forEach((cell, index) => {
        const known = data.cells[index];
        const kind = known ? `cell${known[2] ? " other" : ""}${known[0] === data.chosen ? " chosen" : ""}` : "";
        if (cell.className !== kind) cell.className = kind; // assigning the same class makes the browser recompute styles
        if (known) {
          cell.setAttribute("aria-label", known[1]);
          cell.setAttribute("aria-selected", known[0] === data.chosen);
          cell.setAttribute("tabindex", index === current ? "0" : "-1");
        } else {
          for (const name of ["aria-label", "aria-selected", "tabindex"]) cell.removeAttribute(name);
        }
      });
      if (pointed >= 0 && !tip.hidden) describe(pointed);
    },
  };
  return sheet;
}
