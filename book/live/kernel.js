// Fetches the model, and is the kernel of its widget: runs in a worker, so that the page stays usable.
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

/** `data`: what the page sent. */
export async function hear(data) {
  if (widget) return widget.hear(data);
  use(data.words);
  try {
    const [model, tokenizer] = await open(data.base);
    widget = new WIDGETS[data.open](model, tokenizer, data);
    postMessage({ ready: true });
  } catch (error) {
    postMessage({ failed: error.message });
  }
}

async function open(base) {
  const texts = ["tiny/tokenizer.json", "tiny/config.json", "tiny_adapter/adapter_config.json"];
  const weights = ["tiny/model.safetensors", "tiny_adapter/adapter_model.safetensors"];
  const files = await Promise.all([...texts, ...weights].map((file) => fetched(base, file)));
  const [tokenizer, config, adapterConfig] = files.slice(0, 3).map((bytes, i) => parsed(bytes, texts[i]));
  const [tensors, adapterTensors] = files.slice(3).map((bytes, i) => readSafetensors(bytes, weights[i]));
  const model = new Mixtral(config, tensors, { config: adapterConfig, tensors: adapterTensors });
  // a browser compiles what runs often: let it do so before somebody waits for an answer
  const ids = [...Array(24).keys()];
  for (const tuned of [false, true]) model.forward(ids, new Cache(model.layers.length), tuned);
  return [model, new Tokenizer(tokenizer)];
}

async function fetched(base, file) {
  const lost = () => {
    throw fault("$1 cannot be reached.", file);
  };
  // no-cache: the server is asked whether a kept file still holds, so that a mended one replaces a broken one
  const answer = await fetch(new URL(file, base), { cache: "no-cache" }).catch(lost);
  if (!answer.ok) throw fault("$1 is missing: the server answers $2.", file, answer.status);
  const [parts, reader] = [[], answer.body.getReader()];
  for (let part; !(part = await reader.read().catch(lost)).done; parts.push(part.value)) {
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
