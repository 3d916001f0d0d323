/** No text search, as where it is turned off. */

import type { SearchIndex } from "../../src/core/ledger/ports.ts";

export const noSearch: SearchIndex = {
  isOn: false,
  find: async () => {
    throw new Error("Text search is off.");
  },
  forget: async () => {},
  behind: async () => 0,
};
