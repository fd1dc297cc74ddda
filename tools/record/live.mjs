// Asks the scripts of book/live under Node.js: `node live.mjs FOLDER DATA < request.json`; see live.py.

import { readFileSync } from "node:fs";
import { join } from "node:path";

const [folder, data] = process.argv.slice(2);
const { Mixtral, Cache, readSafetensors } = await import(join(folder, "mixtral.js"));
const { Tokenizer, TextStream } = await import(join(folder, "tokenizer.js"));
const { Session, chooseToken } = await import(join(folder, "session.js"));
const { grid } = await import(join(folder, "routing.js"));

const read = (name) => new Uint8Array(readFileSync(join(data, name))).buffer;
const json = (name) => JSON.parse(readFileSync(join(data, name), "utf8"));
const adapter = "tiny_adapter/adapter_model.safetensors";
const pairs = {
  config: json("tiny_adapter/adapter_config.json"),
  tensors: readSafetensors(read(adapter), adapter),
};
const weights = readSafetensors(read("tiny/model.safetensors"), "model.safetensors");
const model = new Mixtral(json("tiny/config.json"), weights, pairs);
const tokenizer = new Tokenizer(json("tiny/tokenizer.json"));
const both = (answer) => [false, true].map(answer); // base, tuned

const ANSWERS = {
  ids: (text) => tokenizer.encode(text),
  prompt: (messages) => tokenizer.encode(tokenizer.chat(messages)),
  logits: (ids) => both((tuned) => [...model.forward(ids, new Cache(model.layers.length), tuned)]),
  grid: (text) => grid(model, tokenizer, text),
  talk(questions) {
    return both((tuned) => {
      const session = new Session(model, tokenizer, tuned);
      return questions.map((text) => [...session.stream(text)].join(""));
    });
  },
  text(ids) {
    const stream = new TextStream(tokenizer);
    return ids.map((id) => stream.add(id)).join("") + stream.finish();
  },
  drawn({ logits, temperature, topP, draws }) {
    return draws.map((draw) => chooseToken(new Float32Array(logits), temperature, topP, () => draw));
  },
  damaged(bytes) {
    try {
      return new Mixtral(json("tiny/config.json"), readSafetensors(Uint8Array.from(bytes).buffer, "file"));
    } catch (error) {
      return error.message;
    }
  },
};
const [kind, asked] = JSON.parse(readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(asked.map(ANSWERS[kind])));
