/**
 * Words as the index knows them. Case is SQLite's to fold (`unicode61`); the rest is done here, alike for texts and for
 * what somebody looks for, so that both meet.
 */

import { AppError } from "../../core/errors.ts";

const notPlain = /[^ -~\s]/;
const accents = /[\u0300-\u036f]/g;
/**
 * Scripts that put no space between words. Each of their letters is a word to the index, and a run of them a phrase: so
 * whatever stands in a text is found in it, which no guess at where words end could promise.
 */
const unspaced =
  /[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]\p{M}*/gu;
const wordEnd = /([\p{L}\p{N}\p{M}\p{Co}]+)[^\p{L}\p{N}\p{M}\p{Co}]*$/u;
const hasWord = /[\p{L}\p{N}\p{M}\p{Co}\p{Extended_Pictographic}]/u;

/** Longer ones are pasted by mistake, and slow. Characters. */
const queryMax = 1000;
/** A shorter beginning stands for a good part of all words. Characters. */
const prefixMin = 3;

/** A text without accents and other variants of its letters, and with its words apart. */
export function folded(text: string): string {
  if (!notPlain.test(text)) return text;
  const plain = text.replaceAll("\0", " ").normalize("NFKD").replace(accents, "").normalize("NFC");
  return plain.replace(unspaced, " $& ");
}

/** The word that keeps a project's texts apart. */
export const projectWord = (project: string): string => `p${Buffer.from(project).toString("hex")}`;

/**
 * What the index is asked where somebody has typed this: words, "phrases" and, with a star behind them, beginnings of
 * words; all have to be there. @throws AppError `invalid_parameter` where it says nothing that could be looked for
 */
export function expressionOf(project: string, text: string): string {
  if (text.length > queryMax) throw refusal(`may have ${queryMax} characters at most`);
  const terms = [...text.matchAll(/"([^"]*)"?(\*?)|([^\s"]+)/g)].flatMap(([, phrase, star, word = ""]) => {
    const isPrefix = star === "*" || word.endsWith("*");
    return termOf(folded(phrase ?? word), isPrefix);
  });
  if (terms.length === 0) throw refusal('has to have a word to look for, or a "phrase"');
  return `project : "${projectWord(project)}" AND {prompt answer} : (${terms.join(" ")})`;
}

function termOf(text: string, isPrefix: boolean): string[] {
  if (!hasWord.test(text)) return [];
  const last = wordEnd.exec(text)?.[1] ?? "";
  const term = `"${text.replaceAll('"', " ")}"`;
  if (!isPrefix || last.search(unspaced) >= 0) return [term];
  if (last.length < prefixMin) throw refusal(`needs ${prefixMin} characters at least before a star`);
  return [`${term} *`];
}

const refusal = (rule: string): AppError =>
  new AppError("invalid_parameter", `\`q\` ${rule}.`, { param: "q" });
