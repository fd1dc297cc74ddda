// Runs beside the page, so that the page stays usable: fetches the model, and is the kernel of its widget.
//
// The page sends {open, base, ...} once, then what a widget's front sends to a kernel. It gets
// {loaded: bytes}, {ready} or {failed: why}, and from then on {change: {name: value}} and {message}.

import { Cache, Mixtral, readSafetensors } from "./mixtral.js";
import { Tokenizer } from "./tokenizer.js";
import { Box, Explorer } from "./widgets.js";
import { fault, say, use } from "./words.js";

const WIDGETS = { chat: Box, question: Box, explorer: Explorer };
let widget;
let loaded = 0;

onmessage = async ({ data }) => {
  if (widget) return widget.hear(data);
  use(data.words);
  try {
    const [model, tokenizer] = await open(data.base);
    widget = new WIDGETS[data.open](model, tokenizer, data);
    postMessage({ ready: true });
  } catch (error) {
    postMessage({ failed: error.message });
  }
};

async function open(base) {
  const texts = ["tiny/tokenizer.json", "tiny/config.json", "tiny_adapter/adapter_config.json"];
  const weights = ["tiny/model.safetensors", "tiny_adapter/adapter_model.safetensors"];
  const files = await Promise.all([...texts, ...weights].map((file) => fetched(base, file)));
  const [tokenizer, config, lora] = files.slice(0, 3).map((bytes, i) => parsed(bytes, texts[i]));
  const [tensors, pairs] = files.slice(3).map((bytes, i) => readSafetensors(bytes, weights[i]));
  const model = new Mixtral(config, tensors, { config: lora, tensors: pairs });
  // a browser compiles what runs often: let it do so before somebody waits for an answer
  const ids = [...Array(24).keys()];
  for (const tuned of [false, true]) model.forward(ids, new Cache(model.layers.length), tuned);
  return [model, new Tokenizer(tokenizer)];
}

async function fetched(base, file) {
  const answer = await fetch(new URL(file, base)).catch(() => {
    throw fault("$1 cannot be reached.", file);
  });
  if (!answer.ok) throw fault("$1 is missing: the server answers $2.", file, answer.status);
  const [parts, reader] = [[], answer.body.getReader()];
  for (let part; !(part = await reader.read()).done; parts.push(part.value)) {
    postMessage({ loaded: (loaded += part.value.length) });
  }
  return new Blob(parts).arrayBuffer();
}

function parsed(bytes, file) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw fault("$1 is damaged or incomplete: $2.", file, say("it is no JSON"));
  }
}
