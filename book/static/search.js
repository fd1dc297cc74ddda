// Chinese has no spaces: cut a query into the words that the index knows, longest first.
var splitQuery = (query) =>
  query
    .split(/[^\p{Letter}\p{Number}_]+/gu)
    .flatMap((part) => part.match(/\p{Script=Han}+|\P{Script=Han}+/gu) || [])
    .flatMap((part) => (/\p{Script=Han}/u.test(part) ? knownWords(part) : [part]));

function knownWords(text) {
  const known = (word) => word in Search._index.terms || word in Search._index.titleterms;
  const words = [];
  for (let from = 0, to; from < text.length; from = to) {
    for (to = text.length; to > from + 1 && !known(text.slice(from, to)); to--);
    if (known(text.slice(from, to))) words.push(text.slice(from, to));
  }
  return words.length ? words : [text];
}

// a page opened as a file may not read its neighbours, which the summaries of the results would need
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
