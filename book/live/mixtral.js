// Mixtral in plain JavaScript, one token at a time: what notebook 01 shows in PyTorch, for a browser.
//
// A hidden state is a Float32Array. Weights are read from the safetensors file as they lie there. Sums run
// in JavaScript's 64 bits, results are kept in 32: logits differ from PyTorch's in fp32 by rounding only.

import { fault, say } from "./words.js";

/** The tensors of a safetensors file, {name: {shape, values}}: 8 bytes of length, JSON, then numbers. */
export function readSafetensors(buffer, file) {
  const broken = (what) => fault("$1 is damaged or incomplete: $2.", file, what);
  const size = buffer.byteLength < 8 ? Infinity : Number(new DataView(buffer).getBigUint64(0, true));
  if (size > buffer.byteLength - 8) throw broken(say("its head is cut off"));
  let head;
  try {
    head = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, size)));
  } catch {
    throw broken(say("its head cannot be read"));
  }
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: ends }] of Object.entries(head)) {
    if (name === "__metadata__") continue;
    const [start, end] = ends.map((place) => 8 + size + place);
    if (end > buffer.byteLength) throw broken(say("$1 is cut off", name));
    const bytes = { BF16: 2, F32: 4 }[dtype] * shape.reduce((a, b) => a * b, 1);
    if (bytes !== end - start) throw broken(say("$1 has another size or kind than it says", name));
    const raw = buffer.slice(start, end);
    const values = dtype === "F32" ? new Float32Array(raw) : fromBfloat16(new Uint16Array(raw));
    tensors[name] = { shape, values };
  }
  return tensors;
}

/** A bf16 number is the upper half of an fp32 number. */
function fromBfloat16(halves) {
  const words = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) words[i] = halves[i] << 16;
  return new Float32Array(words.buffer);
}

/** W x, for W `[rows, x.length]`; added to `out` with a factor where one is given. */
function multiply(weight, x, out = new Float32Array(weight.shape[0]), factor = 1) {
  const { values } = weight;
  const [width, last] = [x.length, out.length - 1];
  for (let row = 0; row <= last; row += 4) {
    // four rows at a time read x once; behind the last row, what is computed again has no place in `out`
    const second = Math.min(row + 1, last) * width;
    const third = Math.min(row + 2, last) * width;
    const fourth = Math.min(row + 3, last) * width;
    let [a, b, c, d] = [0, 0, 0, 0];
    for (let i = 0, first = row * width; i < width; i++) {
      const value = x[i];
      a += values[first + i] * value;
      b += values[second + i] * value;
      c += values[third + i] * value;
      d += values[fourth + i] * value;
    }
    out[row] += factor * a;
    out[row + 1] += factor * b;
    out[row + 2] += factor * c;
    out[row + 3] += factor * d;
  }
  return out;
}

/** x / sqrt(mean(x²) + eps) · weight */
function rmsNorm(x, weight, eps) {
  let squares = 0;
  for (const value of x) squares += value * value;
  const scale = 1 / Math.sqrt(squares / x.length + eps);
  return x.map((value, i) => value * scale * weight.values[i]);
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b)); // taken off, so that no power overflows
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const silu = (x) => x / (1 + Math.exp(-x));

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** Keys and values of the tokens read so far, an array a layer; a full one gives way to a longer one. */
export class Cache {
  constructor(layers) {
    this.length = 0;
    this.layers = Array.from({ length: layers }, () => ({
      keys: new Float32Array(0),
      values: new Float32Array(0),
    }));
  }

  /** Forget all but the first tokens: what stands behind them is written over. */
  rewind(length) {
    this.length = Math.min(length, this.length);
  }

  store(layer, key, value) {
    const kept = this.layers[layer],
      at = this.length * key.length;
    for (const [name, row] of [
      ["keys", key],
      ["values", value],
    ]) {
      if (at + row.length > kept[name].length) {
        const larger = new Float32Array(2 * (at + row.length));
        larger.set(kept[name]);
        kept[name] = larger;
      }
      kept[name].set(row, at);
    }
    return kept;
  }
}

