// A table whose rows can be sorted, filtered and selected, and whose columns can be chosen. What is chosen is in the page's address:
// NAME.sort (a column, "-" in front for descending), NAME.find (words), NAME.columns and NAME.rows (ids, separated by commas).
//
// data: name, alt, columns ({name, label, help, kind: text, number, time, tags or link, hidden}), rows ({id, href, cells}; a cell is null,
// a value, or {value, shown, best}), select ("", "one" or "many"), selected (ids), find (whether there is a filter), height (at most, in
// pixels; 0: any) and file (name of the CSV file).

export default function ({ data, parentElement, setTriggerValue }) {
  const table = (parentElement.table ??= create(parentElement));
  table.changed = () => setTriggerValue("changed", Date.now());
  table.open = (id) => setTriggerValue("opened", id);
  table.update(data);
  freeHeight(parentElement);
}

const UNITS = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]];
const FEW = 5; // rows or columns
const WAIT = 3000; // milliseconds for which a selection of the user overrides the server's, which may not know it yet

// "12 minutes ago"
function relative(seconds) {
  const away = seconds - Date.now() / 1000;
  const [unit, size] = UNITS.find(([, size]) => Math.abs(away) >= size) ?? ["second", 1];
  if (unit === "second") return away > 0 ? "in a minute" : "just now";
  return new Intl.RelativeTimeFormat("en", { numeric: "always" }).format(Math.trunc(away / size), unit);
}

// "2026-11-30 14:05:09", in the time zone of the browser
function date(seconds) {
  const at = new Date(1000 * seconds - 60000 * new Date(1000 * seconds).getTimezoneOffset());
  return at.toISOString().slice(0, 19).replace("T", " ");
}

const valueOf = (cell) => (cell !== null && typeof cell === "object" && !Array.isArray(cell) ? cell.value : cell);
const shownOf = (cell) => (cell !== null && typeof cell === "object" && !Array.isArray(cell) ? cell.shown : cell);

