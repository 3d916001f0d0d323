/**
 * For the test of the test, loaded into a server before its own code: has the database synced as seldom as SQLite's
 * NORMAL does, which loses acknowledged commits when the power goes. Worker threads load it too.
 */

import Database from "better-sqlite3";

const { exec } = Database.prototype;
Database.prototype.exec = function (sql) {
  return exec.call(this, sql.replace("PRAGMA synchronous = FULL", "PRAGMA synchronous = NORMAL"));
};
