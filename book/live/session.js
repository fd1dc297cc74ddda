// A conversation with the model, as in aurora_lib/chat/session.py: history, sampling, the context window.

import { Cache } from "./mixtral.js";
import { TextStream } from "./tokenizer.js";
import { fault } from "./words.js";

const CHUNK = 32; // tokens of a prompt that are read at a time

export const SETTINGS = {
  // name -> whether a whole number, least, most
  max_new_tokens: [true, 1, 1024],
  temperature: [false, 0, 100],
  top_p: [false, 0.001, 1],
  seed: [true, 0, 2 ** 32 - 1],
};

/** `value`, a number or its text, as the setting takes it; an Error, in a sentence, otherwise. */
export function checked(name, value) {
  const [whole, least, most] = SETTINGS[name],
    made = Number(value);
  if (`${value}`.trim() && least <= made && made <= most && (!whole || Number.isInteger(made))) return made;
  if (whole) throw fault("$1 cannot be '$2': give a whole number from $3 to $4.", name, value, least, most);
  throw fault("$1 cannot be '$2': give a number from $3 to $4.", name, value, least, most);
}

/** Random numbers from 0 to 1, the same ones for the same seed. (Mulberry32; PyTorch's are others.) */
function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The next token: the likeliest at temperature 0, else drawn from the likeliest that make up `topP`. */
export function chooseToken(logits, temperature, topP, draw) {
  let best = 0;
  for (let id = 1; id < logits.length; id++) if (logits[id] > logits[best]) best = id;
  if (temperature === 0) return best;
  const powers = logits.map((logit) => Math.exp((logit - logits[best]) / temperature));
  const order = [...powers.keys()].sort((a, b) => powers[b] - powers[a]);
  const whole = powers.reduce((a, b) => a + b);
  let kept = 0,
    count = 0;
  while (count < order.length && kept < topP * whole) kept += powers[order[count++]];
  let place = draw() * kept,
    id = 0;
  while (id < count - 1 && (place -= powers[order[id]]) > 0) id++;
  return order[id];
}

export class Session {
  /** `tuned`: whether the adapter is on. */
  constructor(model, tokenizer, tuned) {
    Object.assign(this, { model, tokenizer, tuned, system: "" });
    Object.assign(this, { max_new_tokens: 64, temperature: 0, top_p: 1, seed: 0 });
    this.reset();
  }

  reset() {
    this.messages = [];
    this.forgotten = 0;
    this.cache = new Cache(this.model.layers.length);
    this.seen = []; // the tokens whose keys and values are in the cache
    this.draw = random(this.seed);
    this.stats = { prompt: 0, tokens: 0, first: 0, later: 0 };
  }

  get room() {
    return this.model.config.max_position_embeddings - this.max_new_tokens;
  }

  /** The history as ids, without the oldest turns if they do not fit. */
  prompt() {
    const head = this.system ? [{ role: "system", content: this.system }] : [];
    let turns = this.messages.slice(2 * this.forgotten),
      limit = this.room,
      ids;
    for (;;) {
      ids = this.tokenizer.encode(this.tokenizer.chat([...head, ...turns]));
      if (ids.length <= limit || turns.length === 1) break;
      turns = turns.slice(2); // a question and its answer
      limit = Math.floor((this.room * 3) / 4); // a quarter of the room at once: the rest is read anew
    }
    if (ids.length > this.room) {
      throw fault(
        "The message takes $1 tokens, and $2 fit beside an answer of $3. Shorten it.",
        ids.length,
        this.room,
        this.max_new_tokens,
      );
    }
    this.forgotten = (this.messages.length - turns.length) / 2;
    return ids;
  }

  /** Answer `text` piece by piece; who stops early keeps what was said. */
  *stream(text) {
    let began = performance.now(),
      said = "",
      ids;
    this.messages.push({ role: "user", content: text });
    try {
      ids = this.prompt();
    } catch (error) {
      this.messages.pop();
      throw error;
    }
    const answer = new TextStream(this.tokenizer);
    const stats = (this.stats = { prompt: ids.length, tokens: 0, first: 0, later: 0 });
    try {
      for (let i = 0; i < this.max_new_tokens; i++) {
        for (const _ of this.readAllBut(ids, CHUNK)) yield "";
        const id = chooseToken(this.read(ids), this.temperature, this.top_p, this.draw);
        ids.push(id);
        const seconds = (performance.now() - began) / 1000;
        stats.tokens++ ? (stats.later += seconds) : (stats.first = seconds);
        if (id === this.tokenizer.eos) break;
        const piece = answer.add(id);
        said += piece;
        yield piece;
        began = performance.now();
      }
      said += answer.finish();
    } finally {
      this.messages.push({ role: "assistant", content: said.trim() });
    }
  }

  /** The logits after `ids`. What the cache holds is not computed again. */
  read(ids) {
    let shared = 0;
    while (shared < ids.length - 1 && ids[shared] === this.seen[shared]) shared++;
    this.cache.rewind(shared);
    this.seen = [...ids];
    return this.model.forward(ids.slice(shared), this.cache, this.tuned);
  }

  /** A long prompt in pieces, so that somebody may press Stop between them. */
  *readAllBut(ids, count) {
    for (let end = this.cache.length + count; end < ids.length - count; end += count)
      yield this.read(ids.slice(0, end));
  }
}
