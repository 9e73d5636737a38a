// Draws an inspection (llama3/inspect/page.py says what the data holds). It loads nothing.
const find = (id) => document.getElementById(id);
const SAME = "the same answer"; // as page.py writes it
let data, triangles, lensTokens, lensShares, lensNext, chosen = 0, hovered = null, head = 0;
let known = {}; // widths and colours: to ask for one makes the browser lay out the page, so each is asked for once

function bytes(base64) {
  const text = atob(base64), found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function quoted(text) {
  return JSON.stringify(text).replaceAll("\\\\", "\\");
}

function share(p) {
  return p >= 0.9995 ? "1" : p < 0.0005 ? (p ? "<0.001" : "0") : p.toFixed(3);
}

// 2048 -> "2,048". toLocaleString would load tables of all languages, for longer than it takes to draw the page.
function count(n) {
  return String(n).replace(/\B(?=(\d{3})+$)/g, ",");
}

// The weight, 0 to 255, of a head's position `row` on position `column`.
function weight(h, row, column) {
  const n = data.tokens.length;
  return column > row ? 0 : triangles[h * (n * (n + 1) / 2) + row * (row + 1) / 2 + column];
}

function once(name, ask) {
  return (known[name] ??= ask());
}

// Of the box that a picture is drawn into.
function room(id) {
  return once(id, () => find(id).parentElement.clientWidth);
}

function headName(h) {
  return data.heads[h].join(".");
}

function show(inspection) {
  data = inspection;
  known = {};
  triangles = bytes(data.attention);
  lensTokens = new Uint32Array(bytes(data.lens.tokens).buffer);
  lensShares = new Uint16Array(bytes(data.lens.probabilities).buffer);
  lensNext = bytes(data.lens.next);
  chosen = Math.max(data.prompt - 1, 0);
  hovered = null;
  head = Math.max(data.heads.findIndex((part) => String(part) === String(data.first)), 0);
  find("model").textContent = `${data.model}: ${data.layers} layers, ${data.headCount} heads; seed ${data.seed}`;
  find("views").hidden = false;
  fillTokens();
  find("head").replaceChildren(...data.heads.map((_, h) => element("option", headName(h))));
  find("head").selectedIndex = head;
  find("heads-note").textContent = data.heads.length < data.headCount
    ? `${data.heads.length} of ${data.headCount} heads, those that look least at the first token. A row is a head, a column a token.`
    : "A row is a head, a column a token.";
  fillTable("ablations", ["off", "same tokens", "nats", "answer"], [["nothing", "", "", data.answer], ...data.ablations], 3);
  for (const cell of find("ablations").querySelectorAll("td.wrap")) cell.classList.toggle("gone", cell.textContent === SAME);
  find("off").hidden = !data.ablations.length;
  fillTable("operations", ["operation", "ms", "MB read", "floor, ms", "time / floor"], data.operations);
  find("time").hidden = !data.operations.length;
  draw();
}

function fillTokens() {
  find("tokens").replaceChildren(...data.tokens.map(([id, text, hex, special], i) => {
    const kind = `token${i < data.prompt ? "" : " answer"}${special ? " special" : ""}`;
    const button = element("button", text.replaceAll("\n", "↵"), kind);
    button.type = "button";
    button.title = `position ${i}: id ${id}, bytes ${hex}`;
    button.addEventListener("click", () => choose(i));
    button.addEventListener("mouseenter", () => { hovered = i; shade(); });
    button.addEventListener("mouseleave", () => { hovered = null; shade(); });
    return button;
  }));
}

function fillTable(id, headings, rows, wrapped = -1) {
  const top = element("tr");
  top.append(...headings.map((text) => element("th", text)));
  find(id).replaceChildren(top, ...rows.map((cells) => {
    const row = element("tr");
    row.append(...cells.map((cell, i) => element("td", cell, i === wrapped ? "wrap" : i ? "number" : "")));
    return row;
  }));
}

function choose(i) {
  chosen = Math.min(Math.max(i, 0), data.tokens.length - 1);
  draw();
}

function draw() {
  const [id, text, hex, special] = data.tokens[chosen];
  ["heads", "map", "next", "norms"].forEach(room); // before anything is drawn, so that the page is laid out once
  for (const [i, button] of [...find("tokens").children].entries()) button.classList.toggle("chosen", i === chosen);
  find("facts").textContent =
    `Position ${chosen}: ${quoted(text)}, id ${id}, bytes ${hex || "none"}${special ? ", a special token" : ""}. ` +
    "Click a token, or use the arrow keys; point at one to see how much the later ones look at it.";
  shade();
  drawMap();
  drawStages();
  drawLens();
  drawNorms();
}

// The text's background: how much the chosen position looks at each token; or, while the pointer is on a token, how
// much each later position looks at that.
function shade() {
  const heat = (w) => `color-mix(in srgb, var(--heat) ${Math.round(w / 2.55 * 0.75)}%, transparent)`;
  for (const [i, button] of [...find("tokens").children].entries()) {
    const w = hovered === null ? weight(head, chosen, i) : weight(head, i, hovered);
    button.style.backgroundColor = w > 2 ? heat(w) : "";
  }
  drawHeads();
}

function canvas(id, columns, rows, left, value) {
  const target = find(id), wide = room(id) - left;
  const cell = Math.max(3, Math.min(18, Math.floor(wide / columns), id === "map" ? Math.floor(480 / rows) : 18));
  const tall = id === "map" ? cell : 15;
  const scale = window.devicePixelRatio || 1, width = left + columns * cell, height = rows * tall;
  target.width = width * scale;
  target.height = height * scale;
  target.style.width = `${width}px`;
  target.style.height = `${height}px`;
  const pen = target.getContext("2d");
  pen.scale(scale, scale);
  pen.imageSmoothingEnabled = false; // a pixel becomes a cell
  pen.drawImage(pixels(columns, rows, value), left, 0, columns * cell, rows * tall);
  if (cell > 5) { // room for a gap between cells
    for (let c = 1; c <= columns; c++) pen.clearRect(left + c * cell - 1, 0, 1, height);
    for (let r = 1; r <= rows; r++) pen.clearRect(left, r * tall - 1, width, 1);
  }
  pen.font = `${Math.min(tall, 12)}px ui-monospace, Menlo, Consolas, monospace`;
  pen.textBaseline = "middle";
  pen.fillStyle = pen.strokeStyle = `rgb(${colour("--text")})`;
  target.cells = { cell, tall, left, columns, rows };
  return pen;
}

// A picture with one pixel a cell: a weight, 0 to 255, is so much of the colour --heat over a faint ground; a weight below
// 0 is a cell that does not exist. To draw each cell of 200 positions as a rectangle would take several times as long.
function pixels(columns, rows, value) {
  const picture = document.createElement("canvas"), pen = picture.getContext("2d");
  picture.width = columns;
  picture.height = rows;
  const image = pen.createImageData(columns, rows), heat = colour("--heat"), ground = colour("--line");
  for (let r = 0, at = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++, at += 4) {
      const w = value(r, c);
      if (w < 0) continue;
      const over = w < 2 ? 0 : w / 255, under = 0.25 * (1 - over), alpha = over + under; // below 2: not to be seen
      for (let i = 0; i < 3; i++) image.data[at + i] = (heat[i] * over + ground[i] * under) / alpha;
      image.data[at + 3] = 255 * alpha;
    }
  }
  pen.putImageData(image, 0, 0);
  return picture;
}

