/**
 * An example of a service that follows Sparkledger's events: which advertiser may run which video, and until when?
 *
 *     KAFKA=localhost:9092 DATABASE_URL=postgresql://localhost/ads node example-service.js
 *
 * It keeps one table. Stop it, kill it, start it twice: the table ends up the same.
 */

import { logLevel } from "kafkajs";
import pg from "pg";
import { Consumer, type Event } from "./sparkledger-consumer.js";

// The lock is for processes that start at the same time: without it, two of them would create the same table.
const TABLES = `
BEGIN;
SELECT pg_advisory_xact_lock(7290131);
CREATE TABLE IF NOT EXISTS codes (code_id text PRIMARY KEY, expires_at timestamptz NOT NULL);
CREATE TABLE IF NOT EXISTS allowed (
    video_id text, advertiser_id text, until timestamptz NOT NULL, code_id text NOT NULL REFERENCES codes,
    PRIMARY KEY (code_id, advertiser_id));
COMMIT;
`;

/** Updates the table by an event; other types are ignored. */
async function handle(client: pg.ClientBase, { type, data, body }: Event): Promise<void> {
  const codeId = data["code_id"];
  switch (type) {
    case "sparkledger.CodeGenerated.v1":
      await client.query("INSERT INTO codes (code_id, expires_at) VALUES ($1, $2)", [codeId, body["expires_at"]]);
      break;
    case "sparkledger.Extended.v1":
      await client.query("UPDATE codes SET expires_at = $2 WHERE code_id = $1", [codeId, body["expires_at"]]);
      await client.query("UPDATE allowed SET until = $2 WHERE code_id = $1", [codeId, body["expires_at"]]);
      break;
    case "sparkledger.Redeemed.v1":
      await client.query(
        `INSERT INTO allowed (video_id, advertiser_id, until, code_id)
         SELECT $2, $3, expires_at, code_id FROM codes WHERE code_id = $1`,
        [codeId, data["video_id"], body["advertiser_id"]],
      );
      break;
    case "sparkledger.Revoked.v1":
      await client.query("DELETE FROM allowed WHERE code_id = $1", [codeId]);
      break;
  }
}

const { DATABASE_URL: database = "", KAFKA: brokers = "", TOPIC: topic = "sparkledger.code-events.v1" } = process.env;
const client = new pg.Client({ connectionString: database });
await client.connect();
await client.query(TABLES);
await client.end();
const kafka = { brokers: brokers.split(","), logLevel: logLevel.WARN };
const consumer = new Consumer({ database, kafka, topic, name: "example", handle });
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => consumer.stop());
await consumer.run();
