/**
 * A consumer of Sparkledger's events: it reads them from Kafka into your own PostgreSQL, each exactly once.
 *
 * Copy this file. It needs kafkajs 2 and pg 8.
 *
 *     const consumer = new Consumer({
 *       database: "postgresql://…", kafka: { brokers: ["broker:9092"] }, topic: "sparkledger.code-events.v1",
 *       name: "billing",
 *       handle: async (client, event) => { await client.query("INSERT INTO …", [event.subject]); },
 *     });
 *     await consumer.run();
 *
 * One transaction of your database contains what `handle` writes with its client, and that the event is done. Kafka's
 * offset is committed after it. After a crash some events come again, and are skipped. You may start as many processes
 * with the same name as the topic has partitions.
 *
 *     skipped        an event that is done already: the same `id` and the same version of its subject
 *     retried        an event for which `handle` throws, after 1 s, 2 s, 4 s …; its partition waits, the others go on.
 *                    A database that is unavailable does not count as an attempt
 *     dead-lettered  an event that has failed `attempts` times, and a record that is not an event: they are stored in
 *                    `sparkledger_dead_letters`, with the reason
 *     Gap            `run` rejects where an event of a subject is missing: going on would hide it
 *     Forked         `run` rejects where a version or a position that is done has another event now, or where the ledger
 *                    goes on as another history: it was restored to an earlier state and continued from there
 */

import { Kafka, type Consumer as KafkaConsumer, type EachBatchPayload, type KafkaConfig, type KafkaMessage } from "kafkajs";
import pg from "pg";

// The tables are those of the consumer in Python, which also explains them.
const SCHEMA = `
SELECT pg_advisory_xact_lock(7290130);
CREATE TABLE IF NOT EXISTS sparkledger_events (
    consumer text, source text, subject text, version int, id text NOT NULL, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, source, subject, version));
ALTER TABLE sparkledger_events ADD COLUMN IF NOT EXISTS sequence bigint;
CREATE UNIQUE INDEX IF NOT EXISTS sparkledger_events_sequence ON sparkledger_events (consumer, source, sequence);
CREATE TABLE IF NOT EXISTS sparkledger_histories (
    consumer text, source text, history text, PRIMARY KEY (consumer, source, history));
CREATE TABLE IF NOT EXISTS sparkledger_streams (
    consumer text, source text, subject text, version int NOT NULL, last_id text NOT NULL,
    PRIMARY KEY (consumer, source, subject));
CREATE TABLE IF NOT EXISTS sparkledger_dead_letters (
    consumer text, source text, id text, headers jsonb NOT NULL, data jsonb NOT NULL, reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (consumer, source, id));
`;

const LONGEST_PAUSE_MS = 60_000;
const REASON_CHARACTERS_MAX = 1_000;
const PARTITIONS_AT_ONCE = 12;

/** One event. `attributes` are its CloudEvents attributes; `data` is the event as the trail has it, with its `body`. */
export interface Event {
  id: string;
  source: string;
  type: string;
  subject: string;
  sequence: bigint;
  streamVersion: number;
  attributes: Readonly<Record<string, string>>;
  data: Readonly<Record<string, unknown>>;
  body: Readonly<Record<string, unknown>>;
}

/** Processes one event. It must write only with the client that it gets. */
export type Handle = (client: pg.ClientBase, event: Event) => Promise<void>;

export interface Options {
  /** The connection string of your PostgreSQL. */
  database: string;
  /** The brokers, and how to log in to them. */
  kafka: KafkaConfig;
  /** The topic of events. */
  topic: string;
  /** The name of this consumer, in Kafka and in your tables. */
  name: string;
  handle: Handle;
  /** How often an event is tried before it becomes a dead letter. */
  attempts?: number;
  /** Milliseconds before the second attempt, doubled before each further one. */
  pauseMs?: number;
}

export class Gap extends Error {
  override name = "Gap";
}

