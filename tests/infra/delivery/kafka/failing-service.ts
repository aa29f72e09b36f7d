/** A service of tests: it writes down what it handles, and fails for the sequences of FAIL while the table says so. */

import { logLevel } from "kafkajs";
import pg from "pg";
import { Consumer } from "./sparkledger-consumer.js";

const { DATABASE_URL: database = "", KAFKA: brokers = "", TOPIC: topic = "", FAIL: fail = "" } = process.env;
const client = new pg.Client({ connectionString: database });
await client.connect();
await client.query("CREATE TABLE IF NOT EXISTS handled (n serial, subject text, sequence bigint)");
await client.end();
const failing = new Set(fail.split(",").filter(Boolean).map(BigInt));
const consumer = new Consumer({
  database,
  kafka: { brokers: brokers.split(","), logLevel: logLevel.ERROR },
  topic,
  name: "ours",
  attempts: 3,
  pauseMs: 200,
  handle: async (within, event) => {
    await within.query("INSERT INTO handled (subject, sequence) VALUES ($1, $2)", [event.subject, event.sequence.toString()]);
    if (failing.has(event.sequence)) throw new Error("no such advertiser");
  },
});
process.on("SIGTERM", () => consumer.stop());
await consumer.run();