// Red, green and blue of a colour in the style sheet, as light or dark as the reader has it.
function colour(name) {
  return once(name, () => {
    const probe = element("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
    probe.remove();
    return found;
  });
}

function drawHeads() {
  const n = data.tokens.length, on = hovered, start = on ?? 0, columns = on === null ? chosen + 1 : n - on;
  const value = (h, c) => (on === null ? weight(h, chosen, c) : weight(h, on + c, on));
  const pen = canvas("heads", columns, data.heads.length, 44, value), { tall } = find("heads").cells;
  find("heads").cells.start = start;
  data.heads.forEach((_, h) => pen.fillText((h === head ? "▸" : " ") + headName(h), 0, h * tall + tall / 2));
  const text = on === null ? "looks at each token up to itself" : "is looked at by each token from itself on";
  const from = on ?? chosen;
  find("heads-cell").textContent = `How much position ${from}, ${quoted(data.tokens[from][1])}, ${text}. Click a cell to choose its head.`;
}

function drawMap() {
  const n = data.tokens.length, pen = canvas("map", n, n, 0, (r, c) => (c > r ? -1 : weight(head, r, c)));
  const { cell } = find("map").cells;
  pen.strokeRect(0.5, chosen * cell + 0.5, (chosen + 1) * cell - 1, Math.max(cell - 1, 2));
}

function place(event) {
  const { cell, tall, left, columns, rows } = event.target.cells, box = event.target.getBoundingClientRect();
  const c = Math.floor((event.clientX - box.left - left) / cell), r = Math.floor((event.clientY - box.top) / tall);
  return c >= 0 && c < columns && r >= 0 && r < rows ? [r, c] : null;
}

function sentence(h, row, column) {
  const w = column > row ? "cannot look at" : `puts ${(weight(h, row, column) / 255).toFixed(2)} on`;
  return `Head ${headName(h)}, position ${row} ${quoted(data.tokens[row][1])} ${w} ${quoted(data.tokens[column][1])} at ${column}`;
}

function nextSentence(point, position) {
  const { length } = data.tokens;
  if (position === length - 1) return "Nothing follows the last token.";
  const p = lensNext[point * length + position] / 255, name = pointName(data.lens.points[point]);
  return `After ${name}, position ${position} ${quoted(data.tokens[position][1])} gives ${quoted(data.tokens[position + 1][1])} ${p.toFixed(2)}`;
}

function drawStages() {
  const step = data.steps.find((one) => one.position === chosen + 1);
  find("stages").hidden = !step;
  if (!step) {
    find("choice-note").textContent = "The token after this one was given, not chosen. Click the last token of the prompt, or one of the answer.";
    return;
  }
  find("choice-note").textContent =
    `${quoted(data.vocabulary[step.token])} follows. The model gave it ${share(step.probability)}; entropy ` +
    `${step.entropy.toFixed(2)} nats; the number of the draw is ${step.u.toFixed(3)}. Columns: probabilities after each stage.`;
  const top = element("tr");
  top.append(element("th", "token"), ...data.stages.map(([name, setting]) => element("th", setting ? `${name} ${setting}` : name)));
  const rows = step.rivals.map((token, i) => {
    const row = element("tr", "", token === step.token ? "chosen" : "");
    row.append(element("td", quoted(data.vocabulary[token])), ...data.stages.map(([name]) => {
      const p = step.stages[name][i], cell = element("td", share(p), p ? "bar" : "bar gone");
      cell.style.backgroundSize = `${100 * p}% 80%`;
      return cell;
    }));
    return row;
  });
  const last = element("tr");
  last.append(element("th", "tokens left"), ...data.stages.map(([name]) => element("td", count(step.left[name]))));
  find("stages").replaceChildren(top, ...rows, last);
}

function drawLens() {
  const { points, n } = data.lens, size = data.tokens.length;
  const next = data.steps.find((one) => one.position === chosen + 1)?.token ?? data.tokens[chosen + 1]?.[0];
  const rows = points.map((point, s) => {
    const row = element("tr");
    row.append(element("th", pointName(point)));
    row.title = point;
    for (let i = 0; i < n; i++) {
      const at = (s * size + chosen) * n + i, p = lensShares[at] / 65535;
      const cell = element("td", `${quoted(data.vocabulary[lensTokens[at]])} ${p.toFixed(2)}`, "bar");
      cell.style.backgroundSize = `${100 * p}% 80%`;
      if (lensTokens[at] === next) cell.style.fontWeight = "700";
      row.append(cell);
    }
    return row;
  });
  find("lens").replaceChildren(...rows);
  const pen = canvas("next", size, points.length, 0, (r, c) => (c === size - 1 ? -1 : lensNext[r * size + c]));
  const { cell, tall } = find("next").cells;
  pen.strokeRect(chosen * cell + 0.5, 0.5, Math.max(cell - 1, 2), points.length * tall - 1);
}

// "layers.0.attention_residual" -> "0 attention": the stream after this part of the layer has added to it.
function pointName(point) {
  const [, layer, part] = point.split(".");
  return layer === undefined ? "embedding" : `${layer} ${part ? "attention" : "feed-forward"}`;
}

function drawNorms() {
  const namespace = "http://www.w3.org/2000/svg", { points } = data.lens, norms = data.norms;
  const wide = Math.max(room("norms"), 200), left = 60, right = 100, tall = 220;
  const mean = norms.map((row) => row.slice(1).reduce((a, b) => a + b, 0) / Math.max(row.length - 1, 1));
  const lines = [["c", "first token", norms.map((row) => row[0])], ["a", "others", mean], ["b", "chosen", norms.map((row) => row[chosen])]];
  const high = Math.max(...lines.flatMap((line) => line[2])), step = 10 ** Math.floor(Math.log10(high));
  const unit = high / step > 5 ? 2 * step : high / step > 2 ? step : step / 2;
  const most = unit * Math.ceil(high / unit), x = (i) => left + (wide - left - right) * i / (points.length - 1), y = (v) => 10 + tall * (1 - v / most);
  const svg = document.createElementNS(namespace, "svg");
  const add = (name, attributes, text = "") => {
    const made = document.createElementNS(namespace, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    svg.append(made);
  };
  const below = points.length > 16 ? 30 : 100;
  for (const [key, value] of Object.entries({ width: wide, height: tall + 20 + below, role: "img", "aria-label": "Norms" })) svg.setAttribute(key, value);
  for (let v = 0; v <= most * 1.001; v += unit) {
    add("path", { class: "grid", d: `M${left} ${y(v)}H${wide - right}` });
    add("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, String(+v.toPrecision(3)));
  }
  const every = Math.ceil(points.length / 16);
  points.forEach((point, i) => {
    const name = points.length > 16 ? String((i - (i % 2 ? 1 : 0)) / 2) : pointName(point);
    const turn = points.length > 16 ? "" : `rotate(-60 ${x(i) + 4} ${tall + 22})`;
    if (i % every === 0) add("text", { x: x(i) + 4, y: tall + 22, "text-anchor": "end", transform: turn }, name);
  });
  const ends = lines.map((line) => y(line[2].at(-1))).map((v, i, all) => v + 14 * all.slice(0, i).filter((u) => Math.abs(u - v) < 14).length);
  lines.forEach(([kind, name, values], k) => {
    add("path", { class: kind, d: "M" + values.map((v, i) => `${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("L") });
    add("text", { x: wide - right + 8, y: ends[k] + 4 }, name);
  });
  find("norms").replaceChildren(svg);
}

find("head").addEventListener("change", () => {
  head = find("head").selectedIndex;
  draw();
});
for (const id of ["heads", "map", "next"]) {
  find(id).addEventListener("mousemove", (event) => {
    const at = place(event);
    if (!at) return;
    const text = id === "map" ? sentence(head, ...at) : id === "heads" ? sentence(at[0], chosen, at[1]) : nextSentence(...at);
    find(`${id}-cell`).textContent = text;
  });
  find(id).addEventListener("click", (event) => {
    const at = place(event);
    if (!at) return;
    if (id === "heads") find("head").selectedIndex = head = at[0];
    else chosen = at[id === "map" ? 0 : 1];
    draw();
  });
}
addEventListener("keydown", (event) => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way || !data || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
  choose(chosen + way);
  find("tokens").children[chosen].focus({ preventScroll: true });
  event.preventDefault();
});
function redraw() {
  known = {};
  if (data) draw();
}

addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
if (find("data")) show(JSON.parse(find("data").textContent));