export class Forked extends Error {
  override name = "Forked";
}

export class Consumer {
  readonly #options: Required<Options>;
  readonly #pool: pg.Pool;
  readonly #consumer: KafkaConsumer;
  readonly #attempts = new Map<string, number>();
  readonly #timers = new Set<NodeJS.Timeout>();
  #end: (failure?: Error) => void = () => undefined;
  readonly #ended: Promise<void>;

  constructor(options: Options) {
    this.#options = { attempts: 5, pauseMs: 1_000, ...options };
    this.#pool = new pg.Pool({ connectionString: options.database, max: PARTITIONS_AT_ONCE });
    // An idle connection that is lost is replaced when it is needed.
    this.#pool.on("error", (error) => console.warn(`${options.name}: ${error.message}`));
    this.#consumer = new Kafka(options.kafka).consumer({
      groupId: options.name,
      // The partitions of a killed process go to others after this time.
      sessionTimeout: 10_000,
      allowAutoTopicCreation: false,
      readUncommitted: false,
    });
    this.#ended = new Promise((resolve, reject) => {
      this.#end = (failure) => (failure === undefined ? resolve() : reject(failure));
    });
  }

  /** Reads until `stop` is called. Rejects with `Gap` or `Forked`. */
  async run(): Promise<void> {
    const { name, topic } = this.#options;
    try {
      await this.#transaction((client) => client.query(SCHEMA));
      await this.#consumer.connect();
      await this.#consumer.subscribe({ topics: [topic], fromBeginning: true });
      this.#consumer.on(this.#consumer.events.CRASH, ({ payload }) => {
        if (!payload.restart) this.#end(payload.error);
      });
      await this.#consumer.run({
        autoCommit: false,
        eachBatchAutoResolve: false,
        partitionsConsumedConcurrently: PARTITIONS_AT_ONCE,
        eachBatch: (batch) => this.#batch(batch),
      });
      await this.#ended;
    } finally {
      for (const timer of this.#timers) clearTimeout(timer);
      await this.#consumer.disconnect().catch((error: Error) => console.warn(`${name}: ${error.message}`));
      await this.#pool.end();
    }
  }

  /** Ends `run` after the current events. */
  stop(): void {
    this.#end();
  }

  /** Reads on in another history of a ledger, now that your tables follow it. */
  async acceptHistory(source: string, history: string): Promise<void> {
    await this.#transaction((client) =>
      client.query("INSERT INTO sparkledger_histories VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", [
        this.#options.name,
        source,
        history,
      ]),
    );
  }

  async #batch({ batch, resolveOffset, heartbeat, isRunning, isStale, pause }: EachBatchPayload): Promise<void> {
    for (const message of batch.messages) {
      if (!isRunning() || isStale()) return;
      const waitMs = await this.#tried(batch.partition, message);
      if (waitMs !== undefined) {
        // Nothing of this partition is resolved from here on: it begins with this message when it goes on.
        const resume = pause();
        const timer = setTimeout(() => {
          this.#timers.delete(timer);
          resume();
        }, waitMs);
        this.#timers.add(timer);
        return;
      }
      resolveOffset(message.offset);
      await this.#consumer.commitOffsets([
        { topic: batch.topic, partition: batch.partition, offset: (BigInt(message.offset) + 1n).toString() },
      ]);
      await heartbeat();
    }
  }

  /** Tries an event; returns the milliseconds to wait before it is to be tried again, or nothing if it is done. */
  async #tried(partition: number, message: KafkaMessage): Promise<number | undefined> {
    const place = `${partition}/${message.offset}`;
    const { attempts, handle, name, pauseMs } = this.#options;
    let event: Event;
    try {
      event = eventOf(message);
    } catch (error) {
      return await this.#deadLetter(this.#options.topic, place, textOf(message), String(message.value), error);
    }
    try {
      await this.#transaction(async (client) => {
        if (await this.#isNew(client, event)) await handle(client, event);
      });
    } catch (error) {
      if (error instanceof Gap || error instanceof Forked) {
        this.#end(error);
        return LONGEST_PAUSE_MS;
      }
      if (error instanceof Unavailable) {
        console.warn(`${name} waits for the database: ${error.message}`);
        return pauseMs;
      }
      const attempt = (this.#attempts.get(place) ?? 0) + 1;
      if (attempt < attempts) {
        this.#attempts.set(place, attempt);
        const waitMs = Math.min(pauseMs * 2 ** (attempt - 1), LONGEST_PAUSE_MS);
        console.warn(`${name} retries an event in ${waitMs} ms: ${reasonOf(error)}`);
        return waitMs;
      }
      const waitMs = await this.#deadLetter(event.source, event.id, textOf(message), event.data, error, event);
      if (waitMs !== undefined) return waitMs;
    }
    this.#attempts.delete(place);
    return undefined;
  }

  /** Stores what cannot be handled; returns the milliseconds to wait where the database is unavailable. */
  async #deadLetter(
    source: string,
    id: string,
    headers: Record<string, string>,
    data: unknown,
    error: unknown,
    event?: Event,
  ): Promise<number | undefined> {
    const { name, pauseMs } = this.#options;
    console.error(`${name} stores ${id} of ${source} as a dead letter: ${reasonOf(error)}`);
    try {
      await this.#transaction(async (client) => {
        if (event !== undefined && !(await this.#isNew(client, event))) return;
        await client.query(
          `INSERT INTO sparkledger_dead_letters (consumer, source, id, headers, data, reason)
           VALUES ($1, $2, $3, $4, $5, $6)
           ON CONFLICT (consumer, source, id) DO UPDATE SET reason = excluded.reason, at = excluded.at`,
          // PostgreSQL stores no U+0000, and Sparkledger's events have none.
          [name, source, id, asJson(headers), asJson(data), reasonOf(error)],
        );
      });
    } catch (failure) {
      if (failure instanceof Unavailable) return pauseMs;
      throw failure;
    }
    return undefined;
  }

  /** Marks an event as done; returns whether it was not done before, and checks that none is missing before it. */
  async #isNew(client: pg.ClientBase, event: Event): Promise<boolean> {
    const { name } = this.#options;
    const { source, subject, streamVersion, id } = event;
    await this.#checkHistory(client, event);
    const marked = await client.query(
      `INSERT INTO sparkledger_events (consumer, source, subject, version, id, sequence)
       VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`,
      [name, source, subject, streamVersion, id, event.sequence.toString()],
    );
    if (marked.rowCount === 0) {
      const done = await client.query<{ id: string }>(
        `SELECT id FROM sparkledger_events WHERE (consumer, source) = ($1, $2)
         AND ((subject, version) = ($3, $4) OR sequence = $5)`,
        [name, source, subject, streamVersion, event.sequence.toString()],
      );
      for (const row of done.rows) refuseFork(event, row.id);
      return false;
    }
    const known = await client.query<{ version: number; last_id: string }>(
      `SELECT version, last_id FROM sparkledger_streams WHERE (consumer, source, subject) = ($1, $2, $3) FOR UPDATE`,
      [name, source, subject],
    );
    const { version, last_id: lastId } = known.rows[0] ?? { version: 0, last_id: "" };
    if (streamVersion <= version) {
      // The row of this event was deleted as an old one, so only the id of the last event can be compared.
      if (streamVersion === version) refuseFork(event, lastId);
      return false;
    }
    if (streamVersion !== version + 1) {
      throw new Gap(
        `${subject} of ${source} goes from version ${version} to ${streamVersion}: events in between are missing. ` +
          "Read the topic from its beginning into empty tables, or find out what lost them.",
      );
    }
    await client.query(
      `INSERT INTO sparkledger_streams (consumer, source, subject, version, last_id) VALUES ($1, $2, $3, $4, $5)
       ON CONFLICT (consumer, source, subject) DO UPDATE SET version = excluded.version, last_id = excluded.last_id`,
      [name, source, subject, streamVersion, id],
    );
    return true;
  }

  /** Throws where the ledger goes on as a history that nobody has accepted; the first one needs nobody. */
  async #checkHistory(client: pg.ClientBase, event: Event): Promise<void> {
    const history = event.attributes["ledgerhistory"];
    if (history === undefined) return;
    const { name } = this.#options;
    const known = await client.query<{ accepted: boolean | null }>(
      "SELECT bool_or(history = $3) AS accepted FROM sparkledger_histories WHERE (consumer, source) = ($1, $2)",
      [name, event.source, history],
    );
    const accepted = known.rows[0]?.accepted ?? null;
    if (accepted === null) {
      await client.query("INSERT INTO sparkledger_histories VALUES ($1, $2, $3) ON CONFLICT DO NOTHING", [
        name,
        event.source,
        history,
      ]);
    } else if (!accepted) {
      throw new Forked(
        `${event.source} goes on as history ${history}: it was restored to an earlier state. Let your tables follow, ` +
          "then call acceptHistory with this source and this history.",
      );
    }
  }

  /** Runs work in a transaction; rejects with `Unavailable` where the connection was at fault. */
  async #transaction(work: (client: pg.ClientBase) => Promise<unknown>): Promise<void> {
    const client = await this.#pool.connect().catch((error: Error) => {
      throw new Unavailable(error.message);
    });
    let lost: Error | undefined;
    const onLost = (error: Error): void => {
      lost = error;
    };
    client.on("error", onLost);
    try {
      await client.query("BEGIN");
      await work(client);
      await client.query("COMMIT");
      client.off("error", onLost);
      client.release();
    } catch (error) {
      const rolledBack = await client.query("ROLLBACK").then(
        () => true,
        () => false,
      );
      client.off("error", onLost);
      client.release(!rolledBack);
      if (!rolledBack) throw new Unavailable((lost ?? (error as Error)).message);
      throw error;
    }
  }
}