function compare(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", { numeric: true });
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function create(root) {
  const find = (name) => root.querySelector(name);
  const [whole, filter, count, choose, list, csv] = [".table", ".find", ".count", ".choose", ".list", ".csv"].map(find);
  const [frame, grid, head, body] = [".frame", "table", "thead", "tbody"].map(find);
  let data;
  let selected = new Set();
  let changedAt = -WAIT;
  let current = 0; // the row that the tab key focuses
  let last = 0; // the row that a range of selected rows begins with

  const parameter = (part) => new URLSearchParams(location.search).get(`${data.name}.${part}`);
  function put(part, value) {
    const query = new URLSearchParams(location.search);
    if (value) query.set(`${data.name}.${part}`, value);
    else query.delete(`${data.name}.${part}`);
    const text = query.toString();
    history.replaceState(history.state, "", location.pathname + (text ? `?${text}` : "") + location.hash);
  }

  function shownColumns() {
    const names = parameter("columns")?.split(",").map(decodeURIComponent);
    const shown = data.columns.filter((column, index) => index === 0 || (names ? names.includes(column.name) : !column.hidden));
    return shown.map((column) => [column, data.columns.indexOf(column)]);
  }

  function sorting() {
    const text = parameter("sort") ?? "";
    const name = text.replace(/^-/, "");
    return [data.columns.findIndex((column) => column.name === name), text.startsWith("-")];
  }

  function shownRows() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (row) => row.cells.map((cell) => `${valueOf(cell) ?? ""} ${shownOf(cell) ?? ""}`).join(" ").toLowerCase();
    const rows = data.rows.filter((row) => words.every((word) => text(row).includes(word)));
    const [index, descending] = sorting();
    if (index < 0) return rows;
    const missing = (value) => value === null || value === "";
    return rows.sort((one, other) => {
      const [a, b] = [valueOf(one.cells[index]), valueOf(other.cells[index])];
      if (missing(a) || missing(b)) return missing(a) - missing(b); // last in both directions
      return descending ? compare(b, a) : compare(a, b);
    });
  }

  function content(column, cell, row) {
    const [value, shown] = [valueOf(cell), shownOf(cell)];
    if (value === null) return ["–"];
    if (column.kind === "time") return [make("span", { textContent: relative(value), title: date(value) })];
    if (column.kind === "tags") return value.map((tag) => make("span", { className: "tag", textContent: tag }));
    const title = String(shown) === String(value) || column.kind === "number" ? "" : value;
    if (column.kind !== "link" || !row.href) return [make("span", { textContent: shown, title })];
    return [make("a", { textContent: shown, title, href: row.href })];
  }

  function drawHead(columns) {
    const [sorted, descending] = sorting();
    const cells = columns.map(([column, index], place) => {
      const button = make("button", { type: "button", textContent: column.label });
      button.dataset.column = column.name;
      const cell = make("th", { scope: "col", title: column.help, className: classOf(column, place) }, button);
      if (!column.help) cell.removeAttribute("title");
      if (sorted === index) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      return cell;
    });
    if (data.select) cells.unshift(make("td", { className: "mark" }));
    const focused = root.activeElement?.dataset?.column;
    head.replaceChildren(make("tr", {}, ...cells));
    if (focused) [...head.querySelectorAll("button")].find((button) => button.dataset.column === focused)?.focus();
  }

  const classOf = (column, place) => [column.kind === "number" ? "number" : "", place === 0 ? "pinned" : ""].join(" ").trim();

  function draw() {
    const [columns, rows] = [shownColumns(), shownRows()];
    const focused = body.contains(root.activeElement);
    drawHead(columns);
    current = Math.min(current, Math.max(rows.length - 1, 0));
    body.replaceChildren(...rows.map((row, number) => {
      const cells = columns.map(([column, index], place) => {
        const cell = make("td", { className: classOf(column, place) }, ...content(column, row.cells[index], row));
        cell.classList.toggle("best", Boolean(row.cells[index]?.best));
        return cell;
      });
      if (data.select) {
        const box = make("input", { type: "checkbox", tabIndex: -1, checked: selected.has(row.id) });
        box.setAttribute("aria-label", `Select ${valueOf(row.cells[0]) ?? "row"}`);
        cells.unshift(make("td", { className: "mark" }, box));
      }
      const line = make("tr", {}, ...cells);
      line.dataset.id = row.id;
      if (data.select) {
        line.tabIndex = number === current ? 0 : -1;
        line.setAttribute("aria-selected", selected.has(row.id));
      }
      return line;
    }));
    if (focused) body.children[current]?.focus();
    const of = rows.length < data.rows.length ? `${rows.length} of ${data.rows.length}` : `${rows.length}`;
    // a few rows are counted at a glance
    const shown = data.find || data.rows.length > FEW || rows.length < data.rows.length ? [`${of} row${data.rows.length === 1 ? "" : "s"}`] : [];
    count.textContent = [...shown, ...(selected.size ? [`${selected.size} selected`] : [])].join(", ");
  }

  function mark() {
    for (const line of body.children) {
      const chosen = selected.has(line.dataset.id);
      line.setAttribute("aria-selected", chosen);
      line.querySelector("input").checked = chosen;
    }
  }

  function select(number, range) {
    const lines = [...body.children];
    const id = lines[number].dataset.id;
    if (data.select === "one") selected = new Set(selected.has(id) ? [] : [id]);
    else if (range) {
      const [from, to] = [Math.min(last, number), Math.max(last, number)];
      lines.slice(from, to + 1).forEach((line) => selected.add(line.dataset.id));
    } else if (!selected.delete(id)) selected.add(id);
    last = number;
    tell();
  }

  function tell() {
    changedAt = performance.now();
    put("rows", data.rows.filter((row) => selected.has(row.id)).map((row) => row.id).join(","));
    draw();
    table.changed();
  }

  function focusOn(number) {
    const line = body.children[number];
    if (!line) return;
    if (body.children[current]) body.children[current].tabIndex = -1;
    current = number;
    line.tabIndex = 0;
    line.focus();
  }

  head.addEventListener("click", (event) => {
    const name = event.target.closest("button")?.dataset.column;
    if (name === undefined) return;
    // ascending, descending, as given
    const before = parameter("sort");
    put("sort", before === name ? `-${name}` : before === `-${name}` ? "" : name);
    draw();
  });
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (event.target.closest("a")) {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      table.open(line.dataset.id);
    } else if (data.select && !root.getSelection?.()?.toString()) {
      const number = [...body.children].indexOf(line);
      focusOn(number);
      select(number, event.shiftKey);
    }
  });
  body.addEventListener("keydown", (event) => {
    if (!data.select || !event.target.matches("tr")) return;
    const end = body.children.length - 1;
    const to = { ArrowUp: current - 1, ArrowDown: current + 1, Home: 0, End: end, PageUp: current - 10, PageDown: current + 10 }[event.key];
    if (to !== undefined) {
      focusOn(Math.min(Math.max(to, 0), end));
      if (event.shiftKey) select(current, true);
    } else if (event.key === " ") select(current, event.shiftKey);
    else if (event.key === "Enter") body.children[current].querySelector("a")?.click();
    else if (event.key === "a" && (event.ctrlKey || event.metaKey) && data.select === "many") {
      [...body.children].forEach((line) => selected.add(line.dataset.id));
      tell();
    } else if (event.key === "Escape" && selected.size) {
      selected.clear();
      tell();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  filter.addEventListener("input", () => { put("find", filter.value.trim()); draw(); });
  list.addEventListener("change", () => {
    const names = [...list.querySelectorAll("input")].filter((box) => box.checked).map((box) => box.value);
    const usual = data.columns.slice(1).filter((column) => !column.hidden).map((column) => column.name);
    // "," for none, because a parameter without a value is removed
    put("columns", names.join() === usual.join() ? "" : names.map(encodeURIComponent).join() || ",");
    draw();
  });
  choose.addEventListener("keydown", (event) => { if (event.key === "Escape") { choose.open = false; choose.firstElementChild.focus(); } });
  document.addEventListener("pointerdown", (event) => { if (!event.composedPath().includes(choose)) choose.open = false; });
  csv.addEventListener("click", () => {
    const columns = shownColumns();
    const cell = (column, value) => (value !== null && column.kind === "time" ? date(value) : Array.isArray(value) ? value.join(", ") : value);
    const lines = shownRows().map((row) => columns.map(([column, index]) => cell(column, valueOf(row.cells[index]))));
    window.downloadButtons.table([columns.map(([column]) => column.label), ...lines], data.file);
  });

  const table = {
    update(next) {
      data = next;
      if (performance.now() - changedAt > WAIT || data.selected.length === selected.size) selected = new Set(data.selected);
      whole.classList.toggle("pick", Boolean(data.select));
      filter.hidden = !data.find;
      if (root.activeElement !== filter) filter.value = data.find ? (parameter("find") ?? "") : "";
      choose.hidden = data.columns.length <= FEW;
      frame.style.maxHeight = data.height ? `${data.height}px` : "";
      grid.setAttribute("aria-label", data.alt);
      csv.setAttribute("aria-label", `Download as CSV: ${data.alt}`); // a page may have several tables
      grid.setAttribute("role", data.select ? "grid" : "table");
      if (data.select === "many") grid.setAttribute("aria-multiselectable", "true");
      const shown = new Set(shownColumns().map(([column]) => column.name));
      list.replaceChildren(...data.columns.slice(1).map((column) => {
        const box = make("input", { type: "checkbox", value: column.name, checked: shown.has(column.name) });
        return make("label", {}, box, column.label);
      }));
      draw();
    },
  };
  return table;
}
