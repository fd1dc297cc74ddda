// Text to token ids and back, as tokenizer.json says it: byte-pair encoding, bytes for what it does not know.

const SPACE = "▁"; // as SentencePiece writes a space

export class Tokenizer {
  /** `json`: the content of tokenizer.json. */
  constructor(json) {
    const { vocab, merges } = json.model;
    this.ids = new Map(Object.entries(vocab));
    this.pieces = [];
    for (const [piece, id] of this.ids) this.pieces[id] = piece;
    this.special = new Map(json.added_tokens.map(({ content, id }) => [content, id]));
    for (const [piece, id] of this.special) this.pieces[id] = piece;
    this.ranks = new Map(merges.map((pair, rank) => [pair.join("\n"), rank]));
    this.splits = json.pre_tokenizer.pretokenizers.map(
      ({ pattern }) =>
        // written for another engine, Oniguruma: JavaScript wants the script of a character named in full
        new RegExp(pattern.Regex.replaceAll("\\p{Han}", "\\p{Script=Han}"), "gu"),
    );
    const escaped = [...this.special.keys()].map((piece) => piece.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    this.specials = new RegExp(`(${escaped.join("|")})`, "u");
    [this.bos, this.eos] = ["<s>", "</s>"].map((piece) => this.special.get(piece));
  }

  /** Token ids of `text`, with <s> in front, once. */
  encode(text) {
    const ids = text
      .replace(/[\ud800-\udfff]/gu, "\ufffd") // half of a pair is no character
      .split(this.specials)
      .flatMap((part) => {
        if (this.special.has(part)) return this.special.get(part);
        return part
          ? this.words(SPACE + part.replaceAll(" ", SPACE)).flatMap((word) => this.merge(word))
          : [];
      });
    return ids[0] === this.bos ? ids : [this.bos, ...ids];
  }

  /** Cut `text` into words; no merge joins two. Matches are words, and so is what lies between them. */
  words(text) {
    let parts = [text];
    for (const split of this.splits) {
      parts = parts.flatMap((part) => {
        const found = [];
        let end = 0;
        for (const { 0: hit, index } of part.matchAll(split)) {
          found.push(part.slice(end, index), hit);
          end = index + hit.length;
        }
        return [...found, part.slice(end)].filter((piece) => piece);
      });
    }
    return parts;
  }

  /** Byte-pair encoding: join the neighbours of lowest rank, learned first, until no pair is known -> ids. */
  merge(word) {
    let parts = [...word].flatMap((character) => (this.ids.has(character) ? character : bytes(character)));
    for (;;) {
      let [best, pair] = [Infinity, []];
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]}\n${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, pair] = [rank, [parts[i], parts[i + 1]]];
      }
      if (best === Infinity) return parts.map((part) => this.ids.get(part));
      const joined = [];
      for (let i = 0; i < parts.length; i++) {
        const here = parts[i] === pair[0] && parts[i + 1] === pair[1];
        joined.push(here ? parts[i] + parts[++i] : parts[i]);
      }
      parts = joined;
    }
  }

  /** A conversation as text in Mixtral's format, as chat_template.jinja writes it. */
  chat(messages) {
    let text = "<s>",
      system = "",
      expected = "user";
    for (const [i, { role, content }] of messages.entries()) {
      // typed by a user, <s> and </s> would become special tokens and end the turn
      const said = content.replaceAll("<s>", "< s>").replaceAll("</s>", "</ s>");
      if (role === "system" && expected === "user") {
        system += `${said}\n\n`;
        continue;
      }
      if (role !== expected) throw new Error(`message ${i + 1}: ${expected} must speak`);
      text += role === "user" ? `[INST] ${system}${said} [/INST]` : ` ${said}</s>`;
      if (role === "user") system = "";
      expected = role === "user" ? "assistant" : "user";
    }
    return text;
  }
}

function bytes(character) {
  return [...new TextEncoder().encode(character)].map(
    (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
}

/** The UTF-8 bytes of a piece. */
export function rawBytes(piece) {
  const byte = piece.match(/^<0x([0-9A-F]{2})>$/);
  return byte ? Uint8Array.of(parseInt(byte[1], 16)) : new TextEncoder().encode(piece.replaceAll(SPACE, " "));
}

/** Turns tokens into text as they come; bytes wait until their character is whole. */
export class TextStream {
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.begun = false;
  }

  add(id) {
    const piece = this.tokenizer.pieces[id];
    if (this.tokenizer.special.has(piece)) return "";
    let data = rawBytes(piece);
    // the tokenizer puts a space before the first word
    if (!this.begun && data[0] === 0x20) data = data.slice(1);
    this.begun = true;
    return this.decoder.decode(data, { stream: true });
  }

  finish() {
    return this.decoder.decode();
  }
}
