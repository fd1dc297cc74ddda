// Which experts work on each token of a text, as aurora_lib/routing/explorer.py tells its front.

import { Cache } from "./mixtral.js";
import { rawBytes } from "./tokenizer.js";
import { fault, say } from "./words.js";

export const ROOM = 256; // tokens: a browser draws layers x tokens cells

/** `text` with control characters (but line breaks and tabs) as signs that can be seen, such as ␛. */
export function visible(text) {
  const sign = (one) => String.fromCharCode(one === "\x7f" ? 0x2421 : 0x2400 + one.charCodeAt(0));
  return text.replaceAll("\r\n", "\n").replace(/[\0-\x08\x0b-\x1f\x7f]/g, sign);
}

/** The grid of `text` by base and tuned. Cells are [layer][token][slot] of [expert, weight in percent]. */
export function grid(model, tokenizer, text) {
  if (!text.trim()) throw fault("There is nothing to route: the text is empty.");
  const ids = tokenizer.encode(text);
  const size = ids.length;
  if (size > ROOM) {
    throw fault("The text has $1 tokens, and the grid has room for $2: cut it into pieces.", size, ROOM);
  }
  const routed = [false, true].map((tuned) => {
    const cells = model.layers.map(() => []);
    model.forward(ids, new Cache(cells.length), tuned, (layer, experts, weights) =>
      cells[layer].push(experts.map((expert, slot) => [expert, Math.round(1e4 * weights[slot]) / 100])),
    );
    return cells;
  });
  const stays = routed[0].flatMap((row, layer) =>
    row.flatMap((cell, token) => cell.map(([e]) => routed[1][layer][token].some(([f]) => e === f))),
  );
  const lost = stays.filter((one) => !one).length;
  const models = ["base", "tuned"].map((name, i) => {
    const moved = say("$1 of $2 slots moved from base to $3.", i * lost, stays.length, name);
    return { name, cells: routed[i], moved };
  });
  const pieces = ids.map((id) => tokenizer.pieces[id]);
  const layers = routed[0].map((_, layer) => layer);
  return { text, models, tokens: pieces.map(visible), runs: runs(pieces), layers, styles: styles(model) };
}

/** Byte pieces grouped into characters: [[the character, or "" of no bytes; how many pieces], ...]. */
export function runs(pieces) {
  const found = [];
  for (let at = 0; at < pieces.length;) {
    const size = /^<0x..>$/.test(pieces[at])
      ? character(pieces.slice(at, at + 4).map((one) => rawBytes(one)[0]))
      : 0;
    found.push([size ? whole(pieces.slice(at, at + size)) : "", size || 1]);
    at += size || 1;
  }
  return found;
}

/** How many of these bytes the character at their beginning has; 0 if they are no UTF-8. */
function character(bytes) {
  const size = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : bytes[0] >= 0xc2 ? 2 : 1;
  try {
    new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes.slice(0, size)));
    return size;
  } catch {
    return 0;
  }
}

/** The character that these pieces make; its code, such as \u200b, where it is invisible. */
function whole(pieces) {
  const bytes = Uint8Array.from(pieces.flatMap((piece) => [...rawBytes(piece)]));
  const shown = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  if (!/[\p{C}\p{Z}]/u.test(shown)) return shown;
  const code = shown.codePointAt(0).toString(16);
  const [mark, length] = code.length > 4 ? ["U", 8] : code.length > 2 ? ["u", 4] : ["x", 2];
  return pieces.length > 1 ? `\\${mark}${code.padStart(length, "0")}` : "";
}

/** Each expert's ink and paper, on light pages and on dark ones. */
function styles({ config: { num_local_experts: experts } }) {
  return Array.from({ length: experts }, (_, expert) => {
    const hue = Math.floor((360 * expert) / experts),
      [light, dark] = [
        [86, 20],
        [74, 29],
      ][expert % 2];
    const papers = `hsl(${hue} 75% ${light}%),hsl(${hue} 60% ${dark}%)`;
    return `color:light-dark(#000,#fff);background:light-dark(${papers})`;
  });
}
