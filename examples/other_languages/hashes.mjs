// Canonical JSON, content hashes, names of parts and Kafka's partitioner, in JavaScript without packages.
//
//   node hashes.mjs schemas/treadle_schemas/json/examples     checks all golden vectors and examples, exits 1 where one differs
//
// JSON.parse cannot be used where a hash is wanted: it makes 1.0 a 1, and loses digits of long integers.

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

/** The canonical form of a JSON text. */
export function canonical(text) {
  let at = 0;
  const token = /[\t\n\r ]*(?:([{}[\],:])|"((?:[^"\\]|\\.)*)"|(-?\d+)(\.\d+)?([eE][+-]?\d+)?|(true|false|null))/suy;
  function next() {
    token.lastIndex = at;
    const found = token.exec(text);
    if (found === null) throw new SyntaxError(`not JSON at ${at}`);
    at = token.lastIndex;
    return found;
  }
  function value(found) {
    const [, mark, string, integer, fraction, exponent, word] = found;
    if (word !== undefined) return word;
    if (string !== undefined) return quoted(JSON.parse(`"${string}"`));
    if (integer !== undefined) {
      const whole = fraction === undefined && exponent === undefined;
      return whole ? BigInt(integer).toString() : float(Number(integer + (fraction ?? "") + (exponent ?? "")));
    }
    const items = [];
    const end = mark === "{" ? "}" : "]";
    if (mark !== "{" && mark !== "[") throw new SyntaxError(`${mark} at ${at}`);
    for (let found = next(); found[1] !== end; found = next()) {
      if (found[1] === ",") found = next();
      if (mark === "[") items.push(value(found));
      else {
        const name = JSON.parse(`"${found[2]}"`);
        next(); // the colon
        items.push([name, value(next())]);
      }
    }
    if (mark === "[") return `[${items.join(",")}]`;
    items.sort(([a], [b]) => byCodePoint(a, b));
    return `{${items.map(([name, item]) => `${quoted(name)}:${item}`).join(",")}}`;
  }
  return value(next());
}

function byCodePoint(a, b) {
  const [x, y] = [[...a], [...b]];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    if (x[i] !== y[i]) return x[i].codePointAt(0) - y[i].codePointAt(0);
  }
  return x.length - y.length;
}

const quoted = JSON.stringify; // escapes quotes, backslashes, controls and lone surrogates, and nothing else

/** A float as Python writes it: 1.0, 1e+16, 1e-05. */
function float(number) {
  if (number === 0) return "0.0";
  const [digits, exponent] = number.toExponential().split("e");
  const power = Number(exponent);
  if (power < -4 || power >= 16) {
    return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  if (power < 0) {
    const sign = number < 0 ? "-" : "";
    return `${sign}0.${"0".repeat(-power - 1)}${digits.replace(/[-.]/g, "")}`;
  }
  return Number.isInteger(number) ? `${BigInt(number)}.0` : String(number);
}

const sha256 = (text) => createHash("sha256").update(text, "utf8").digest("hex");
export const contentHash = (text) => sha256(canonical(text));

/** The name of a transcript after one more message (as JSON text, with the claims into it, if any); `prev` is "" at the start. */
export function linkHash(prev, message, claims) {
  return sha256(prev + contentHash(claims ? `[${message},${claims}]` : message)).slice(0, 32);
}

/** Kafka's murmur2 of bytes, unsigned. */
export function murmur2(bytes) {
  const m = 0x5bd1e995;
  const whole = bytes.length & ~3;
  let h = 0x9747b28c ^ bytes.length;
  for (let i = 0; i < whole; i += 4) {
    let k = bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    k = Math.imul(k, m);
    k = Math.imul(k ^ (k >>> 24), m);
    h = Math.imul(h, m) ^ k;
  }
  if (whole < bytes.length) {
    for (let i = bytes.length - 1; i >= whole; i--) h ^= bytes[i] << (8 * (i - whole));
    h = Math.imul(h, m);
  }
  h = Math.imul(h ^ (h >>> 13), m);
  return (h ^ (h >>> 15)) >>> 0;
}

export const partitionOf = (key, partitions) => (murmur2(Buffer.from(key, "utf8")) & 0x7fffffff) % partitions;

export const handle = (...parts) =>
  parts.map((part) => encodeURIComponent(part).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`)).join("/");

/** The text of each record's value in an example's file, as it stands there. */
function valuesIn(text) {
  const found = [];
  for (const match of text.matchAll(/^ {6}"value": ([\s\S]*?)(?:,\n {6}"|\n {4}\})/gm)) found.push(match[1]);
  return found;
}

function check(folder) {
  let checked = 0;
  let wrong = 0;
  function same(what, found, expected) {
    checked += 1;
    if (found === expected) return;
    wrong += 1;
    console.error(`${what}: ${found} is not ${expected}`);
  }
  const vectors = JSON.parse(readFileSync(join(folder, "vectors.json"), "utf8"));
  for (const { key, murmur2: hash, partitions } of vectors.partitions) {
    same(`murmur2 of ${key}`, murmur2(Buffer.from(key, "utf8")), hash);
    for (const [count, partition] of Object.entries(partitions)) same(key, partitionOf(key, Number(count)), partition);
  }
  for (const { json, canonical: expected, content_hash: hash } of vectors.canonical) {
    same(json, canonical(json), expected);
    same(json, contentHash(json), hash);
  }
  for (const { workspace, episode_id: episode, interaction_id: name, handle: expected } of vectors.handles) {
    same("handle", handle(workspace, episode, name), expected);
  }
  for (const name of readdirSync(join(folder, "valid"))) {
    const text = readFileSync(join(folder, "valid", name), "utf8");
    const values = valuesIn(text);
    JSON.parse(text).records.forEach((record, n) => {
      same(`${name} ${n}`, contentHash(values[n]), record.content_hash);
      for (const [count, partition] of Object.entries(record.partitions ?? {})) {
        same(`${name} ${n}`, partitionOf(record.key, Number(count)), partition);
      }
      // these messages hold no numbers, so that JSON.stringify loses nothing
      const { part, prev, messages, value } = record.value;
      if (messages && part) same(`${name} ${n}`, messages.reduce((h, m) => linkHash(h, JSON.stringify(m)), prev ?? ""), part);
      else if (part && value) same(`${name} ${n}`, contentHash(JSON.stringify(value)).slice(0, 32), part);
    });
  }
  console.log(`${checked} checked, ${wrong} wrong`);
  return wrong === 0;
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  if (process.argv.length !== 3) {
    console.error("usage: node hashes.mjs FOLDER");
    process.exit(2);
  }
  process.exit(check(process.argv[2]) ? 0 : 1);
}
