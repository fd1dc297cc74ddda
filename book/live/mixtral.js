// Mixtral in plain JavaScript, one token at a time. `moe` is notebook 01's, LoRA notebook 03's, the cache of
// keys and values notebook 06's; norms, rotary positions and attention are as in transformers.
//
// A vector is a Float32Array; a matrix [rows, columns] lies row after row in one, as in the safetensors file.
// Sums run in JavaScript's 64 bits, results are kept in 32: logits are PyTorch's in fp32 but for rounding.

import { fault, say } from "./words.js";

/**
 * The tensors of a safetensors file, {name: {shape, values}}. The file: 8 bytes with the length of the
 * header, the header (JSON: dtype, shape and place of each tensor), then the numbers.
 */
export function readSafetensors(buffer, file) {
  const broken = (what) => fault("$1 is damaged or incomplete: $2.", file, what);
  const size = buffer.byteLength < 8 ? Infinity : Number(new DataView(buffer).getBigUint64(0, true));
  if (size > buffer.byteLength - 8) throw broken(say("its header is cut off"));
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, size)));
  } catch {
    throw broken(say("its header cannot be read"));
  }
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: ends }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [start, end] = ends.map((place) => 8 + size + place);
    if (end > buffer.byteLength) throw broken(say("$1 is cut off", name));
    const bytes = { BF16: 2, F32: 4 }[dtype] * shape.reduce((a, b) => a * b, 1); // NaN for another dtype
    if (bytes !== end - start) throw broken(say("the size of $1 does not fit its shape and dtype", name));
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

