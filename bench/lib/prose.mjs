/** Text that a search index and a compressor find as hard as real text: words of unequal frequency, in sentences. */

const common =
  "the of and to a in is that it for on with as was be by this are at from or have an not they you which but had were their one all we can has been will would there if more when who no out so what up said its about than them into could time only some these two may then do first any my now such like our over even most me after also did many before must through back years where much your way well down should because each just those how too little state good very make world still own see work long get here between both life being under never day same another know while last might us great old year off come since against go came right used take three".split(
    " ",
  );

const stems =
  "account address agent amount answer appeal archive article assign audit balance bank batch bill board branch budget build button cable cache call cancel carrier carton catalog cell change charge check claim clerk client code column command comment company confirm connect contract copy cost courier credit custom damage data date deal debt default delay deliver deposit design desk detail device digit discount dispatch document draft drawer driver due email engine enter entry error estimate event exchange expire export fail fault fee field file filter fix folder form forward freight garden gift grant group guard guest handle header help holder house image import index inform inquire install insure invoice issue item journal keep label launch ledger letter level licence light limit link list loan local lock logistic machine mail manage manual margin market measure meet member menu merge message meter method minute mirror model module monitor mortgage motor network note notice number object offer office open option order outage outlet owner pack page panel parcel part partner pass patient payment period permit phone photo plan point policy portal post present press price print process product profile project promise proof purchase quality query question queue quote range rate read reason receipt record refund region register reject release remind rent repair replace reply report request reserve reset resolve result retail return review reward route sale sample scan schedule scope screen search season section sector secure select seller send server service session settle share shelf shipment shop signal size sketch slot sort source spare stage stamp standard station stock storage store stream street student submit subscribe summary supply support survey switch table tariff task teach team template tenant term test ticket token tool topic total trace track trade train transfer transit travel treat trial trust unit update upload upgrade user vendor verify vessel view visit voice voucher wage wait warehouse warrant watch weight window wire worker zone".split(
    " ",
  );
const endings = ["", "s", "ed", "ing", "er", "ment", "able", "ation", "less", "ful", "ly"];
const beginnings = ["", "re", "un", "pre", "over", "sub"];
/** The most common first: what comes of one beginning and one ending after the other. */
const vocabulary = [
  ...common,
  ...beginnings.flatMap((beginning) =>
    endings.flatMap((ending) => stems.map((stem) => beginning + stem + ending)),
  ),
];

/** Numbers in [0, 1) that are the same in every run (mulberry32). */
export function lottery(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The n-th of `count` things with a chance of about 1 / (n + 1), as words have it. */
export const zipf = (luck, count) => Math.min(count - 1, Math.floor((count + 1) ** luck) - 1);

/** @returns sentences of at least so many characters */
export function prose(draw, length) {
  const sentences = [];
  for (let size = 0; size < length; ) {
    const words = Array.from(
      { length: 6 + Math.floor(draw() * 14) },
      () => vocabulary[zipf(draw(), vocabulary.length)],
    );
    if (draw() < 0.3) words.splice(3, 0, String(Math.floor(draw() * 100_000)));
    const text = words.join(" ");
    const sentence = `${text[0].toUpperCase()}${text.slice(1)}${draw() < 0.2 ? "?" : "."}`;
    sentences.push(sentence);
    size += sentence.length + 1;
  }
  return sentences.join(" ");
}