export class Mixtral {
  /** `config`: of the model, as in config.json. `adapter`: {config, tensors} of a LoRA by PEFT, or none. */
  constructor(config, tensors, adapter) {
    this.config = config;
    this.tensors = tensors;
    this.heads = config.num_attention_heads;
    this.headSize = config.head_dim ?? config.hidden_size / this.heads;
    this.embeddings = this.tensor("model.embed_tokens", config.vocab_size, config.hidden_size);
    this.norm = this.tensor("model.norm", config.hidden_size);
    this.head = this.tensor("lm_head", config.vocab_size, config.hidden_size);
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) =>
      this.layer(`model.layers.${i}.`),
    );
    // half of a head turns with the other half; the first pairs turn fast, the last ones slowly
    const theta = config.rope_parameters.rope_theta;
    const speeds = Array.from({ length: this.headSize / 2 }, (_, i) => theta ** ((-2 * i) / this.headSize));
    this.speeds = new Float32Array(speeds);
    if (adapter) this.adapt(adapter);
  }

  tensor(name, ...shape) {
    const found = this.tensors[`${name}.weight`];
    if (!found) throw fault("The weights have no $1: the file is another model's.", name);
    if (`${found.shape}` !== `${shape}`)
      throw fault("$1 is $2, and config.json wants $3.", name, found.shape, shape);
    return found;
  }

  layer(name) {
    const { hidden_size: width, intermediate_size: inner, num_local_experts: experts } = this.config;
    const own = this.config.num_key_value_heads * this.headSize,
      all = this.heads * this.headSize;
    const expert = (_, i) => ({
      gate: this.tensor(`${name}block_sparse_moe.experts.${i}.w1`, inner, width),
      up: this.tensor(`${name}block_sparse_moe.experts.${i}.w3`, inner, width),
      down: this.tensor(`${name}block_sparse_moe.experts.${i}.w2`, width, inner),
    });
    return {
      attentionNorm: this.tensor(`${name}input_layernorm`, width),
      q_proj: this.tensor(`${name}self_attn.q_proj`, all, width),
      k_proj: this.tensor(`${name}self_attn.k_proj`, own, width),
      v_proj: this.tensor(`${name}self_attn.v_proj`, own, width),
      o_proj: this.tensor(`${name}self_attn.o_proj`, width, all),
      expertNorm: this.tensor(`${name}post_attention_layernorm`, width),
      router: this.tensor(`${name}block_sparse_moe.gate`, experts, width),
      experts: Array.from({ length: experts }, expert),
    };
  }

  /** Hang LoRA's pairs of small matrices on the projections of attention that they belong to. */
  adapt({ config, tensors }) {
    for (const [name, tensor] of Object.entries(tensors)) {
      const [, layer, projection, which] =
        name.match(/layers\.(\d+)\.self_attn\.(\w+)\.lora_([AB])\.weight$/) ?? [];
      const base = this.layers[layer]?.[projection];
      if (!base) throw fault("The adapter changes $1, and only attention can be adapted here.", name);
      base.lora ??= { factor: config.lora_alpha / config.r };
      base.lora[which] = tensor;
    }
  }

  /** W x, and with the adapter on also (alpha / r) B A x. */
  project(weight, x, tuned) {
    const out = multiply(weight, x),
      { lora } = weight;
    return tuned && lora ? multiply(lora.B, multiply(lora.A, x), out, lora.factor) : out;
  }

  /**
   * Read `ids` behind what `cache` holds. Gives the logits of the token that follows.
   * `tuned`: whether the adapter is on. `trace(layer, experts, weights)` hears each choice of a router.
   */
  forward(ids, cache, tuned, trace) {
    let hidden;
    for (const id of ids) {
      const width = this.config.hidden_size;
      hidden = this.embeddings.values.slice(id * width, (id + 1) * width);
      this.layers.forEach((layer, i) => {
        const { rms_norm_eps: eps } = this.config;
        add(hidden, this.attention(layer, rmsNorm(hidden, layer.attentionNorm, eps), cache, i, tuned));
        add(hidden, this.mixture(layer, rmsNorm(hidden, layer.expertNorm, eps), i, trace));
      });
      cache.length++;
    }
    const logits = multiply(this.head, rmsNorm(hidden, this.norm, this.config.rms_norm_eps));
    if (!Number.isFinite(logits[0]))
      throw fault("The weights are damaged: what the model computes is no number.");
    return logits;
  }

  /** Grouped-query attention: several heads of queries share a head of keys and values. */
  attention(layer, x, cache, number, tuned) {
    const queries = this.rotate(this.project(layer.q_proj, x, tuned), cache.length);
    const key = this.rotate(this.project(layer.k_proj, x, tuned), cache.length);
    const { keys, values } = cache.store(number, key, this.project(layer.v_proj, x, tuned));
    const size = this.headSize,
      group = this.heads / this.config.num_key_value_heads;
    const out = new Float32Array(queries.length);
    for (let head = 0; head < this.heads; head++) {
      const first = Math.floor(head / group) * size,
        query = head * size;
      const scores = new Float32Array(cache.length + 1);
      for (let token = 0; token < scores.length; token++) {
        let sum = 0;
        for (let i = 0, at = token * key.length + first; i < size; i++)
          sum += queries[query + i] * keys[at + i];
        scores[token] = sum / Math.sqrt(size);
      }
      softmax(scores).forEach((share, token) => {
        for (let i = 0, at = token * key.length + first; i < size; i++)
          out[query + i] += share * values[at + i];
      });
    }
    return this.project(layer.o_proj, out, tuned);
  }

  /** Rotary positions: turn each pair of numbers of each head by position x speed. */
  rotate(x, position) {
    const half = this.headSize / 2;
    this.speeds.forEach((speed, i) => {
      const angle = Math.fround(position * speed),
        cos = Math.cos(angle),
        sin = Math.sin(angle);
      for (let at = i; at < x.length; at += this.headSize) {
        const a = x[at],
          b = x[at + half];
        x[at] = a * cos - b * sin;
        x[at + half] = b * cos + a * sin;
      }
    });
    return x;
  }

  /** The router picks the strongest experts, and their answers are mixed with weights that sum to 1. */
  mixture(layer, x, number, trace) {
    const shares = softmax(multiply(layer.router, x));
    const order = [...shares.keys()].sort((a, b) => shares[b] - shares[a]);
    const experts = order.slice(0, this.config.num_experts_per_tok);
    const sum = experts.reduce((total, expert) => total + shares[expert], 0);
    const weights = experts.map((expert) => shares[expert] / sum);
    trace?.(number, experts, weights);
    const out = new Float32Array(x.length);
    experts.forEach((chosen, slot) => {
      const { gate, up, down } = layer.experts[chosen];
      const lifted = multiply(up, x);
      const inner = multiply(gate, x).map((value, i) => silu(value) * lifted[i]);
      multiply(down, inner, out, weights[slot]);
    });
    return out;
  }
}
