// The npm package eventsource, following the stream of events: a line for each event.
//
//     node eventsource.mjs URL KEY
import { EventSource } from "eventsource";

const [url, key] = process.argv.slice(2);
const events = new EventSource(`${url}/v1/events/stream?after=0`, {
  fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${key}` } }),
});
events.onmessage = ({ data }) => {
  const event = JSON.parse(data);
  console.log(JSON.stringify([event.position, event.code_id ?? event.creator_id, event.event_id, event.stream_version]));
};
events.onerror = ({ code, message }) => console.error(code, message, events.readyState);
