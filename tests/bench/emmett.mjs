// Appends of Emmett's event store on PostgreSQL: one new stream with one event each, as many at a time as asked for.
// node emmett.mjs CONNECTION IN_FLIGHT SECONDS prints appends a second.

import { randomUUID } from 'node:crypto';
import { getPostgreSQLEventStore } from '@event-driven-io/emmett-postgresql';

const [connection, inFlight, seconds] = process.argv.slice(2);
const store = getPostgreSQLEventStore(connection);
const data = { video_id: '7301234567890123456', creator_id: 'creator-123', days: 30 };
const append = () => store.appendToStream(`code-${randomUUID()}`, [{ type: 'CodeGenerated', data }]);

await append(); // makes its tables
const began = performance.now();
const end = began + Number(seconds) * 1000;
let done = 0;
await Promise.all(
  Array.from({ length: Number(inFlight) }, async () => {
    while (performance.now() < end) {
      await append();
      done += 1;
    }
  }),
);
console.log(done / ((performance.now() - began) / 1000));
await store.close();
