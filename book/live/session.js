// A conversation with the model, as in aurora_lib/chat/session.py: history, sampling, the context window.

import { Cache } from "./mixtral.js";
import { TextStream } from "./tokenizer.js";
import { fault } from "./words.js";

const CHUNK = 32; // tokens of a prompt that are read at a time

/** name -> whether a whole number, least, most */
export const SETTINGS = {
  max_new_tokens: [true, 1, 1024],
  temperature: [false, 0, 100],
  top_p: [false, 0.001, 1],
  seed: [true, 0, 2 ** 32 - 1],
};

/** `value`, a number or its text, as the setting allows it; an Error, in a sentence, otherwise. */
export function checked(name, value) {
  const [whole, least, most] = SETTINGS[name];
  const made = Number(value);
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
  const exponentials = logits.map((logit) => Math.exp((logit - logits[best]) / temperature));
  const ranked = [...exponentials.keys()].sort((a, b) => exponentials[b] - exponentials[a]);
  const total = exponentials.reduce((a, b) => a + b);
  let [kept, count] = [0, 0];
  while (count < ranked.length && kept < topP * total) kept += exponentials[ranked[count++]];
  // walk down the list until the amount that was drawn is used up
  let [rest, place] = [draw() * kept - exponentials[best], 0];
  while (rest > 0 && place < count - 1) rest -= exponentials[ranked[++place]];
  return ranked[place];
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

  /** How many tokens a prompt may have. */
  get room() {
    return this.model.config.max_position_embeddings - this.max_new_tokens;
  }

  /** The history as ids, without the oldest turns if they do not fit. */
  prompt() {
    const head = this.system ? [{ role: "system", content: this.system }] : [];
    let turns = this.messages.slice(2 * this.forgotten);
    let [limit, ids] = [this.room, []];
    for (;;) {
      ids = this.tokenizer.encode(this.tokenizer.chat([...head, ...turns]));
      if (ids.length <= limit || turns.length === 1) break;
      turns = turns.slice(2); // a question and its answer
      limit = Math.floor((this.room * 3) / 4); // what is left is read anew, so this is done rarely
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

  /** Answer `text` piece by piece. Where a caller stops early, what was said stays in the history. */
  *stream(text) {
    let [began, said, ids] = [performance.now(), "", []];
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
        for (const _ of this.prefill(ids)) {
          stats.first += (performance.now() - began) / 1000;
          yield "";
          began = performance.now(); // meanwhile the other model has spoken
        }
        const id = chooseToken(this.read(ids), this.temperature, this.top_p, this.draw);
        ids.push(id);
        const seconds = (performance.now() - began) / 1000;
        if (stats.tokens++) stats.later += seconds;
        else stats.first += seconds;
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

  /** How many of `ids`, from the first on, the cache holds; not the last, whose logits are asked for. */
  held(ids) {
    let count = 0;
    while (count < ids.length - 1 && ids[count] === this.seen[count]) count++;
    return count;
  }

  /** The logits after `ids`. What the cache holds is not computed again. */
  read(ids) {
    const held = this.held(ids);
    this.cache.rewind(held);
    this.seen = ids.slice(0, held); // all that is there for sure, should the model fail midway
    const logits = this.model.forward(ids.slice(held), this.cache, this.tuned);
    this.seen = [...ids];
    return logits;
  }

  /** A long prompt is read in pieces, so that somebody may press Stop between them; `read` does the rest. */
  *prefill(ids) {
    for (let end = this.held(ids) + CHUNK; end < ids.length - CHUNK; end += CHUNK) {
      yield this.read(ids.slice(0, end));
    }
  }
}