/** PyTorch's x @ W.T: W [rows, columns], x [columns] -> [rows]; or out += factor * (x @ W.T). */
function multiply(weight, x, out = new Float32Array(weight.shape[0]), factor = 1) {
  const { values } = weight;
  const [width, last] = [x.length, out.length - 1];
  for (let row = 0; row <= last; row += 4) {
    // Four rows at once, so that x is read once for all four. Where fewer are left, the last row is computed
    // again, and the result is lost: writing past the end of a Float32Array does nothing.
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
  const largest = logits.reduce((a, b) => Math.max(a, b)); // subtracted: exp of a large number is Infinity
  const exponentials = logits.map((logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

const silu = (x) => x / (1 + Math.exp(-x));

/** x += y */
function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/**
 * Of each layer the keys and values of the tokens read so far, [tokens, key heads * headSize], row after row.
 * A full array is replaced by one that is twice as long.
 */
export class Cache {
  constructor(layers) {
    this.length = 0;
    this.layers = Array.from({ length: layers }, () => ({
      keys: new Float32Array(0),
      values: new Float32Array(0),
    }));
  }

  /** Keep the first `length` tokens only. The others stay in the arrays until new ones overwrite them. */
  rewind(length) {
    this.length = Math.min(length, this.length);
  }

  /** Keep key and value of the token that is being read; `length` grows when all layers have done so. */
  store(layer, key, value) {
    const kept = this.layers[layer];
    const at = this.length * key.length;
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
    this.lmHead = this.tensor("lm_head", config.vocab_size, config.hidden_size);
    this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) =>
      this.layer(`model.layers.${i}.`),
    );
    // transformers' inv_freq: the first pairs of a head turn fast, the last ones slowly
    const theta = config.rope_parameters.rope_theta;
    const speeds = Array.from({ length: this.headSize / 2 }, (_, i) => theta ** ((-2 * i) / this.headSize));
    this.speeds = new Float32Array(speeds);
    if (adapter) this.adapt(adapter);
  }

  tensor(name, ...shape) {
    const found = this.tensors[`${name}.weight`];
    if (!found) throw fault("The weights have no $1: the file is another model's.", name);
    if (`${found.shape}` !== `${shape}`) {
      throw fault("$1 is $2, and config.json wants $3.", name, found.shape, shape);
    }
    return found;
  }

  /** The weights of one layer, each checked against its shape [out, in]. */
  layer(name) {
    const { hidden_size: hidden, intermediate_size: inner, num_local_experts: experts } = this.config;
    const queries = this.heads * this.headSize;
    const keys = this.config.num_key_value_heads * this.headSize;
    // in the file w1 and w3 are the halves of notebook 01's gate_up, and w2 is its down
    const expert = (_, i) => ({
      gate: this.tensor(`${name}block_sparse_moe.experts.${i}.w1`, inner, hidden),
      up: this.tensor(`${name}block_sparse_moe.experts.${i}.w3`, inner, hidden),
      down: this.tensor(`${name}block_sparse_moe.experts.${i}.w2`, hidden, inner),
    });
    return {
      attentionNorm: this.tensor(`${name}input_layernorm`, hidden),
      q_proj: this.tensor(`${name}self_attn.q_proj`, queries, hidden),
      k_proj: this.tensor(`${name}self_attn.k_proj`, keys, hidden),
      v_proj: this.tensor(`${name}self_attn.v_proj`, keys, hidden),
      o_proj: this.tensor(`${name}self_attn.o_proj`, hidden, queries),
      expertNorm: this.tensor(`${name}post_attention_layernorm`, hidden),
      router: this.tensor(`${name}block_sparse_moe.gate`, experts, hidden),
      experts: Array.from({ length: experts }, expert),
    };
  }

  /** Give each projection that the adapter changes its pair: A [r, in] and B [out, r]. */
  adapt({ config, tensors }) {
    for (const [name, tensor] of Object.entries(tensors)) {
      const parts = name.match(/layers\.(\d+)\.self_attn\.([qkvo]_proj)\.lora_([AB])\.weight$/) ?? [];
      const [, layer, projection, which] = parts;
      const base = this.layers[layer]?.[projection];
      if (!base) throw fault("The adapter changes $1, but this page can adapt attention only.", name);
      base.lora ??= { factor: config.lora_alpha / config.r };
      base.lora[which] = tensor;
    }
  }

  /** x @ W.T, and if `tuned` notebook 03's detour: + (alpha / r) x @ A.T @ B.T */
  project(weight, x, tuned) {
    const out = multiply(weight, x);
    const { lora } = weight;
    return tuned && lora ? multiply(lora.B, multiply(lora.A, x), out, lora.factor) : out;
  }

  /**
   * Read the token ids `ids`, which follow those in `cache`. Returns the logits after the last, [vocabulary].
   * `tuned`: with the adapter. `trace(layer, chosen, weights)` is called for each token in each layer.
   */
  forward(ids, cache, tuned, trace) {
    const { hidden_size: width, rms_norm_eps: eps } = this.config;
    let hidden;
    for (const id of ids) {
      hidden = this.embeddings.values.slice(id * width, (id + 1) * width);
      this.layers.forEach((layer, index) => {
        // the residual stream: each part adds what it computes
        add(hidden, this.attention(layer, rmsNorm(hidden, layer.attentionNorm, eps), cache, index, tuned));
        add(hidden, this.moe(layer, rmsNorm(hidden, layer.expertNorm, eps), index, trace));
      });
      cache.length++;
    }
    const logits = multiply(this.lmHead, rmsNorm(hidden, this.norm, eps));
    if (!logits.every(Number.isFinite)) {
      throw fault("The weights are damaged: what the model computes is no number.");
    }
    return logits;
  }

  /**
   * Grouped-query attention of one token to itself and to all in the cache, x [hidden] -> [hidden]: several
   * query heads share one head of keys and values. It needs no mask, since later tokens are not there yet.
   */
  attention(layer, x, cache, index, tuned) {
    const queries = this.rotate(this.project(layer.q_proj, x, tuned), cache.length);
    const key = this.rotate(this.project(layer.k_proj, x, tuned), cache.length);
    const { keys, values } = cache.store(index, key, this.project(layer.v_proj, x, tuned));
    const size = this.headSize;
    const group = this.heads / this.config.num_key_value_heads;
    const out = new Float32Array(queries.length);
    for (let head = 0; head < this.heads; head++) {
      const queryAt = head * size;
      const keyAt = Math.floor(head / group) * size;
      const scores = new Float32Array(cache.length + 1);
      for (let token = 0; token < scores.length; token++) {
        let sum = 0;
        const at = token * key.length + keyAt;
        for (let i = 0; i < size; i++) sum += queries[queryAt + i] * keys[at + i];
        scores[token] = sum / Math.sqrt(size);
      }
      softmax(scores).forEach((weight, token) => {
        const at = token * key.length + keyAt;
        for (let i = 0; i < size; i++) out[queryAt + i] += weight * values[at + i];
      });
    }
    return this.project(layer.o_proj, out, tuned);
  }

  /** Rotary positions, in place: x [heads * headSize]. Each pair of numbers is turned by position * speed. */
  rotate(x, position) {
    const half = this.headSize / 2;
    this.speeds.forEach((speed, i) => {
      const angle = Math.fround(position * speed); // PyTorch keeps the angle in 32 bits
      const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (let at = i; at < x.length; at += this.headSize) {
        const [a, b] = [x[at], x[at + half]];
        x[at] = a * cos - b * sin;
        x[at + half] = b * cos + a * sin;
      }
    });
    return x;
  }

  /** Notebook 01's `moe`, of one token: x [hidden] -> [hidden]. `index`: of the layer. */
  moe(layer, x, index, trace) {
    const probabilities = softmax(multiply(layer.router, x));
    const ranked = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
    const chosen = ranked.slice(0, this.config.num_experts_per_tok);
    const sum = chosen.reduce((total, expert) => total + probabilities[expert], 0);
    const weights = chosen.map((expert) => probabilities[expert] / sum);
    trace?.(index, chosen, weights);
    const out = new Float32Array(x.length);
    chosen.forEach((expert, slot) => {
      const { gate, up, down } = layer.experts[expert];
      const upped = multiply(up, x);
      const gated = multiply(gate, x).map((value, i) => silu(value) * upped[i]);
      multiply(down, gated, out, weights[slot]); // out += weight * down(...)
    });
    return out;
  }
}
