// Sentences for the reader: the English text is the key by which a table translates it.

let table = {};

export function use(words) {
  table = words;
}

/** `text` in the reader's language; $1, $2 ... are the values. */
export function say(text, ...values) {
  return (table[text] ?? text).replace(/\$(\d)/g, (_, place) => values[place - 1]);
}

/** An error that says `text` in the reader's language. */
export function fault(text, ...values) {
  return new Error(say(text, ...values));
}
