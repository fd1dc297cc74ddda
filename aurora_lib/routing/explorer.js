// The front of explorer.py, with a kernel and without. Texts reach the page as text nodes only.

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.setAttribute("data-lm-suppress-shortcuts", ""); // where the focus is, JupyterLab would take the keys
  made.append(...children);
  return made;
}

/** Fill `el`; `ask(text)` is to show another text, any one if `typed`. Returns what shows a grid. */
function explore(el, texts, data, ask, typed) {
  const say = (text, ...values) => (data.words?.[text] ?? text).replace(/\$(\d)/g, (_, i) => values[i - 1]);
  const views = data.models.map(({ name }, i) => [name, i]); // a label, which model, and one to compare
  for (const [name, i] of views.slice(1)) views.push([say("difference") + (views[2] ? `: ${name}` : ""), 0, i]);
  let [view, place, cells] = [0, [0, 0]]; // place: row and column of the one cell that Tab reaches
  const viewed = () => views[view].slice(1).map((i) => data.models[i]);
  const group = `view ${Math.random()}`;
  const choices = views.map(([label], i) => {
    const choose = { name: group, checked: !i, onchange: () => draw((view = i)) };
    return element("label", {}, element("input", { type: "radio", ...choose }), label);
  });
  const example = element("select", {}, ...texts.map((text) => element("option", {}, text)));
  example.onchange = () => ask(texts[example.selectedIndex]);
  const entry = element("input", { type: "text", dir: "auto" });
  const button = element("button", { type: "button", onclick: () => ask(entry.value) }, say("Route"));
  // while an input method composes, Enter chooses characters; Safari marks the Enter that ends it with 229
  entry.onkeydown = ({ key, isComposing, keyCode }) => {
    if (key === "Enter" && !isComposing && keyCode !== 229) ask(entry.value);
  };
  const lines = [{ role: "alert" }, {}, { ariaLive: "polite" }].map((properties) => element("p", properties));
  const [trouble, summary, details] = lines;
  const table = element("table", { role: "grid", ariaLabel: say("Layers by tokens; arrow keys move") });
  const within = (at, list) => list[Math.min(Math.max(at, 0), list.length - 1)];
  const nearest = ([row, column]) => within(column, within(row, cells));
  table.onmouseover = ({ target }) => point(target.closest("td"));
  table.addEventListener("focusin", ({ target }) => point(target, true));
  table.onkeydown = (event) => {
    if (!STEPS[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault(); // the page would scroll
    nearest(place.map((at, i) => at + STEPS[event.key][i])).focus();
  };
  el.classList.add("aurora-explorer");
  const typing = [element("label", { className: "aurora-explorer-text" }, say("Text"), entry), button];
  const asking = element("div", {}, ...(typed ? typing : []), element("label", {}, say("Example"), example));
  const viewing = element("div", { role: "radiogroup", ariaLabel: say("View") }, say("View"), ...choices);
  el.append(asking, viewing, ...lines, element("section", {}, table));

  function point(cell, focused) {
    const row = cells.findIndex((row) => row.includes(cell));
    if (row < 0) return; // a heading
    const column = cells[row].indexOf(cell);
    if (focused) [nearest(place).tabIndex, cell.tabIndex, place] = [-1, 0, [row, column]];
    const character = data.runs.flatMap(([shown, size]) => Array(size).fill(shown))[column];
    const token = data.tokens[column] + (character && say(" (a byte of $1)", character));
    const said = [say("Layer $1, token $2 of $3: ", data.layers[row], column + 1, data.tokens.length) + token];
    for (const { name, cells } of viewed()) {
      const expert = ([e, weight]) => say("expert $1 $2%", e, weight.toFixed(1));
      said.push(`${name}: ${cells[row][column].map(expert).join(", ")}`);
    }
    if (viewed()[1]) said.push(say(cell.className ? "≠ moved" : "= the same experts"));
    details.textContent = said.join(" · ");
  }

  function cellOf(own, other) {
    const chip = (sign) => ([e, weight]) =>
      element("span", { style: data.styles[e] }, element("b", {}, sign + e), `${weight.toFixed(0)}%`);
    if (!other) return element("td", { tabIndex: -1 }, ...own.slice(0, 2).map(chip("")));
    const without = (these, those) => these.filter(([e]) => !those.some(([f]) => e === f));
    const changes = [...without(own, other).map(chip("−")), ...without(other, own).map(chip("+"))];
    const [sign, className] = changes.length ? ["≠", "aurora-explorer-moved"] : ["=", ""];
    return element("td", { tabIndex: -1, className }, sign, ...changes);
  }

  function draw() {
    const [own, other] = viewed();
    cells = own.cells.map((row, i) => row.map((one, j) => cellOf(one, other && other.cells[i][j])));
    const th = (scope, shown, colSpan = 1) => element(shown ? "th" : "td", { scope, colSpan }, shown);
    const tr = (...parts) => element("tr", {}, ...parts);
    const tokens = tr(th("row", say("token")), ...data.tokens.map((token) => th("col", token)));
    const bytes = tr(th("row", say("bytes of")), ...data.runs.map(([shown, size]) => th("colgroup", shown, size)));
    const head = data.runs.some(([shown]) => shown) ? [bytes, tokens] : [tokens];
    const body = data.layers.map((layer, i) => tr(th("row", say("layer $1", layer)), ...cells[i]));
    table.replaceChildren(element("thead", {}, ...head), element("tbody", {}, ...body));
    const of = ["$1: the strongest of $2 experts, and weights. ▁ is a space.", own.name, data.styles.length];
    summary.textContent = other ? say("$1 −: lost, +: gained.", other.moved) : say(...of);
    summary.append(say(" Point at a cell, or move with the arrow keys, for all its numbers."));
    point(nearest(place), true);
  }

  return (shown, said = "") => {
    data = shown;
    trouble.textContent = said;
    if (!said && !entry.matches(":focus")) entry.value = data.text; // else somebody edits it
    example.selectedIndex = texts.indexOf(data.text);
    draw();
  };
}

function render({ model, el }) {
  const show = explore(el, model.get("texts"), model.get("data"), (text) => model.send({ text }), true);
  const update = () => show(model.get("data"), model.get("trouble"));
  for (const name of ["data", "trouble"]) model.on(`change:${name}`, update);
  update();
}

/** Every page's version that is not shown yet: its tables give way to the explorer. */
function showPages() {
  for (const kept of document.querySelectorAll(".aurora-explorer-page > [type='application/json']")) {
    const [el, grids] = [element("div"), JSON.parse(kept.textContent)];
    const texts = grids.map(({ text }) => text);
    const show = explore(el, texts, grids[0], (text) => show(grids[texts.indexOf(text)]));
    show(grids[0]);
    kept.parentElement.replaceChildren(el);
  }
}

export default { render };
