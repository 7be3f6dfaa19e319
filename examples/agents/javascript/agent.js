// A full agent in JavaScript, written from docs/protocol.md alone. It serves one task type, `reverse_text`:
// {"text": "…"} -> {"text": "…"}. Run it with NATS_URL set: `npm install && npm start`.

import { randomBytes, randomUUID } from "node:crypto";
import { Kvm } from "@nats-io/kv";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, nanos } from "@nats-io/transport-node";

const NAME = "javascript_agent";
const INSTANCE_ID = `${process.pid}-${randomBytes(4).toString("hex")}`;
const MAX_CONCURRENCY = 8;
const REGISTER_EVERY_MS = 5_000;
const IN_PROGRESS_EVERY_MS = 10_000;
const PULL_MS = 5_000;

const handlers = {
  reverse_text(payload) {
    if (typeof payload.text !== "string") {
      throw new TypeError("payload.text: 'reverse_text' needs a string");
    }
    return { text: [...payload.text].reverse().join("") };
  },
};

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// The TaskResponse: ids and attempt as they came, and a result or an error.
async function responseTo(request) {
  const response = {
    task_id: request.task_id,
    root_task_id: request.root_task_id ?? request.task_id,
    attempt: request.attempt ?? 1,
    task_type: request.task_type,
    agent: NAME,
    instance_id: INSTANCE_ID,
    started_at: new Date().toISOString(),
  };
  try {
    const handler = handlers[request.task_type];
    if (handler === undefined) {
      throw new TypeError(`${NAME} serves ${Object.keys(handlers)}, not '${request.task_type}'`);
    }
    response.result = await handler(request.payload ?? {});
    response.status = "completed";
  } catch (error) {
    response.status = "failed";
    response.error = error instanceof TypeError
      ? { code: "invalid_request", message: error.message, retryable: false }
      : { code: "internal_error", message: String(error), retryable: true };
  }
  response.completed_at = new Date().toISOString();
  return response;
}

// The order is the guarantee: work, publish the response and have its ack, then ack the task.
async function work(js, message) {
  const keeping = setInterval(() => message.working(), IN_PROGRESS_EVERY_MS);
  try {
    let request;
    try {
      request = message.json();
    } catch {
      request = undefined;
    }
    if (typeof request?.task_id === "string") {
      const response = await responseTo(request);
      const msgID = `${response.task_id}:${response.attempt}:response`;
      await js.publish(`agent.${NAME}.response`, JSON.stringify(response), { msgID });
    } else {
      // There is no id to respond to.
      await js.publish(`mesh.deadletter.${NAME}`, deadLetter(message));
    }
    message.ack();
  } catch (error) {
    // Not acknowledged: it will be delivered again, to this instance or another.
    console.error(`no response sent: ${error}`);
  } finally {
    clearInterval(keeping);
  }
}

function deadLetter(message) {
  return JSON.stringify({
    id: randomUUID(),
    subject: message.subject,
    reason: "not a TaskRequest",
    body_base64: Buffer.from(message.data).toString("base64"),
    deliveries: message.info.deliveryCount,
    at: new Date().toISOString(),
  });
}

// Put this instance's key again and again: it lives for 15 s after the last put.
async function register(js, stop) {
  const key = `${NAME}.${INSTANCE_ID}`;
  const record = JSON.stringify({
    protocol: 1,
    name: NAME,
    instance_id: INSTANCE_ID,
    task_types: Object.keys(handlers),
    max_concurrency: MAX_CONCURRENCY,
    version: "1.0.0",
    status: "ready",
    metadata: {},
  });
  while (!stop.aborted) {
    try {
      // `open` does not make the bucket: that is the orchestrator's task.
      const bucket = await new Kvm(js).open("agents");
      await bucket.put(key, record);
    } catch (error) {
      console.error(`not registered yet: ${error}`);
    }
    await sleep(REGISTER_EVERY_MS);
  }
}

// Take tasks, at most MAX_CONCURRENCY at once; a consumer that is missing or gone is made (again).
async function pull(connection, js, stop) {
  const running = new Set();
  while (!stop.aborted) {
    try {
      const manager = await jetstreamManager(connection);
      await manager.consumers.add("AGENT_TASKS", {
        durable_name: NAME,
        filter_subject: `agent.${NAME}.task`,
        ack_policy: AckPolicy.Explicit,
        ack_wait: nanos(30_000),
        max_deliver: 5,
        max_ack_pending: 10_000,
      });
      const consumer = await js.consumers.get("AGENT_TASKS", NAME);
      console.log(`${NAME} ${INSTANCE_ID} is ready`);
      while (!stop.aborted) {
        if (running.size >= MAX_CONCURRENCY) {
          await Promise.race(running);
          continue;
        }
        const message = await consumer.next({ expires: PULL_MS });
        if (message === null) {
          await manager.consumers.info("AGENT_TASKS", NAME); // fails where the consumer is gone
          continue;
        }
        const task = work(js, message).finally(() => running.delete(task));
        running.add(task);
      }
    } catch (error) {
      console.error(`waiting for the mesh: ${error}`);
      await sleep(1_000);
    }
  }
}

const ending = new AbortController();
const connection = await connect({
  servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222",
  name: NAME,
  maxReconnectAttempts: -1,
});
const js = jetstream(connection);
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, async () => {
    ending.abort();
    try {
      // A clean end removes the key, which would stay for 15 s otherwise.
      await (await new Kvm(js).open("agents")).delete(`${NAME}.${INSTANCE_ID}`);
    } finally {
      await connection.drain();
      process.exit(0);
    }
  });
}
await Promise.all([register(js, ending.signal), pull(connection, js, ending.signal)]);