class Unavailable extends Error {}

function refuseFork(event: Event, done: string): void {
  if (done !== event.id) {
    throw new Forked(
      `Version ${event.streamVersion} of ${event.subject} of ${event.source}, or position ${event.sequence}, was done ` +
        `as ${done} and is ${event.id} now: the ledger was restored to an earlier state, or is another one. Read the ` +
        "topic from its beginning into empty tables, or restore the newer ledger.",
    );
  }
}

/** Returns the event of a Kafka record in CloudEvents' binary mode; throws where it is none. */
export function eventOf(message: KafkaMessage): Event {
  const headers = textOf(message);
  const attributes: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (name.startsWith("ce_")) attributes[name.slice("ce_".length)] = value;
  }
  const named = (name: string): string => {
    const value = attributes[name];
    if (value === undefined) throw new TypeError(`there is no ${name}`);
    return value;
  };
  const data: unknown = JSON.parse(String(message.value));
  if (!isObject(data) || !isObject(data["body"])) throw new TypeError("the value is not an event");
  return {
    id: named("id"),
    source: named("source"),
    type: named("type"),
    subject: named("subject"),
    sequence: BigInt(named("sequence")),
    streamVersion: Number(named("streamversion")),
    attributes,
    data,
    body: data["body"],
  };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function textOf(message: KafkaMessage): Record<string, string> {
  return Object.fromEntries(Object.entries(message.headers ?? {}).map(([name, value]) => [name, String(value)]));
}

function reasonOf(error: unknown): string {
  const reason = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return reason.replaceAll("\0", "\ufffd").slice(0, REASON_CHARACTERS_MAX);
}

function asJson(value: unknown): string {
  return JSON.stringify(value).replaceAll("\\u0000", "\\ufffd");
}
